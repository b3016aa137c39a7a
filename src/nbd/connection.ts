/**
 * A connection to an NBD server on the main thread: several requests at a time, whose replies may come
 * in any order. What breaks the protocol's rules ends the connection; nothing of it is believed.
 */

import { errnoName } from '../../ffi/errno.ts';
import type { NbdPlace } from '../config/nbd_uri.ts';
import type { Psk } from '../crypto/tls_psk.ts';
import {
  AT_COOKIE,
  AT_FLAGS,
  AT_LENGTH,
  AT_OFFSET,
  AT_TYPE,
  CAN_MULTI_CONN,
  CHUNK_BYTES,
  CHUNK_DONE,
  CHUNK_IS_ERROR,
  Chunk,
  CMD_FUA,
  CMD_NO_HOLE,
  CMD_REQ_ONE,
  Cmd,
  type ExportFacts,
  errorFromWire,
  MAX_STRING,
  REQUEST_BYTES,
  REQUEST_MAGIC,
  SIMPLE_REPLY_BYTES,
  SIMPLE_REPLY_MAGIC,
  STATE_ZERO,
  STRUCTURED_REPLY_MAGIC,
} from '../device/nbd/protocol.ts';
import { type Channel, ChannelError, type Memory, nativeMemory } from '../remote/channel.ts';
import { Deadline } from '../remote/deadline.ts';
import { dialTcp, dialUnix } from '../remote/dial.ts';
import { HANDSHAKE_BYTES, shakeHands } from './client_handshake.ts';

/** Where to connect to, and how long to wait. */
export interface NbdOptions {
  place: NbdPlace;
  psk?: Psk;
  /** Milliseconds until hands are shaken. */
  connectMs: number;
  /** Milliseconds without progress that end an operation. */
  operationMs: number;
}

/** The server has answered that it can't do what was asked; the connection is good. */
export class NbdRefused extends Error {
  readonly code: string;

  constructor(what: string, result: number) {
    const code = errnoName(result);
    super(`${code}: ${what} fails on the server`);
    this.code = code;
  }
}

/** A part of the export, and what is there. */
export interface Extent {
  length: number;
  zero: boolean;
}

/** Requests of a connection under way; more wait. */
export const MOST_IN_FLIGHT = 32;
const HEAD_BYTES = 64;
/** A reply tells of at most so many extents; more are left out. */
const MAX_EXTENTS = 8192;
const CMD_NAMES = ['a read', 'a write', '', 'a flush', 'a trim', 'a cache', 'a zeroing', 'a look'];

interface Pending {
  type: number;
  offset: number;
  length: number;
  memory: Memory | null;
  /** Place in the memory. */
  at: number;
  got: number;
  result: number;
  extents: Extent[];
  done: PromiseWithResolvers<void>;
}

const never = new AbortController().signal;

export class NbdConnection {
  private readonly pending = new Map<number, Pending>();
  private readonly view: DataView;
  private nextCookie = 1;
  private sending: Promise<void> = Promise.resolve();
  private room: (() => void)[] = [];
  private movedMs = performance.now();
  private readonly timer: ReturnType<typeof setInterval>;
  /** Of which data comes in: its memory is in use. */
  private receiving: Pending | null = null;
  private closed = false;

  private constructor(
    readonly channel: Channel,
    private readonly options: NbdOptions,
    readonly facts: ExportFacts,
    private readonly scratch: ReturnType<typeof nativeMemory>,
  ) {
    this.view = new DataView(scratch.bytes.buffer);
    const { operationMs } = options;
    this.timer = setInterval(() => this.look(), Math.max(10, operationMs / 4));
    void this.receive();
  }

  /**
   * Connects and shakes hands.
   * @param stop gives it up
   * @throws Error where that fails; UserError where trying again can't help
   */
  static async open(options: NbdOptions, stop = never): Promise<NbdConnection> {
    const { channel, facts } = await openNbdChannel(options, stop);
    return new NbdConnection(channel, options, facts, nativeMemory(HEAD_BYTES + MAX_EXTENTS * 8));
  }

