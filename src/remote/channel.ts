/**
 * Bytes to and from a peer over TCP, in the clear or over TLS: what is asked for arrives as a whole or
 * not at all. Data goes straight to and from native memory. One receive and one send at a time.
 */
import type { Socket } from 'bun';
import { openLibrary, shim } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import { type Psk, TLS_SEND_BYTES, TlsError, TlsSession } from '../crypto/tls_psk.ts';
import { receive, sendFile } from './socket_threads.ts';

/** The connection is of no use any more. */
export class ChannelError extends Error {
  override name = 'ChannelError';
}

/** Memory that bytes come from or go to. */
export interface Memory {
  readonly address: number;
  readonly bytes: Uint8Array;
}

export interface ChannelOptions {
  role: 'client' | 'server';
  /** Without it bytes go in the clear. */
  psk?: Psk;
  /** Milliseconds that a receive or send may be without progress. */
  idleMs: number;
}

interface Sink extends Memory {
  from: number;
  /** When so much is there, the rest isn't waited for. */
  enough: number;
  end: number;
  done: PromiseWithResolvers<void>;
}

const NOTHING = new Uint8Array(0);
/** What is so long and still to come goes straight to where it belongs, past Bun. */
export const DIRECT_BYTES = 128 * 1024;

export class Channel {
  private tls: TlsSession | null;
  private opened = Promise.withResolvers<void>();
  private sink: Sink | null = null;
  private drained: PromiseWithResolvers<void> | null = null;
  /** What came before it was asked for. */
  private early: Uint8Array[] = [];
  private paused = false;
  /** A thread receives for the sink, or is about to. */
  private direct = false;
  /** What the socket has not taken yet. */
  private unsent: Uint8Array = NOTHING;
  private error: Error | null = null;
  private peerEnded = false;
  /** Somebody else has the socket. */
  private detached = false;
  private timer: ReturnType<typeof setTimeout> | null = null;
  private progress = 0;

  /** @param socket connected; its events are to be told to `received`, `writable`, `receivedEnd`, `closed` */
  constructor(
    private readonly socket: Socket<Channel>,
    private readonly options: ChannelOptions,
  ) {
    const { psk, role } = options;
    this.tls = psk ? new TlsSession(role, psk) : null;
    this.opened.promise.catch(() => {});
    if (!this.tls) this.opened.resolve();
    else this.attempt(() => this.stepTls(NOTHING));
    if (this.tls) this.watch();
  }

  /**
   * Goes on over TLS, after both sides have agreed to in the clear. Nothing may be under way.
   * @throws ChannelError
   */
  async secure(psk: Psk): Promise<void> {
    if (this.error) throw this.error;
    if (this.early.length > 0 && this.options.role === 'client') {
      this.fail(
        'the peer has sent something in the clear that belongs behind the handshake of TLS',
      );
    }
    if (this.error) throw this.error;
    this.tls = new TlsSession(this.options.role, psk);
    this.opened = Promise.withResolvers<void>();
    this.opened.promise.catch(() => {});
    this.attempt(() => this.stepTls(NOTHING));
    this.watch();
    this.attempt(() => this.drink());
    await this.opened.promise;
  }

  /** Resolves when bytes can be sent and received. @throws ChannelError */
  async open(): Promise<void> {
    await this.opened.promise;
  }

  /** Why the channel is of no use any more. */
  get failure(): Error | null {
    return this.error;
  }

  /**
   * Receives exactly so many bytes.
   * @param from the place in the memory
   * @param memory that stays until this is done; when the channel fails, that may take a moment
   * @param patient waits as long as the connection lives
   * @throws ChannelError
   */
  async receive(memory: Memory, from: number, length: number, patient = false): Promise<void> {
    await this.receiveInto(memory, from, length, length, patient);
  }

  /**
   * Receives what comes, at least a byte and `length` at most; waits as long as the connection lives.
   * @returns how many bytes
   * @throws ChannelError
   */
  async receiveSome(memory: Memory, length: number): Promise<number> {
    return await this.receiveInto(memory, 0, length, 1, true);
  }

  private async receiveInto(
    { address, bytes }: Memory,
    from: number,
    length: number,
    least: number,
    patient: boolean,
  ): Promise<number> {
    if (this.error) throw this.error;
    if (length === 0) return 0;
    const done = Promise.withResolvers<void>();
    const sink = { address, bytes, from, enough: from + least, end: from + length, done };
    this.sink = sink;
    this.attempt(() => this.drink());
    if (this.sink && !patient) this.watch();
    if (this.sink && this.peerEnded) this.fail('the peer has closed the connection');
    await done.promise;
    return sink.from - from;
  }

