/**
 * One client of an NBD server on its queue's ring: negotiation, then requests, several at a time, and
 * their replies in whatever order they are done. Made once and used for one client after the other; a
 * request allocates nothing.
 *
 * What a client says is bounded before it is used. A request that can't be done gets an error; what is
 * no request at all ends the connection, and nobody else's.
 */
import { EOPNOTSUPP } from '../../../ffi/errno.ts';
import { NativeBuffer } from '../../../ffi/memory.ts';
import { IovecTable, type Ring } from '../../../ffi/ring.ts';
import { EXTENT_BYTES, MOST_EXTENTS, type NbdDevice } from '../../device/nbd/nbd_device.ts';
import {
  AT_COOKIE,
  AT_FLAGS,
  AT_LENGTH,
  AT_OFFSET,
  AT_TYPE,
  CHUNK_BYTES,
  CHUNK_DONE,
  Chunk,
  CMD_DF,
  CMD_FAST_ZERO,
  CMD_FUA,
  CMD_NO_HOLE,
  CMD_REQ_ONE,
  Cmd,
  errorToWire,
  NBD_EINVAL,
  NBD_ENOSPC,
  NBD_EPERM,
  OPTION_MAGIC,
  REQUEST_BYTES,
  REQUEST_MAGIC,
  SIMPLE_REPLY_BYTES,
  SIMPLE_REPLY_MAGIC,
  STATE_HOLE,
  STATE_ZERO,
  STRUCTURED_REPLY_MAGIC,
} from '../../device/nbd/protocol.ts';
import { MAX_MESSAGE_BYTES, RingStream, type StreamOwner } from '../../device/nbd/ring_stream.ts';
import {
  type BlockDevice,
  BlockRequest,
  DISCARD,
  FLUSH,
  READ,
  RequestList,
  type RequestOwner,
  type RequestTable,
  WRITE,
  WRITE_ZEROES,
} from '../../device/request.ts';
import type { QueueBoard } from '../../device/request_board.ts';
import type { BlockStatus } from './block_status.ts';
import { OVER_TLS, WITHOUT_ZEROES } from './link.ts';
import {
  ALLOCATION,
  greeting,
  type NbdExport,
  Negotiation,
  OPTION_HEAD_BYTES,
  STRIPES,
} from './negotiation.ts';

/** Memory of a connection for requests up to a size; pages that are never used cost nothing. */
const CLASSES = [
  { bytes: 32 << 10, count: 64 },
  { bytes: 1 << 20, count: 16 },
  { bytes: 32 << 20, count: 1 },
] as const;
/** Requests of a connection under way. */
export const CONNECTION_SLOTS = CLASSES.reduce((sum, { count }) => sum + count, 0);
const HEAD_BYTES = 32;
const TALK_BYTES = 65536;
/** The head of a read's reply: chunk and offset. */
const DATA_HEAD_BYTES = CHUNK_BYTES + 8;
const ERROR_CHUNK_BYTES = 6;
const ALL_STATES = STATE_HOLE | STATE_ZERO;
const ALLOWED_FLAGS: Record<number, number> = {
  [Cmd.READ]: CMD_FUA | CMD_DF,
  [Cmd.WRITE]: CMD_FUA,
  [Cmd.DISC]: 0xffff,
  [Cmd.FLUSH]: CMD_FUA,
  [Cmd.TRIM]: CMD_FUA,
  [Cmd.CACHE]: CMD_FUA,
  [Cmd.WRITE_ZEROES]: CMD_FUA | CMD_NO_HOLE | CMD_FAST_ZERO,
  [Cmd.BLOCK_STATUS]: CMD_FUA | CMD_REQ_ONE,
};

/** A request of a client, and the memory that is its own. */
class Slot extends BlockRequest {
  command = 0;
  cookieHigh = 0;
  cookieLow = 0;
  /** What the whole request is of, where it goes to the disk in parts. */
  startHigh = 0;
  startLow = 0;
  wanted = 0;
  end = 0;
  /** Extents of an answer. */
  most = 0;

  constructor(
    readonly place: number,
    readonly size: number,
    readonly memory: number,
    readonly head: number,
    ...rest: ConstructorParameters<typeof BlockRequest>
  ) {
    super(...rest);
  }
}