  /** Whether other connections see what was written and flushed by this one. */
  get canMultiply(): boolean {
    return (this.facts.flags & CAN_MULTI_CONN) !== 0;
  }

  /** Why the connection is of no use any more. */
  get failure(): Error | null {
    return this.channel.failure;
  }

  /** Whether as many requests are under way as there may be. */
  get isFull(): boolean {
    return this.pending.size >= MOST_IN_FLIGHT;
  }

  get inFlight(): number {
    return this.pending.size;
  }

  /** @throws ChannelError where the connection is of no use any more; NbdRefused */
  async read(offset: number, memory: Memory, length: number): Promise<void> {
    await this.inPieces(length, async (at, part) => {
      await this.request(Cmd.READ, 0, offset + at, part, memory, at);
    });
  }

  /** @throws as {@link read} */
  async write(offset: number, memory: Memory, length: number, durable = false): Promise<void> {
    await this.inPieces(length, async (at, part) => {
      await this.request(Cmd.WRITE, durable ? CMD_FUA : 0, offset + at, part, memory, at);
    });
  }

  /** Makes a range read as zeroes. @param mayUnmap whether the space may be given back */
  async zero(offset: number, length: number, mayUnmap: boolean): Promise<void> {
    await this.request(Cmd.WRITE_ZEROES, mayUnmap ? 0 : CMD_NO_HOLE, offset, length, null, 0);
  }

  async flush(): Promise<void> {
    await this.request(Cmd.FLUSH, 0, 0, 0, null, 0);
  }

  /**
   * What is where, from an offset on; it need not reach the end of what was asked for.
   * @param length below 4 GiB
   */
  async extents(offset: number, length: number, one = false): Promise<Extent[]> {
    return (await this.request(Cmd.BLOCK_STATUS, one ? CMD_REQ_ONE : 0, offset, length, null, 0))
      .extents;
  }

  close(reason = 'the connection was closed'): void {
    if (this.closed) return;
    this.closed = true;
    clearInterval(this.timer);
    this.channel.close(reason);
    this.failAll();
  }

  private async inPieces(
    length: number,
    each: (at: number, part: number) => Promise<void>,
  ): Promise<void> {
    const { maxPayload } = this.facts;
    for (let at = 0; at < length; at += maxPayload) {
      await each(at, Math.min(maxPayload, length - at));
    }
  }

  private async request(
    type: number,
    flags: number,
    offset: number,
    length: number,
    memory: Memory | null,
    at: number,
  ): Promise<Pending> {
    while (this.isFull) await new Promise<void>((resolve) => this.room.push(resolve));
    if (this.failure) throw this.failure;
    const cookie = this.nextCookie++;
    const done = Promise.withResolvers<void>();
    const pending = { type, offset, length, memory, at, got: 0, result: 0, extents: [], done };
    if (this.pending.size === 0) this.movedMs = performance.now();
    this.pending.set(cookie, pending);
    const sent = this.sending.then(() => this.send(cookie, flags, pending));
    this.sending = sent.catch(() => {});
    sent.catch((error) => this.fail(error));
    await done.promise;
    if (pending.result < 0) throw new NbdRefused(CMD_NAMES[type], pending.result);
    return pending;
  }

  private async send(cookie: number, flags: number, pending: Pending): Promise<void> {
    const { channel, scratch, view, failure } = this;
    if (failure) throw failure;
    const { type, offset, length, memory, at } = pending;
    // The second half of the head: answers come into the first one meanwhile.
    const base = HEAD_BYTES / 2;
    view.setUint32(base, REQUEST_MAGIC);
    view.setUint16(base + AT_FLAGS, flags);
    view.setUint16(base + AT_TYPE, type);
    view.setBigUint64(base + AT_COOKIE, BigInt(cookie));
    view.setBigUint64(base + AT_OFFSET, BigInt(offset));
    view.setUint32(base + AT_LENGTH, length);
    await channel.send(scratch, base, REQUEST_BYTES);
    if (type === Cmd.WRITE) await channel.send(memory as Memory, at, length);
    this.movedMs = performance.now();
  }