  /** Whether the peer has sent something, or ended, that was not asked for yet. */
  get hasInput(): boolean {
    return this.early.length > 0 || this.peerEnded || this.error !== null;
  }

  /** Sends bytes; resolves when the socket has taken all of them. @throws ChannelError */
  async send(memory: Memory, from: number, length: number): Promise<void> {
    let at = from;
    const end = from + length;
    while (at < end) {
      if (this.error) throw this.error;
      if (this.unsent.length > 0) await this.awaitDrain();
      else at += this.sendSome(memory, at, end - at);
    }
    while (this.unsent.length > 0) await this.awaitDrain();
    if (this.error) throw this.error;
  }

  /**
   * Sends bytes of a file, where that goes without a copy and without waiting for the peer.
   * @returns how many; the rest is for `send`, which waits, and finds out what is wrong
   */
  async sendFile(file: number, offset: number, length: number): Promise<number> {
    if (this.tls || this.error || this.unsent.length > 0) return 0;
    // Not in Bun's types; -1 when it is closed.
    const { fd = -1 } = this.socket as unknown as { fd?: number };
    const count = await sendFile(fd, file, offset, length);
    if (count > 0) this.progress++;
    return count;
  }

  /**
   * Gives the connection away, which goes in the clear: nothing more is received or sent here.
   * @returns another descriptor of its socket, which blocks
   * @throws ChannelError where there is none, or the peer has sent something already
   */
  detach(): number {
    if (this.hasInput) this.fail('the peer has sent what nobody asked for');
    if (this.error) throw this.error;
    this.socket.pause();
    this.detached = true;
    // Not in Bun's types; -1 when it is closed.
    const { fd = -1 } = this.socket as unknown as { fd?: number };
    const copy = shim.ubiblk_dup(fd);
    if (copy < 0) throw new ChannelError("no descriptor is left; raise 'ulimit -n'");
    shim.ubiblk_set_blocking(copy, 1);
    return copy;
  }

  /** Ends the connection; whoever waits gets an error. */
  close(reason = 'the connection was closed'): void {
    if (!this.error && this.tls?.established && this.unsent.length === 0) {
      this.tls.end();
      this.socket.write(this.tls.toSend);
    }
    this.fail(reason);
  }

  // What happens to the socket.

  received(bytes: Uint8Array): void {
    if (this.error || this.detached) return;
    this.progress++;
    this.early.push(bytes);
    this.attempt(() => this.drink());
  }

  writable(): void {
    if (this.error) return;
    this.progress++;
    if (this.unsent.length > 0) this.unsent = this.unsent.subarray(this.write(this.unsent));
    if (this.unsent.length === 0) this.drained?.resolve();
  }

  /** The peer sends nothing more. */
  receivedEnd(): void {
    if (this.detached) return;
    this.peerEnded = true;
    if (this.sink || !this.isOpen) this.fail('the peer has closed the connection');
  }

  closed(error?: Error): void {
    if (this.detached) return;
    this.peerEnded = true;
    this.fail(
      error ? `the connection broke: ${error.message}` : 'the peer has closed the connection',
    );
  }

  private get isOpen(): boolean {
    return !this.tls || this.tls.established;
  }

  /** Uses what has come, as far as it is wanted. */
  private drink(): void {
    while (!this.error && (this.sink || !this.isOpen)) {
      const chunk = this.early[0];
      if (!chunk && !this.tls) break;
      const rest = this.tls ? this.stepTls(chunk ?? NOTHING) : this.copyPlain(chunk);
      if (!chunk) break;
      if (rest.length > 0) this.early[0] = rest;
      else this.early.shift();
      if (rest.length === chunk.length && this.tls?.read === 0) break;
    }
    this.goDirect();
    this.regulate();
  }

  /** Bun reads as long as what comes is wanted, and nobody else reads. */
  private regulate(): void {
    const pause = this.early.length > 0 || this.direct;
    if (pause === this.paused) return;
    this.paused = pause;
    if (pause) this.socket.pause();
    else this.socket.resume();
  }

  private goDirect(): void {
    const { sink } = this;
    if (!sink || this.tls || this.direct || this.early.length > 0 || !isLong(sink)) return;
    this.direct = true;
    // Bun reads on after a large part, also when it was to pause.
    setImmediate(() => this.receiveDirect(sink));
  }

  private async receiveDirect(sink: Sink): Promise<void> {
    // Not in Bun's types; -1 when it is closed.
    const { fd = -1 } = this.socket as unknown as { fd?: number };
    let count = 1;
    while (count > 0 && !this.error && this.sink === sink && isLong(sink)) {
      const to = { address: sink.address + sink.from, length: sink.end - sink.from };
      count = await receive(fd, to);
      this.took(count);
    }
    this.direct = false;
    if (this.error) this.dropSink(this.error);
    this.regulate();
  }