/** What all connections of a queue share. */
export interface ConnectionHost {
  ring: Ring;
  device: BlockDevice;
  table: RequestTable;
  board: QueueBoard;
  status: BlockStatus;
  /** Where the disk is another server's export that tells of its extents: that is asked instead. */
  remote: NbdDevice | null;
  export: NbdExport;
  /** Bytes of zeroes that go to the disk at once. */
  maxZeroBytes: number;
  /** Whether zeroes are made without writing them, with and without giving the space back. */
  fastZeroes(mayUnmap: boolean): boolean;
  /** When this turn began, in nanoseconds of the shim's clock. */
  readonly nowNs: number;
  /** The connection has something to be sent. */
  hasOutput(connection: NbdConnection): void;
  /** It is over, and can be used again. */
  released(connection: NbdConnection): void;
  problem(words: string): void;
}

type Phase =
  | 'flags'
  | 'options'
  | 'skipping an option'
  | 'requests'
  | 'payload'
  | 'skipping'
  | 'over';

export class NbdConnection implements RequestOwner, StreamOwner {
  private readonly stream: RingStream;
  private phase: Phase = 'over';
  private openedNs = 0;
  private negotiation: Negotiation;
  private readonly free: Slot[][];
  private readonly heads: NativeBuffer;
  private readonly headView: DataView;
  private readonly memories: NativeBuffer[];
  private readonly talk = new NativeBuffer(TALK_BYTES);
  private readonly talkBytes = new Uint8Array(this.talk.window());
  /** Requests with the disk. */
  private inFlight = 0;
  /** Those whose replies are gathered, and those that are being sent. */
  private gathered = new RequestList();
  private underWay = new RequestList();
  /** The write whose data is coming. */
  private incoming: Slot | null = null;
  private toSkip = 0;
  private skippedOption = 0;
  /** An answer to an option is being sent: the next one is read when it has been. */
  private talking = false;
  private structured = false;
  private contexts = 0;
  private leaving = false;
  private shut = false;
  /** Whether the host knows that there is something to send. */
  announced = false;
  private readonly slots: Slot[] = [];

  /** @param firstPlace of its requests on the board */
  constructor(
    private readonly host: ConnectionHost,
    firstPlace: number,
  ) {
    this.stream = new RingStream(host.ring, this);
    this.heads = new NativeBuffer(CONNECTION_SLOTS * HEAD_BYTES);
    this.headView = new DataView(this.heads.window());
    this.negotiation = new Negotiation(host.export, 'none');
    this.memories = CLASSES.map(({ bytes, count }) => new NativeBuffer(bytes * count));
    const noParts = new IovecTable(1);
    this.free = CLASSES.map(({ bytes, count }, size) =>
      Array.from({ length: count }, (_, i) => {
        const memory = this.memories[size].address + i * bytes;
        const head = this.slots.length * HEAD_BYTES;
        const place = firstPlace + this.slots.length;
        const { table } = host;
        const slot = table.add(new Slot(place, size, memory, head, table.nextIndex, this, noParts));
        this.slots.push(slot);
        return slot;
      }),
    );
  }

  /** Begins with a new client. @param bits of `NbdLink` */
  open(fd: number, bits: number): void {
    this.stream.open(fd);
    this.openedNs = this.host.nowNs;
    this.leaving = false;
    this.shut = false;
    this.talking = false;
    this.structured = false;
    this.contexts = 0;
    this.incoming = null;
    const overTls = (bits & OVER_TLS) !== 0;
    this.negotiation = new Negotiation(this.host.export, overTls ? 'done' : 'none');
    if (overTls) {
      this.negotiation.noZeroes = (bits & WITHOUT_ZEROES) !== 0;
      this.phase = 'options';
    } else {
      this.phase = 'flags';
      this.say(greeting());
    }
    this.stream.receive();
  }

  /** Since when it has not come to its first request, in nanoseconds of the shim's clock; null where it has. */
  get negotiatingSince(): number | null {
    const { phase } = this;
    const talks = phase === 'flags' || phase === 'options' || phase === 'skipping an option';
    return talks ? this.openedNs : null;
  }

  /** Takes no more requests, and ends when what there is has been answered. */
  leave(): void {
    this.leaving = true;
    if (this.phase !== 'requests' && this.phase !== 'payload' && this.phase !== 'skipping')
      this.shutdown();
    this.lookIfOver();
  }

  /** Ends at once; replies that aren't sent never will be. */
  cut(): void {
    this.leaving = true;
    this.shutdown();
  }