  private async receive(): Promise<void> {
    try {
      for (;;) await this.receiveReply();
    } catch (error) {
      this.fail(error as Error);
      this.receiving?.done.reject(error);
    } finally {
      this.scratch.free();
    }
  }

  private async receiveReply(): Promise<void> {
    const { channel, scratch, view } = this;
    await channel.receive(scratch, 0, SIMPLE_REPLY_BYTES, true);
    this.movedMs = performance.now();
    const magic = view.getUint32(0);
    if (magic === SIMPLE_REPLY_MAGIC) {
      const { cookie, pending } = this.find(AT_COOKIE);
      const error = view.getUint32(4);
      if (error !== 0) pending.result = errorFromWire(error);
      else if (pending.type === Cmd.READ) await this.receiveData(pending, 0, pending.length);
      this.finish(cookie, pending);
    } else if (magic === STRUCTURED_REPLY_MAGIC && this.facts.structured) {
      await channel.receive(scratch, SIMPLE_REPLY_BYTES, CHUNK_BYTES - SIMPLE_REPLY_BYTES);
      const { cookie, pending } = this.find(AT_COOKIE);
      const last = (view.getUint16(4) & CHUNK_DONE) !== 0;
      await this.receiveChunk(pending, view.getUint16(6), view.getUint32(16));
      if (last) this.finish(cookie, pending);
    } else {
      throw this.wrong('sends what is no reply');
    }
  }

  private find(at: number): { cookie: number; pending: Pending } {
    const cookie = Number(this.view.getBigUint64(at));
    const pending = this.pending.get(cookie);
    if (!pending) throw this.wrong('answers a request that was not made');
    return { cookie, pending };
  }

  private async receiveChunk(pending: Pending, type: number, length: number): Promise<void> {
    const { channel, scratch, view } = this;
    if ((type & CHUNK_IS_ERROR) !== 0) {
      const least = type === Chunk.ERROR_OFFSET ? 14 : 6;
      if (length < least || length > MAX_STRING + least) throw this.wrong('sends a strange error');
      await this.receiveHead(length);
      pending.result = errorFromWire(view.getUint32(0)) || -5;
    } else if (type === Chunk.NONE) {
      if (length !== 0) throw this.wrong('sends a strange reply');
    } else if (type === Chunk.OFFSET_DATA && pending.type === Cmd.READ && length > 8) {
      await channel.receive(scratch, 0, 8);
      await this.receiveData(pending, this.placeOf(pending, length - 8), length - 8);
    } else if (type === Chunk.OFFSET_HOLE && pending.type === Cmd.READ && length === 12) {
      await channel.receive(scratch, 0, 12);
      const hole = view.getUint32(8);
      const from = pending.at + this.placeOf(pending, hole);
      pending.memory?.bytes.fill(0, from, from + hole);
      pending.got += hole;
    } else if (
      type === Chunk.BLOCK_STATUS &&
      pending.type === Cmd.BLOCK_STATUS &&
      length % 8 === 4
    ) {
      await this.receiveExtents(pending, length);
    } else {
      throw this.wrong(`sends a chunk of type ${type} and ${length} bytes`);
    }
  }

  private async receiveHead(length: number): Promise<void> {
    const { channel, scratch } = this;
    // The message is for eyes that aren't here; only what is before it fits into the head.
    await channel.receive(scratch, 0, Math.min(length, 14));
    if (length > 14) await channel.receive(scratch, HEAD_BYTES, length - 14);
  }

  /** Where in the request's data a chunk belongs. */
  private placeOf({ offset, length }: Pending, count: number): number {
    const place = Number(this.view.getBigUint64(0)) - offset;
    if (place < 0 || count === 0 || place + count > length) {
      throw this.wrong('sends data that was not asked for');
    }
    return place;
  }

