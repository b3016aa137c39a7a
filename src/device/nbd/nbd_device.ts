/**
 * The bottom of a device stack that is an export of an NBD server instead of a file: requests and replies
 * go over a socket on the queue's own ring. When the connection breaks, requests wait for the next one
 * and are made again; reads, writes and zeroes may be done twice.
 */
import { EIO } from '../../../ffi/errno.ts';
import { shim } from '../../../ffi/library.ts';
import { NativeBuffer } from '../../../ffi/memory.ts';
import type { Ring, RingHandler } from '../../../ffi/ring.ts';
import type { FailureSink } from '../file_device.ts';
import {
  type BlockDevice,
  type BlockRequest,
  DISCARD,
  FLUSH,
  READ,
  WRITE,
  WRITE_ZEROES,
} from '../request.ts';
import {
  AT_COOKIE,
  AT_FLAGS,
  AT_LENGTH,
  AT_OFFSET,
  AT_TYPE,
  CHUNK_BYTES,
  CHUNK_DONE,
  CHUNK_IS_ERROR,
  Chunk,
  CMD_FUA,
  CMD_NO_HOLE,
  Cmd,
  type ExportFacts,
  errorFromWire,
  MAX_STRING,
  REQUEST_BYTES,
  REQUEST_MAGIC,
  SEND_FLUSH,
  SEND_FUA,
  SEND_TRIM,
  SEND_WRITE_ZEROES,
  SIMPLE_REPLY_BYTES,
  SIMPLE_REPLY_MAGIC,
  STRUCTURED_REPLY_MAGIC,
} from './protocol.ts';
import { QueueLine } from './queue_line.ts';
import { RingStream, type StreamOwner } from './ring_stream.ts';

/** What a queue needs to know of an export; plain data. */
export interface NbdStart {
  facts: ExportFacts;
  /** Of `QueueLine`s. */
  lines: SharedArrayBuffer;
  /** For each queue, what main signals when it has given it a socket. */
  eventFds: number[];
  /** What queues signal when they have lost one. */
  lostFd: number;
}

const STAGE_MAIN = 0;
/** What the server can't make durable at once is flushed. */
const STAGE_FLUSH = 1;
/** Not data is asked for, but where there is some. */
const STAGE_EXTENTS = 2;
/** Heads of requests that are being sent; with all in use, further ones wait. */
const HEADS = 256;
const HEAD_BYTES = 32;
const ZERO_BYTES = 64 * 1024;
/** Where the server can't zero, so much is written at once: parts of ZERO_BYTES. */
const MOST_ZERO_PARTS = 64;
const EVENT = 0;
/** How far a request is on its way to the server; the kernel may read the data of what is being sent. */
const WAITS = 0;
const BEING_SENT = 1;
const SENT = 2;
/** Extents that are kept of an answer. */
export const MOST_EXTENTS = 1024;
export const EXTENT_BYTES = 8;
const CONTEXT_BYTES = 4;

/** What is being read of a reply. */
type Phase = 'reply' | 'data' | 'skipping';

export class NbdDevice implements BlockDevice, StreamOwner, RingHandler {
  private readonly stream: RingStream;
  private readonly line: QueueLine;
  private readonly handler: number;
  private readonly eventFd: number;
  private readonly heads = new NativeBuffer(HEADS * HEAD_BYTES);
  private readonly headView = new DataView(this.heads.window());
  private headsUsed = 0;
  private zeroes: NativeBuffer | null = null;
  private connected = false;
  private taken = 0;
  /** Requests that aren't answered, by their index; what a cookie is. */
  private readonly active: (BlockRequest | null)[] = [];
  /** How much of a read has come, and how much of the request is asked for at the moment. */
  private readonly got: number[] = [];
  private readonly asked: number[] = [];
  private readonly errors: number[] = [];
  /** WAITS, BEING_SENT or SENT. */
  private readonly ways: number[] = [];
  /** Indexes of requests that are being sent, and of writes that were answered meanwhile. */
  private readonly batch: number[] = [];
  private readonly early: number[] = [];
  private activeCount = 0;
  /** Indexes of requests that are to be sent, from `queueHead` on. */
  private readonly queue: number[] = [];
  private queueHead = 0;
  private phase: Phase = 'reply';
  private current: BlockRequest | null = null;
  /** Of a chunk that is longer than what is wanted of it. */
  private toSkip = 0;
  private currentLast = false;
  /** Into a request of several segments: place in it, and bytes that are still to come. */
  private scatterAt = 0;
  private scatterLeft = 0;
  private open = false;
  private failing = false;