  private dropSink(error: Error): void {
    // A thread may still write there: it tells when it doesn't.
    if (this.direct) return;
    this.sink?.done.reject(error);
    this.sink = null;
  }

  private copyPlain(chunk: Uint8Array): Uint8Array {
    const sink = this.sink as Sink;
    const count = Math.min(chunk.length, sink.end - sink.from);
    sink.bytes.set(chunk.subarray(0, count), sink.from);
    this.took(count);
    return chunk.subarray(count);
  }

  /** @returns what of the input could not be used yet */
  private stepTls(chunk: Uint8Array): Uint8Array {
    const tls = this.tls as TlsSession;
    const { sink } = this;
    const was = tls.established;
    try {
      if (sink) tls.step(chunk, 0, 0, sink.address + sink.from, sink.end - sink.from);
      else tls.step(chunk, 0, 0, 0, 0);
    } finally {
      if (tls.toSend.length > 0) this.queue(tls.toSend);
    }
    if (this.error) return NOTHING;
    if (!was && tls.established) {
      this.unwatch();
      this.opened.resolve();
    }
    if (sink) this.took(tls.read);
    if (tls.ended) this.receivedEnd();
    return chunk.subarray(tls.taken);
  }

  private took(count: number): void {
    const sink = this.sink as Sink;
    sink.from += count;
    if (count > 0) this.progress++;
    if (sink.from < sink.enough) return;
    this.sink = null;
    this.unwatch();
    sink.done.resolve();
  }

  /** @returns how many bytes were taken, in the clear or as records */
  private sendSome(memory: Memory, at: number, length: number): number {
    const { tls } = this;
    if (!tls) {
      const part = memory.bytes.subarray(at, at + length);
      const count = this.write(part);
      // The socket is full: the rest waits here, still in the caller's memory.
      this.unsent = part.subarray(count);
      return length;
    }
    const count = Math.min(length, TLS_SEND_BYTES);
    this.attempt(() => tls.step(NOTHING, memory.address + at, count, 0, 0));
    if (this.error) throw this.error;
    this.queue(tls.toSend);
    return tls.written;
  }

  private queue(bytes: Uint8Array): void {
    const count = this.unsent.length === 0 ? this.write(bytes) : 0;
    if (this.error) return;
    // The session's buffer is used again: what is left is copied.
    if (count < bytes.length) this.unsent = joined(this.unsent, bytes.subarray(count));
  }

  /** A write may find that the peer is gone, and then the channel has failed and its session is closed. */
  private write(bytes: Uint8Array): number {
    const count = this.socket.write(bytes);
    if (count < 0) this.closed();
    return Math.max(count, 0);
  }

  private async awaitDrain(): Promise<void> {
    if (this.error) throw this.error;
    this.drained = Promise.withResolvers<void>();
    this.watch();
    await this.drained.promise;
    this.drained = null;
    this.unwatch();
  }

  private attempt(action: () => void): void {
    try {
      action();
    } catch (error) {
      if (!(error instanceof TlsError)) throw error;
      this.fail(error.message);
    }
  }

  private fail(reason: string): void {
    if (this.error) return;
    const error = new ChannelError(reason);
    this.error = error;
    clearInterval(this.timer ?? undefined);
    this.timer = null;
    this.early = [];
    // It may be in memory that whoever sends it gives back now.
    this.unsent = NOTHING;
    this.opened.reject(error);
    this.dropSink(error);
    this.drained?.reject(error);
    this.socket.end();
    this.tls?.close();
  }

  /** Ends the channel when nothing moves for too long. */
  private watch(): void {
    if (this.timer) return;
    const { idleMs } = this.options;
    let seen = this.progress;
    this.timer = setInterval(() => {
      if (this.progress === seen) this.fail(`nothing was heard of the peer for ${idleMs / 1000} s`);
      seen = this.progress;
    }, idleMs);
  }

  private unwatch(): void {
    if (!this.timer || this.sink || this.drained) return;
    clearInterval(this.timer);
    this.timer = null;
  }
}

/** Whether it is worth to be received by a thread. */
function isLong({ from, enough, end }: Sink): boolean {
  return enough === end && end - from >= DIRECT_BYTES;
}

function joined(a: Uint8Array, b: Uint8Array): Uint8Array {
  const both = new Uint8Array(a.length + b.length);
  both.set(a);
  both.set(b, a.length);
  return both;
}

/** Page-aligned native memory with a window over it, for `Memory`. */
export function nativeMemory(length: number): Memory & { free(): void } {
  openLibrary();
  const buffer = new NativeBuffer(length);
  const bytes = new Uint8Array(buffer.window());
  return { address: buffer.address, bytes, free: () => buffer.free() };
}