  private async receiveData(pending: Pending, place: number, count: number): Promise<void> {
    // Of large parts the channel itself sees whether they move.
    this.receiving = pending;
    await this.channel.receive(pending.memory as Memory, pending.at + place, count);
    // Whoever closed the connection meanwhile has left this one alone.
    if (this.failure) throw this.failure;
    this.receiving = null;
    pending.got += count;
    this.movedMs = performance.now();
  }

  private async receiveExtents(pending: Pending, length: number): Promise<void> {
    const { channel, scratch, view } = this;
    const count = (length - 4) / 8;
    await channel.receive(scratch, 0, 4);
    const wanted = view.getUint32(0) === this.facts.allocationId;
    for (let done = 0; done < count; ) {
      const part = Math.min(MAX_EXTENTS, count - done);
      await channel.receive(scratch, HEAD_BYTES, part * 8);
      for (let i = 0; wanted && done === 0 && i < part; i++) {
        const extent = view.getUint32(HEAD_BYTES + i * 8);
        if (extent === 0) throw this.wrong('tells of an empty extent');
        const zero = (view.getUint32(HEAD_BYTES + i * 8 + 4) & STATE_ZERO) !== 0;
        pending.extents.push({ length: extent, zero });
      }
      done += part;
    }
  }

  private finish(cookie: number, pending: Pending): void {
    const { type, got, length, result, extents } = pending;
    if (result === 0 && type === Cmd.READ && got !== length) {
      throw this.wrong(`answers a read of ${length} bytes with ${got}`);
    }
    if (result === 0 && type === Cmd.BLOCK_STATUS && extents.length === 0) {
      throw this.wrong('answers a question for extents with none');
    }
    this.pending.delete(cookie);
    pending.done.resolve();
    this.room.shift()?.();
  }

  /** The server doesn't keep to the protocol. */
  private wrong(what: string): ChannelError {
    return new ChannelError(`${this.options.place.uri} ${what}: that is against the protocol`);
  }

  private look(): void {
    const { operationMs } = this.options;
    if (this.pending.size === 0 || this.receiving) return;
    if (performance.now() - this.movedMs < operationMs) return;
    this.fail(new ChannelError(`nothing was heard of the server for ${operationMs / 1000} s`));
  }

  private fail(error: Error): void {
    this.close(error.message);
  }

  private failAll(): void {
    const error = this.failure ?? new ChannelError('the connection was closed');
    for (const pending of this.pending.values()) {
      if (pending !== this.receiving) pending.done.reject(error);
    }
    this.pending.clear();
    for (const wake of this.room.splice(0)) wake();
  }
}

/**
 * Connects and shakes hands; what comes next on the channel are requests.
 * @throws Error where that fails; UserError where trying again can't help
 */
export async function openNbdChannel(
  { place, psk, connectMs, operationMs }: NbdOptions,
  stop = never,
): Promise<{ channel: Channel; facts: ExportFacts }> {
  const { uri: name, socket, host = '', port = 0, exportName } = place;
  const scratch = nativeMemory(HANDSHAKE_BYTES);
  const deadline = new Deadline(
    connectMs,
    `${name} has not answered in ${connectMs / 1000} s`,
    stop,
  );
  let channel: Channel | null = null;
  try {
    const options = { role: 'client' as const, idleMs: operationMs };
    const dialled = socket
      ? dialUnix(socket, options, deadline.over)
      : dialTcp({ host, port }, options, deadline.over);
    channel = await deadline.before(dialled);
    const handshake = { name, exportName, ...(psk && { psk }) };
    const facts = await deadline.before(shakeHands(channel, scratch, handshake));
    return { channel, facts };
  } catch (error) {
    channel?.close();
    throw error;
  } finally {
    deadline.clear();
    // A handshake that is given up has let go of it: its channel is closed.
    scratch.free();
  }
}