  constructor(
    private readonly ring: Ring,
    private readonly start: NbdStart,
    queue: number,
    private readonly onFailure: FailureSink,
  ) {
    this.stream = new RingStream(ring, this);
    this.line = new QueueLine(start.lines, queue);
    this.handler = ring.addHandler(this);
    this.eventFd = start.eventFds[queue];
    ring.pollIn(this.eventFd, this.handler, EVENT);
    this.connect();
  }

  /** Without a connection nothing touches memory. */
  get inFlight(): number {
    return this.open ? this.activeCount : 0;
  }

  submit(request: BlockRequest): void {
    request.transferred = 0;
    request.stage = STAGE_MAIN;
    if (this.isNothing(request)) {
      request.result = 0;
      request.owner.completed(request);
      return;
    }
    this.take(request);
  }

  private take(request: BlockRequest): void {
    if (this.failing && !this.connected) {
      request.result = -EIO;
      request.owner.completed(request);
      return;
    }
    this.active[request.index] = request;
    this.activeCount++;
    this.ask(request);
  }

  /** Whether the server tells where there is data. */
  get tellsExtents(): boolean {
    return this.start.facts.allocationId >= 0;
  }

  /**
   * Asks where in a range there is data (NBD_CMD_BLOCK_STATUS). When the request is completed, its memory has
   * pairs of lengths and states as on the wire, `transferred` of them: the beginning of the range at least.
   * @param request of less than 4 GiB, with MOST_EXTENTS * EXTENT_BYTES of memory
   */
  askExtents(request: BlockRequest): void {
    request.transferred = 0;
    request.stage = STAGE_EXTENTS;
    this.take(request);
  }

  /** Sends what was submitted since, in one go. */
  receive(): void {
    this.sendAll();
  }

  abandon(): void {
    if (this.open) return;
    this.endAll((request) => request.owner.abandoned?.(request));
  }

  failWaiting(): void {
    this.failing = true;
    if (this.connected) this.stream.shutdown();
    this.failIfIdle();
  }

  ringCompleted(_index: number, _result: number, more: boolean): void {
    shim.ubiblk_eventfd_drain(this.eventFd);
    if (!more) this.ring.pollIn(this.eventFd, this.handler, EVENT);
    this.connect();
  }

  received(): void {
    if (this.phase === 'data' && this.current?.segments === 1 && !this.stream.taking)
      this.dataCame();
    let more = true;
    while (more && this.connected) {
      if (this.phase === 'reply') more = this.takeReply();
      else if (this.phase === 'skipping') more = this.skip();
      else more = (this.current as BlockRequest).segments !== 1 && this.scatter();
    }
    if (this.connected) this.stream.receive();
  }

  sent(): void {
    this.headsUsed = 0;
    if (!this.connected) {
      this.lost();
      return;
    }
    for (let i = 0; i < this.batch.length; i++) this.ways[this.batch[i]] = SENT;
    this.batch.length = 0;
    if (this.early.length > 0) this.finishEarly();
    this.sendAll();
  }

  ended(): void {
    this.lost();
  }

  /** Takes over the socket that main has given, once the last one is let go of. */
  private connect(): void {
    if (this.open || this.line.given === this.taken) return;
    this.taken = this.line.given;
    this.stream.open(this.line.fd);
    this.open = true;
    this.connected = true;
    this.failing = false;
    this.phase = 'reply';
    this.current = null;
    this.toSkip = 0;
    this.headsUsed = 0;
    this.batch.length = 0;
    this.early.length = 0;
    this.clearQueue();
    for (const request of this.active) if (request) this.askAgain(request);
    this.stream.receive();
    this.sendAll();
  }

  private lost(): void {
    if (this.connected) {
      this.connected = false;
      this.stream.shutdown();
    }
    // As long as the kernel has something of the socket, it may move requests' data.
    if (!this.open || !this.stream.idle) return;
    this.open = false;
    this.stream.close();
    this.line.lose();
    shim.ubiblk_eventfd_signal(this.start.lostFd);
    this.failIfIdle();
    this.connect();
  }

  private failIfIdle(): void {
    if (!this.failing || this.open) return;
    this.endAll((request) => {
      request.result = -EIO;
      request.owner.completed(request);
    });
  }

  private clearQueue(): void {
    this.queue.length = 0;
    this.queueHead = 0;
  }

