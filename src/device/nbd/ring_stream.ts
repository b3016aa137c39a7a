/**
 * A stream socket on a queue's ring, for either side of NBD. What comes goes into a buffer, or straight
 * to where it belongs; what is to be sent is gathered and handed over with one call. Nothing is
 * allocated after the start.
 */
import { EAGAIN, EINTR } from '../../../ffi/errno.ts';
import { shim } from '../../../ffi/library.ts';
import { high32, low32, NativeBuffer } from '../../../ffi/memory.ts';
import { IovecTable, type Ring, type RingHandler } from '../../../ffi/ring.ts';

/** Who has a stream. */
export interface StreamOwner {
  /** Something has come, or what was to go straight to its place is there. */
  received(): void;
  /** All of what was handed over at once is sent. */
  sent(): void;
  /**
   * The stream has ended or broken; told for each direction in which something was under way, so that
   * the last time nothing is any more.
   */
  ended(): void;
}

/** Large enough for dozens of small writes, small enough that most of a large one isn't copied. */
const BUFFER_BYTES = 64 * 1024;
/** The longest message that needs to be in the buffer as a whole. */
export const MAX_MESSAGE_BYTES = BUFFER_BYTES / 2;
/** UIO_MAXIOV */
const MAX_PARTS = 1024;
const RECEIVE = 0;
const SEND = 1;
/** struct msghdr: the places of msg_iov and msg_iovlen, in 32-bit words. */
const MESSAGE_BYTES = 56;
const MESSAGE_IOV = 4;
const MESSAGE_IOV_COUNT = 6;

/** Parts that are sent together. */
class Batch {
  readonly parts = new IovecTable(MAX_PARTS);
  count = 0;
  bytes = 0;

  clear(): void {
    this.count = 0;
    this.bytes = 0;
  }
}

export class RingStream implements RingHandler {
  /** What has come and was not taken yet is from `start` to `end` of the buffer. */
  start = 0;
  end = 0;
  readonly view: DataView;
  private readonly buffer = new NativeBuffer(BUFFER_BYTES);
  private readonly message = new NativeBuffer(MESSAGE_BYTES);
  private readonly messageWords: Uint32Array;
  private readonly handler: number;
  private fd = -1;
  private isEnded = false;
  private receiving = false;
  /** What is being received goes straight to its place, not into the buffer. */
  private straight = false;
  private sending = false;
  /** Where bytes go straight to, and how many are missing; 0: into the buffer. */
  private directAddress = 0;
  private directLeft = 0;
  private filling = new Batch();
  private underWay = new Batch();
  /** Parts of the batch under way that are sent. */
  private sentParts = 0;

  constructor(
    private readonly ring: Ring,
    private readonly owner: StreamOwner,
  ) {
    this.handler = ring.addHandler(this);
    this.view = new DataView(this.buffer.window());
    this.messageWords = new Uint32Array(this.message.window(0, MESSAGE_BYTES));
  }

  /** Begins with a socket that blocks. */
  open(fd: number): void {
    this.fd = fd;
    this.isEnded = false;
    this.start = 0;
    this.end = 0;
    this.directLeft = 0;
    this.filling.clear();
    this.underWay.clear();
    this.sentParts = 0;
  }

  get available(): number {
    return this.end - this.start;
  }

  /** Whether the kernel has nothing of the stream in its hands. */
  get idle(): boolean {
    return !this.receiving && !this.sending;
  }

  /** Whether all that was handed over has been sent. */
  get drained(): boolean {
    return !this.sending && this.filling.count === 0;
  }

  /** Whether something waits to be handed to the kernel. */
  get hasOutput(): boolean {
    return !this.sending && this.filling.count > 0;
  }

  /** Whether so many more parts can be gathered now. */
  hasRoom(parts: number): boolean {
    return this.filling.count + parts <= MAX_PARTS;
  }

  /** The address of what comes next in the buffer. */
  get address(): number {
    return this.buffer.address + this.start;
  }

  /** Receives into the buffer; nothing where a receive is under way or the buffer is full. */
  receive(): void {
    if (this.receiving || this.isEnded) return;
    this.straight = this.directLeft > 0;
    if (this.straight) {
      this.receiving = true;
      this.ring.receive(this.fd, this.directAddress, this.directLeft, true, this.handler, RECEIVE);
      return;
    }
    this.compact();
    if (this.end === BUFFER_BYTES) return;
    this.receiving = true;
    const at = this.buffer.address + this.end;
    this.ring.receive(this.fd, at, BUFFER_BYTES - this.end, false, this.handler, RECEIVE);
  }