  /** Hands over what is to be sent. */
  flush(): void {
    this.announced = false;
    if (this.stream.send()) {
      const sent = this.gathered;
      this.gathered = this.underWay;
      this.underWay = sent;
    }
  }

  received(): void {
    if (this.phase === 'payload' && !this.stream.taking) this.submitIncoming();
    this.parse();
  }

  sent(): void {
    for (let request = this.underWay.shift(); request; request = this.underWay.shift()) {
      this.giveBack(request as Slot);
    }
    if (this.talking && this.stream.drained) this.answerSent();
    if (this.stream.hasOutput) this.announce();
    this.lookIfOver();
    // Slots are free again that requests have waited for.
    if (!this.shut) this.parse();
  }

  ended(): void {
    this.leaving = true;
    if (this.incoming) this.giveBack(this.incoming);
    this.incoming = null;
    this.shutdown();
    this.lookIfOver();
  }

  completed(request: BlockRequest): void {
    const slot = request as Slot;
    const { host } = this;
    if (slot.command === Cmd.BLOCK_STATUS) {
      this.remoteAnswered(slot);
      return;
    }
    const { offset, length, result, end } = slot;
    if (result === 0 && offset + length < end) {
      this.nextPart(slot);
      return;
    }
    this.inFlight--;
    host.board.end(slot.place, slot, host.nowNs);
    this.reply(slot, result === 0 ? 0 : errorToWire(result));
    this.lookIfOver();
  }

  /** Where requests that wait are given up nobody is told: the connection ends. */
  abandoned(request: BlockRequest): void {
    const slot = request as Slot;
    this.inFlight--;
    this.host.board.drop(slot.place);
    this.giveBack(slot);
    this.cut();
    this.lookIfOver();
  }

  private parse(): void {
    let more = true;
    while (more && !this.shut && !this.talking) more = this.step();
    if (this.shut) this.lookIfOver();
    else if (!this.leaving || this.phase !== 'requests') this.stream.receive();
  }

  /** @returns whether something was done, and more may be */
  private step(): boolean {
    switch (this.phase) {
      case 'flags':
        return this.takeFlags();
      case 'options':
        return this.takeOption();
      case 'skipping an option':
        if (!this.skip()) return false;
        this.phase = 'options';
        this.answer(this.skippedOption, null);
        return true;
      case 'requests':
        return !this.leaving && this.takeRequest();
      case 'skipping':
        if (!this.skip()) return false;
        this.phase = 'requests';
        return true;
      default:
        return false;
    }
  }

  private skip(): boolean {
    const { stream } = this;
    const here = Math.min(this.toSkip, stream.available);
    stream.start += here;
    this.toSkip -= here;
    return this.toSkip === 0;
  }

  private takeFlags(): boolean {
    const { stream } = this;
    if (stream.available < 4) return false;
    const flags = stream.view.getUint32(stream.start);
    stream.start += 4;
    this.phase = 'options';
    if (!this.negotiation.setFlags(flags)) this.refuse('has sent unknown flags');
    return true;
  }

  private takeOption(): boolean {
    const { stream } = this;
    const { view, start } = stream;
    if (stream.available < OPTION_HEAD_BYTES) return false;
    if (view.getBigUint64(start) !== OPTION_MAGIC) {
      this.refuse('has sent what is no option');
      return false;
    }
    const option = view.getUint32(start + 8);
    const length = view.getUint32(start + 12);
    const whole = OPTION_HEAD_BYTES + length;
    if (whole > MAX_MESSAGE_BYTES) {
      stream.start += OPTION_HEAD_BYTES;
      this.toSkip = length;
      this.skippedOption = option;
      this.phase = 'skipping an option';
      return true;
    }
    if (stream.available < whole) return false;
    const from = start + OPTION_HEAD_BYTES;
    const data = new Uint8Array(view.buffer.slice(from, from + length));
    stream.start += whole;
    this.answer(option, data);
    return true;
  }

  private answer(option: number, data: Uint8Array | null): void {
    const { negotiation } = this;
    const bytes = negotiation.answer(option, data);
    if (negotiation.next === 'requests') {
      this.structured = negotiation.structured;
      this.contexts = negotiation.contexts;
      this.phase = 'requests';
    }
    if (bytes.length > 0) this.say(bytes);
    else if (negotiation.next === 'end') this.shutdown();
  }

  private say(bytes: Uint8Array): void {
    this.talkBytes.set(bytes);
    this.talking = true;
    this.stream.push(this.talk.address, bytes.length);
    this.announce();
  }