  private endAll(end: (request: BlockRequest) => void): void {
    this.clearQueue();
    for (const request of this.active.slice()) {
      if (!request) continue;
      this.active[request.index] = null;
      this.activeCount--;
      end(request);
    }
  }

  private has(flag: number): boolean {
    return (this.start.facts.flags & flag) !== 0;
  }

  /** Whether the server has nothing to do for a request. */
  private isNothing({ op }: BlockRequest): boolean {
    return (op === DISCARD && !this.has(SEND_TRIM)) || (op === FLUSH && !this.has(SEND_FLUSH));
  }

  /** From its start: of what was answered before nobody knows whether it is still there. */
  private askAgain(request: BlockRequest): void {
    request.transferred = 0;
    if (request.stage === STAGE_FLUSH) request.stage = STAGE_MAIN;
    this.ask(request);
  }

  private ask(request: BlockRequest): void {
    this.got[request.index] = 0;
    this.errors[request.index] = 0;
    this.ways[request.index] = WAITS;
    this.queue.push(request.index);
  }

  private sendAll(): void {
    const { stream, queue } = this;
    // Heads are used again when all of a batch is sent.
    if (!this.connected || !stream.drained || this.queueHead === queue.length) return;
    while (this.queueHead < queue.length && this.headsUsed < HEADS) {
      const request = this.active[queue[this.queueHead]];
      if (request && !stream.hasRoom(1 + Math.max(request.segments, MOST_ZERO_PARTS))) break;
      if (request) this.gather(request);
      this.queueHead++;
    }
    if (this.queueHead === queue.length) this.clearQueue();
    stream.send();
  }

  private gather(request: BlockRequest): void {
    const { stream, headView: view, start } = this;
    const { op, offset, transferred, index, stage } = request;
    const head = this.headsUsed++ * HEAD_BYTES;
    const looks = stage === STAGE_EXTENTS;
    const writesZeroes = op === WRITE_ZEROES && !this.has(SEND_WRITE_ZEROES);
    const left = request.length - transferred;
    const most = writesZeroes ? MOST_ZERO_PARTS * ZERO_BYTES : start.facts.maxPayload;
    const moves = !looks && (op === READ || op === WRITE || writesZeroes);
    const length = stage === STAGE_FLUSH || op === FLUSH ? 0 : moves ? Math.min(left, most) : left;
    this.asked[index] = length;
    this.ways[index] = BEING_SENT;
    this.batch.push(index);
    view.setUint32(head, REQUEST_MAGIC);
    view.setUint16(head + AT_FLAGS, this.flagsOf(request));
    view.setUint16(
      head + AT_TYPE,
      looks
        ? Cmd.BLOCK_STATUS
        : stage === STAGE_FLUSH
          ? Cmd.FLUSH
          : this.commandOf(op, writesZeroes),
    );
    view.setUint32(head + AT_COOKIE, 0);
    view.setUint32(head + AT_COOKIE + 4, index);
    const at = length === 0 ? 0 : offset + transferred;
    view.setUint32(head + AT_OFFSET, Math.floor(at / 2 ** 32));
    view.setUint32(head + AT_OFFSET + 4, at % 2 ** 32);
    view.setUint32(head + AT_LENGTH, length);
    stream.push(this.heads.address + head, REQUEST_BYTES);
    if (length === 0) return;
    if (op === WRITE) this.pushData(request, length);
    else if (writesZeroes) this.pushZeroes(length);
  }

  private commandOf(op: number, writesZeroes: boolean): number {
    if (op === READ) return Cmd.READ;
    if (op === WRITE || writesZeroes) return Cmd.WRITE;
    if (op === FLUSH) return Cmd.FLUSH;
    return op === DISCARD ? Cmd.TRIM : Cmd.WRITE_ZEROES;
  }

  private flagsOf({ op, durable, unmap, stage }: BlockRequest): number {
    if (op === READ || op === FLUSH || stage !== STAGE_MAIN) return 0;
    const fua = durable && this.has(SEND_FUA) ? CMD_FUA : 0;
    const keep = op === WRITE_ZEROES && !unmap && this.has(SEND_WRITE_ZEROES) ? CMD_NO_HOLE : 0;
    return fua | keep;
  }