  /**
   * Takes data to a place in memory: what of it is in the buffer at once, the rest as it comes.
   * @returns whether all of it is there; else `received` tells
   */
  takeTo(address: number, length: number): boolean {
    const here = Math.min(this.available, length);
    if (here > 0) shim.ubiblk_memory_copy(address, this.address, here);
    this.start += here;
    this.directAddress = address + here;
    this.directLeft = length - here;
    return this.directLeft === 0;
  }

  /** Whether data is still on its way to where `takeTo` said. */
  get taking(): boolean {
    return this.directLeft > 0;
  }

  /** Gathers a part to be sent; its memory stays as it is until `sent`. */
  push(address: number, length: number): void {
    const { filling } = this;
    filling.parts.set(filling.count++, address, length);
    filling.bytes += length;
  }

  /** Hands over what was gathered, unless a batch is under way. @returns whether it did */
  send(): boolean {
    if (this.sending || this.filling.count === 0) return false;
    const batch = this.filling;
    this.filling = this.underWay;
    this.underWay = batch;
    this.sentParts = 0;
    this.sendRest();
    return true;
  }

  /** Has the peer, and whoever waits in the kernel, told that it is over. */
  shutdown(): void {
    shim.ubiblk_socket_shutdown(this.fd);
  }

  /** Closes the socket; the kernel may have nothing of it in its hands. */
  close(): void {
    shim.ubiblk_close(this.fd);
    this.fd = -1;
  }

  ringCompleted(index: number, result: number): void {
    if (index === RECEIVE) this.wasReceived(result);
    else this.wasSent(result);
  }

  private compact(): void {
    if (this.start === this.end) {
      this.start = 0;
      this.end = 0;
    } else if (this.start >= this.available) {
      // Where it would overlap there is room left behind it, or a whole message in it.
      shim.ubiblk_memory_copy(this.buffer.address, this.address, this.available);
      this.end -= this.start;
      this.start = 0;
    }
  }

  private wasReceived(result: number): void {
    this.receiving = false;
    if (this.isEnded) {
      // Sending has failed meanwhile: nobody waits for what has come, but for this being over.
      this.finish();
    } else if (result === -EINTR || result === -EAGAIN) {
      this.receive();
    } else if (result <= 0) {
      this.finish();
    } else if (this.straight) {
      this.directAddress += result;
      this.directLeft -= result;
      this.cameDirectly();
    } else {
      this.end += result;
      // A place may have been told while this was on its way into the buffer.
      if (this.directLeft > 0) this.takeTo(this.directAddress, this.directLeft);
      this.cameDirectly();
    }
  }

  private cameDirectly(): void {
    if (this.directLeft > 0) this.receive();
    else this.owner.received();
  }

  private wasSent(result: number): void {
    const batch = this.underWay;
    this.sending = false;
    if (result < 0 && result !== -EINTR && result !== -EAGAIN) {
      batch.clear();
      this.finish();
      this.owner.sent();
      return;
    }
    if (result > 0) {
      batch.bytes -= result;
      if (batch.bytes > 0) this.skipSent(result);
    }
    if (batch.bytes > 0) {
      this.sendRest();
      return;
    }
    batch.clear();
    this.owner.sent();
  }

  private skipSent(count: number): void {
    const { parts } = this.underWay;
    let left = count;
    while (left >= parts.length(this.sentParts)) left -= parts.length(this.sentParts++);
    const at = this.sentParts;
    parts.set(at, parts.address(at) + left, parts.length(at) - left);
  }

  private sendRest(): void {
    const words = this.messageWords;
    const { parts, count } = this.underWay;
    const iov = parts.addressOf(this.sentParts);
    words[MESSAGE_IOV] = low32(iov);
    words[MESSAGE_IOV + 1] = high32(iov);
    words[MESSAGE_IOV_COUNT] = count - this.sentParts;
    this.sending = true;
    this.ring.send(this.fd, this.message.address, this.handler, SEND);
  }

  private finish(): void {
    this.isEnded = true;
    this.owner.ended();
  }
}