  private answerSent(): void {
    this.talking = false;
    const { next } = this.negotiation;
    if (next === 'end' || next === 'tls') this.shutdown();
    else if (this.leaving) this.leave();
  }

  private takeRequest(): boolean {
    const { stream } = this;
    if (stream.available < REQUEST_BYTES) return false;
    const { view, start } = stream;
    if (view.getUint32(start) !== REQUEST_MAGIC) {
      this.refuse('has sent what is no request');
      return false;
    }
    const command = view.getUint16(start + AT_TYPE);
    const length = view.getUint32(start + AT_LENGTH);
    const slot = this.take(this.bytesNeeded(command, length));
    // It waits in the buffer until the reply to another one has been sent.
    if (!slot || !stream.hasRoom(2)) {
      if (slot) this.giveBack(slot);
      return false;
    }
    slot.command = command;
    slot.cookieHigh = view.getUint32(start + AT_COOKIE);
    slot.cookieLow = view.getUint32(start + AT_COOKIE + 4);
    slot.startHigh = view.getUint32(start + AT_OFFSET);
    slot.startLow = view.getUint32(start + AT_OFFSET + 4);
    slot.wanted = length;
    stream.start += REQUEST_BYTES;
    if (command === Cmd.DISC) {
      this.giveBack(slot);
      this.leaving = true;
      this.lookIfOver();
      return false;
    }
    const flags = view.getUint16(start + AT_FLAGS);
    const error = this.errorOf(slot, flags);
    if (error !== 0) this.turnDown(slot, error);
    else this.begin(slot, flags);
    return this.phase !== 'payload';
  }

  private bytesNeeded(command: number, length: number): number {
    if (command === Cmd.READ || command === Cmd.WRITE) return length;
    return command === Cmd.CACHE ? CLASSES[1].bytes : 0;
  }

  /** The number on the wire of what is wrong with a request, 0 where nothing is. */
  private errorOf(slot: Slot, flags: number): number {
    const { command, wanted } = slot;
    const { sizeBytes, readOnly, canTrim, minBlock, maxPayload } = this.host.export;
    const allowed = ALLOWED_FLAGS[command];
    if (allowed === undefined || (flags & ~allowed) !== 0) return NBD_EINVAL;
    if (command === Cmd.FLUSH) return 0;
    const writes = command === Cmd.WRITE || command === Cmd.WRITE_ZEROES || command === Cmd.TRIM;
    if (writes && readOnly) return NBD_EPERM;
    if (command === Cmd.TRIM && !canTrim) return NBD_EINVAL;
    if (command === Cmd.BLOCK_STATUS && this.contexts === 0) return NBD_EINVAL;
    const moves = command === Cmd.READ || command === Cmd.WRITE;
    if (wanted === 0 || (moves && wanted > maxPayload)) return NBD_EINVAL;
    if (((slot.startLow | wanted) & (minBlock - 1)) !== 0) return NBD_EINVAL;
    // Exact up to 2^53; what is beyond is larger than any disk in any case.
    const end = slot.startHigh * 2 ** 32 + slot.startLow + wanted;
    return end > sizeBytes ? (writes ? NBD_ENOSPC : NBD_EINVAL) : 0;
  }

  private turnDown(slot: Slot, error: number): void {
    this.host.board.counters.refused();
    const { command, wanted } = slot;
    this.reply(slot, error);
    if (command !== Cmd.WRITE || wanted === 0) return;
    this.toSkip = wanted;
    this.phase = 'skipping';
  }

  private begin(slot: Slot, flags: number): void {
    const { command, wanted } = slot;
    slot.durable = (flags & CMD_FUA) !== 0;
    slot.unmap = (flags & CMD_NO_HOLE) === 0;
    if (command === Cmd.BLOCK_STATUS) {
      slot.most = (flags & CMD_REQ_ONE) !== 0 ? 1 : MOST_EXTENTS;
      if (this.host.remote) this.askRemote(slot, this.host.remote);
      else this.replyStatus(slot);
    } else if ((flags & CMD_FAST_ZERO) !== 0 && !this.host.fastZeroes(slot.unmap)) {
      this.reply(slot, errorToWire(-EOPNOTSUPP));
    } else if (command === Cmd.WRITE && !this.stream.takeTo(slot.memory, wanted)) {
      this.incoming = slot;
      this.phase = 'payload';
    } else {
      this.submit(slot);
    }
  }