  private pushData(request: BlockRequest, length: number): void {
    const { stream } = this;
    if (request.segments === 1) {
      stream.push(request.address + request.transferred, length);
      return;
    }
    const { iovecs, iovec, segments } = request;
    let skip = request.transferred;
    let left = length;
    for (let i = iovec; i < iovec + segments && left > 0; i++) {
      const part = iovecs.length(i);
      const here = Math.min(part - Math.min(skip, part), left);
      if (here > 0) stream.push(iovecs.address(i) + skip, here);
      skip = Math.max(0, skip - part);
      left -= here;
    }
  }

  private pushZeroes(length: number): void {
    this.zeroes ??= new NativeBuffer(ZERO_BYTES);
    for (let left = length; left > 0; left -= ZERO_BYTES) {
      this.stream.push(this.zeroes.address, Math.min(left, ZERO_BYTES));
    }
  }

  private takeReply(): boolean {
    const { stream } = this;
    const { view, start } = stream;
    if (stream.available < SIMPLE_REPLY_BYTES) return false;
    const magic = view.getUint32(start);
    const structured = magic === STRUCTURED_REPLY_MAGIC && this.start.facts.structured;
    if (magic !== SIMPLE_REPLY_MAGIC && !structured) return this.broken();
    const request =
      view.getUint32(start + AT_COOKIE) === 0 && this.active[view.getUint32(start + AT_COOKIE + 4)];
    if (!request) return this.broken();
    return structured ? this.takeChunk(request) : this.takeSimple(request);
  }

  private takeSimple(request: BlockRequest): boolean {
    const { stream } = this;
    const error = stream.view.getUint32(stream.start + 4);
    stream.start += SIMPLE_REPLY_BYTES;
    if (error === 0 && this.reads(request))
      return this.takeData(request, 0, this.asked[request.index], true);
    if (error !== 0) this.errors[request.index] = errorFromWire(error);
    this.finish(request);
    return true;
  }

  private takeChunk(request: BlockRequest): boolean {
    const { stream } = this;
    const { view, start } = stream;
    if (stream.available < CHUNK_BYTES) return false;
    const last = (view.getUint16(start + 4) & CHUNK_DONE) !== 0;
    const type = view.getUint16(start + 6);
    const length = view.getUint32(start + 16);
    const body = start + CHUNK_BYTES;
    if ((type & CHUNK_IS_ERROR) !== 0) {
      if (length < 6 || length > MAX_STRING + 64) return this.broken();
      if (stream.available < CHUNK_BYTES + length) return false;
      this.errors[request.index] = errorFromWire(view.getUint32(body)) || -EIO;
      stream.start += CHUNK_BYTES + length;
    } else if (request.stage === STAGE_EXTENTS) {
      return this.takeExtents(request, type, length, last);
    } else if (type === Chunk.NONE && length === 0) {
      stream.start += CHUNK_BYTES;
    } else if (!this.reads(request)) {
      return this.broken();
    } else if (type === Chunk.OFFSET_DATA && length > 8) {
      if (stream.available < CHUNK_BYTES + 8) return false;
      const place = this.placeOf(request, body, length - 8);
      if (place < 0) return this.broken();
      stream.start += CHUNK_BYTES + 8;
      return this.takeData(request, place, length - 8, last);
    } else if (type === Chunk.OFFSET_HOLE && length === 12) {
      if (stream.available < CHUNK_BYTES + 12) return false;
      const hole = view.getUint32(body + 8);
      const place = this.placeOf(request, body, hole);
      if (place < 0) return this.broken();
      stream.start += CHUNK_BYTES + 12;
      this.fill(request, place, hole);
    } else {
      return this.broken();
    }
    if (last) this.finish(request);
    return true;
  }

  private takeExtents(request: BlockRequest, type: number, length: number, last: boolean): boolean {
    const { stream, start } = this;
    const count = (length - CONTEXT_BYTES) / EXTENT_BYTES;
    const known = type === Chunk.BLOCK_STATUS && count >= 1 && Number.isInteger(count);
    if (!known || this.got[request.index] > 0) return this.broken();
    if (stream.available < CHUNK_BYTES + CONTEXT_BYTES) return false;
    const id = stream.view.getUint32(stream.start + CHUNK_BYTES);
    if (id !== start.facts.allocationId) return this.broken();
    stream.start += CHUNK_BYTES + CONTEXT_BYTES;
    const kept = Math.min(count, MOST_EXTENTS);
    this.current = request;
    this.currentLast = last;
    this.phase = 'data';
    this.got[request.index] = kept;
    this.toSkip = (count - kept) * EXTENT_BYTES;
    if (!stream.takeTo(request.address, kept * EXTENT_BYTES)) return false;
    this.dataCame();
    return true;
  }

  private skip(): boolean {
    const { stream } = this;
    const here = Math.min(stream.available, this.toSkip);
    stream.start += here;
    this.toSkip -= here;
    if (this.toSkip > 0) return false;
    this.dataCame();
    return true;
  }

  private reads({ op, stage }: BlockRequest): boolean {
    return op === READ && stage === STAGE_MAIN;
  }

  /** Where in what was asked for a chunk belongs, -1 where nowhere. */
  private placeOf(request: BlockRequest, at: number, count: number): number {
    const { view } = this.stream;
    const offset = view.getUint32(at) * 2 ** 32 + view.getUint32(at + 4);
    const place = offset - (request.offset + request.transferred);
    const fits = place >= 0 && count > 0 && place + count <= this.asked[request.index];
    return fits ? place : -1;
  }

  private takeData(request: BlockRequest, place: number, count: number, last: boolean): boolean {
    const at = request.transferred + place;
    this.current = request;
    this.currentLast = last;
    this.phase = 'data';
    this.got[request.index] += count;
    if (request.segments === 1) {
      if (!this.stream.takeTo(request.address + at, count)) return false;
      this.dataCame();
      return true;
    }
    this.scatterAt = at;
    this.scatterLeft = count;
    return true;
  }

  /** @returns whether all of it has come */
  private scatter(): boolean {
    const { stream } = this;
    const request = this.current as BlockRequest;
    const here = Math.min(stream.available, this.scatterLeft);
    if (here > 0) {
      const parts = request.iovecs.addressOf(request.iovec);
      shim.ubiblk_memory_scatter(parts, request.segments, this.scatterAt, stream.address, here);
      stream.start += here;
      this.scatterAt += here;
      this.scatterLeft -= here;
    }
    if (this.scatterLeft > 0) return false;
    this.dataCame();
    return true;
  }

  private dataCame(): void {
    if (this.toSkip > 0) {
      this.phase = 'skipping';
      return;
    }
    const request = this.current as BlockRequest;
    this.current = null;
    this.phase = 'reply';
    if (this.currentLast) this.finish(request);
  }

  private fill(request: BlockRequest, place: number, count: number): void {
    this.got[request.index] += count;
    const at = request.transferred + place;
    if (request.segments === 1) {
      shim.ubiblk_memory_fill(request.address + at, 0, count);
      return;
    }
    this.zeroes ??= new NativeBuffer(ZERO_BYTES);
    const parts = request.iovecs.addressOf(request.iovec);
    for (let done = 0; done < count; done += ZERO_BYTES) {
      const part = Math.min(ZERO_BYTES, count - done);
      shim.ubiblk_memory_scatter(parts, request.segments, at + done, this.zeroes.address, part);
    }
  }

  /** The reply to what was asked for is there; a request may be more than that. */
  private finish(request: BlockRequest): void {
    const { index } = request;
    // Nobody answers what was not asked.
    if (this.ways[index] === WAITS) {
      this.broken();
      return;
    }
    // Whoever has the memory may use it for something else as soon as the request is done.
    if (this.ways[index] === BEING_SENT && request.op === WRITE) {
      this.early.push(index);
      return;
    }
    const asked = this.asked[index];
    const error = this.errors[index];
    if (request.stage === STAGE_EXTENTS) {
      request.transferred = this.got[index];
      if (error === 0 && request.transferred === 0) {
        this.broken();
        return;
      }
    }
    if (error === 0 && this.reads(request) && this.got[index] !== asked) {
      this.broken();
      return;
    }
    if (request.stage === STAGE_MAIN && error === 0) {
      request.transferred += asked;
      const rest = request.op !== FLUSH && request.transferred < request.length;
      const flush =
        request.durable && request.op !== READ && !this.has(SEND_FUA) && this.has(SEND_FLUSH);
      if (rest || (flush && request.op !== FLUSH)) {
        if (!rest) request.stage = STAGE_FLUSH;
        this.ask(request);
        return;
      }
    }
    this.active[index] = null;
    this.activeCount--;
    request.result = error;
    if (error !== 0) this.onFailure(request, error);
    request.owner.completed(request);
  }

  private finishEarly(): void {
    for (const index of this.early.splice(0)) {
      const request = this.active[index];
      if (request && this.connected) this.finish(request);
    }
  }

  /** Nothing is believed of a server that breaks the rules: another connection is tried. */
  private broken(): boolean {
    this.lost();
    return false;
  }
}