  private submitIncoming(): void {
    const slot = this.incoming as Slot;
    this.incoming = null;
    this.phase = 'requests';
    this.submit(slot);
  }

  private submit(slot: Slot): void {
    const { host } = this;
    const { command, wanted } = slot;
    const moves = command === Cmd.READ || command === Cmd.WRITE || command === Cmd.CACHE;
    slot.op =
      command === Cmd.WRITE
        ? WRITE
        : command === Cmd.FLUSH
          ? FLUSH
          : command === Cmd.TRIM
            ? DISCARD
            : command === Cmd.WRITE_ZEROES
              ? WRITE_ZEROES
              : READ;
    const start = command === Cmd.FLUSH ? 0 : slot.startHigh * 2 ** 32 + slot.startLow;
    slot.end = command === Cmd.FLUSH ? 0 : start + wanted;
    slot.offset = start;
    slot.length = Math.min(this.partBytes(slot), slot.end - start);
    slot.segments = moves ? 1 : 0;
    slot.address = slot.memory;
    slot.addressBits = 0;
    slot.lengthBits = slot.length & 0xfff;
    slot.result = 0;
    this.inFlight++;
    host.board.begin(slot.place, slot, host.nowNs);
    host.device.submit(slot);
  }

  /** What of a request goes to the disk at once. */
  private partBytes({ command, size }: Slot): number {
    if (command === Cmd.WRITE_ZEROES) return this.host.maxZeroBytes;
    return command === Cmd.CACHE ? CLASSES[size].bytes : Number.MAX_SAFE_INTEGER;
  }

  private nextPart(slot: Slot): void {
    const { host } = this;
    slot.offset += slot.length;
    slot.length = Math.min(this.partBytes(slot), slot.end - slot.offset);
    slot.address = slot.memory;
    slot.lengthBits = slot.length & 0xfff;
    host.board.goOn(slot.place, slot);
    host.device.submit(slot);
  }

  /** Gathers a reply. @param error on the wire, 0: none */
  private reply(slot: Slot, error: number): void {
    const { stream, headView: view } = this;
    const { head, command, wanted, memory } = slot;
    const chunked = this.structured && (command === Cmd.READ || command === Cmd.BLOCK_STATUS);
    const withData = command === Cmd.READ && error === 0;
    let length = SIMPLE_REPLY_BYTES;
    if (!chunked) {
      view.setUint32(head, SIMPLE_REPLY_MAGIC);
      view.setUint32(head + 4, error);
      view.setUint32(head + 8, slot.cookieHigh);
      view.setUint32(head + 12, slot.cookieLow);
    } else if (withData) {
      this.setChunk(view, head, slot, Chunk.OFFSET_DATA, wanted + 8, true);
      view.setUint32(head + CHUNK_BYTES, slot.startHigh);
      view.setUint32(head + CHUNK_BYTES + 4, slot.startLow);
      length = DATA_HEAD_BYTES;
    } else {
      this.setChunk(view, head, slot, Chunk.ERROR, ERROR_CHUNK_BYTES, true);
      view.setUint32(head + CHUNK_BYTES, error);
      view.setUint16(head + CHUNK_BYTES + 4, 0);
      length = CHUNK_BYTES + ERROR_CHUNK_BYTES;
    }
    stream.push(this.heads.address + head, length);
    if (withData) stream.push(memory, wanted);
    this.gathered.push(slot);
    this.announce();
  }

  private setChunk(
    view: DataView,
    at: number,
    slot: Slot,
    type: number,
    length: number,
    last: boolean,
  ): void {
    view.setUint32(at, STRUCTURED_REPLY_MAGIC);
    view.setUint16(at + 4, last ? CHUNK_DONE : 0);
    view.setUint16(at + 6, type);
    view.setUint32(at + 8, slot.cookieHigh);
    view.setUint32(at + 12, slot.cookieLow);
    view.setUint32(at + 16, length);
  }

  /** Extents are rare: a window over the slot's memory is made for each answer. */
  private replyStatus(slot: Slot): void {
    const { stream, contexts, host } = this;
    const { most } = slot;
    const offset = slot.startHigh * 2 ** 32 + slot.startLow;
    const end = offset + slot.wanted;
    const memory = this.memories[slot.size];
    const view = new DataView(memory.window(slot.memory - memory.address, CLASSES[0].bytes));
    let length = 0;
    for (const bit of [ALLOCATION, STRIPES]) {
      if ((contexts & bit) === 0) continue;
      const start = length;
      length += CHUNK_BYTES + 4;
      view.setUint32(start + CHUNK_BYTES, bit);
      const tell = (bytes: number, flags: number) => {
        view.setUint32(length, bytes);
        view.setUint32(length + 4, flags);
        length += EXTENT_BYTES;
      };
      if (bit === ALLOCATION) host.status.allocation(offset, end, most, tell);
      else host.status.stripes(offset, end, most, tell);
      const last = bit === STRIPES || (contexts & STRIPES) === 0;
      this.setChunk(view, start, slot, Chunk.BLOCK_STATUS, length - start - CHUNK_BYTES, last);
    }
    stream.push(slot.memory, length);
    this.gathered.push(slot);
    this.announce();
  }

  private askRemote(slot: Slot, remote: NbdDevice): void {
    slot.op = READ;
    slot.offset = slot.startHigh * 2 ** 32 + slot.startLow;
    slot.length = slot.wanted;
    slot.segments = 1;
    slot.address = slot.memory;
    slot.durable = false;
    slot.result = 0;
    this.inFlight++;
    remote.askExtents(slot);
  }

  /** Passes on what another server has told of its extents, where it is told in whole sectors. */
  private remoteAnswered(slot: Slot): void {
    this.inFlight--;
    if (slot.result === 0) {
      const memory = this.memories[slot.size];
      const count = this.trimExtents(
        slot,
        new DataView(memory.window(slot.memory - memory.address)),
      );
      const length = CHUNK_BYTES + 4;
      this.setChunk(
        this.headView,
        slot.head,
        slot,
        Chunk.BLOCK_STATUS,
        4 + count * EXTENT_BYTES,
        true,
      );
      this.headView.setUint32(slot.head + CHUNK_BYTES, ALLOCATION);
      this.stream.push(this.heads.address + slot.head, length);
      this.stream.push(slot.memory, count * EXTENT_BYTES);
      this.gathered.push(slot);
      this.announce();
    } else {
      this.reply(slot, errorToWire(slot.result));
    }
    this.lookIfOver();
  }

  /** @returns how many extents are left, which don't reach behind what was asked for */
  private trimExtents({ wanted, most, transferred }: Slot, view: DataView): number {
    const { minBlock } = this.host.export;
    let at = 0;
    for (let i = 0; i < Math.min(most, transferred); i++) {
      const length = Math.min(view.getUint32(i * EXTENT_BYTES), wanted - at);
      view.setUint32(i * EXTENT_BYTES, length);
      view.setUint32(i * EXTENT_BYTES + 4, view.getUint32(i * EXTENT_BYTES + 4) & ALL_STATES);
      at += length;
      if (length === 0 || length % minBlock !== 0) break;
      if (at === wanted) return i + 1;
      if (i + 1 === Math.min(most, transferred)) return i + 1;
    }
    // What is empty, or begins or ends within a sector, can't be told of here.
    view.setUint32(0, wanted);
    view.setUint32(4, 0);
    return 1;
  }

  /** A free slot with so much memory, null where all are in use. */
  private take(bytes: number): Slot | null {
    for (let size = 0; size < CLASSES.length; size++) {
      if (CLASSES[size].bytes < bytes && size < CLASSES.length - 1) continue;
      const slot = this.free[size].pop();
      if (slot) return slot;
    }
    return null;
  }

  private giveBack(slot: Slot): void {
    this.free[slot.size].push(slot);
  }

  private announce(): void {
    if (this.announced || !this.stream.hasOutput) return;
    this.announced = true;
    this.host.hasOutput(this);
  }

  private refuse(what: string): void {
    this.host.problem(`a client ${what}: its connection is closed`);
    this.shutdown();
  }

  private shutdown(): void {
    if (this.shut) return;
    this.shut = true;
    this.leaving = true;
    this.stream.shutdown();
  }

  /** Ends what is to end as soon as nothing is under way any more. */
  private lookIfOver(): void {
    const { stream } = this;
    if (!this.leaving || this.phase === 'over') return;
    if (!this.shut) {
      if (this.inFlight > 0 || this.incoming || this.talking || !stream.drained) return;
      this.shutdown();
    }
    if (this.inFlight > 0 || !stream.idle) return;
    this.phase = 'over';
    for (const list of [this.gathered, this.underWay]) {
      for (let request = list.shift(); request; request = list.shift())
        this.giveBack(request as Slot);
    }
    stream.close();
    this.host.released(this);
  }
}
