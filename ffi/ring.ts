/**
 * An io_uring whose submission and completion queues are written and read from TypeScript; only
 * set-up and io_uring_enter are calls into the shim. See io_uring(7).
 *
 * A ring belongs to the one thread that made it. Entries prepared are handed to the kernel by
 * `enter`; completions go to the handler named when the entry was prepared.
 */
import type { Pointer } from 'bun:ffi';
import { UserError } from '../src/errors.ts';
import { EAGAIN, EBUSY, EINTR, EINVAL, ENOMEM, ETIME, failed } from './errno.ts';
import { shim } from './library.ts';
import { high32, low32, NativeBuffer, windowOver } from './memory.ts';

/** include/uapi/linux/io_uring.h */
export const OP_READV = 1;
export const OP_WRITEV = 2;
export const OP_FSYNC = 3;
const OP_READ_FIXED = 4;
const OP_WRITE_FIXED = 5;
export const OP_POLL_ADD = 6;
export const OP_POLL_REMOVE = 7;
const OP_SENDMSG = 9;
export const OP_FALLOCATE = 17;
export const OP_READ = 22;
export const OP_WRITE = 23;
const OP_RECV = 27;
const OP_URING_CMD = 46;
/** include/linux/socket.h */
const MSG_WAITALL = 0x100;
const MSG_NOSIGNAL = 0x4000;

const FIXED_FILE = 1;
/** Or-ed to the op of a transfer: a worker thread of the kernel does it (IOSQE_ASYNC). */
export const BY_WORKER = (1 << 4) << 8;
const POLL_ADD_MULTI = 1;
const POLLIN = 1;
const FSYNC_DATASYNC = 1;
/** CQE flag: a multishot request stays armed. */
const CQE_MORE = 2;

const SETUP_COOP_TASKRUN = 1 << 8;
const SETUP_TASKRUN_FLAG = 1 << 9;
const SETUP_SINGLE_ISSUER = 1 << 12;
const SETUP_DEFER_TASKRUN = 1 << 13;
const FEAT_NODROP = 1 << 1;
const FEAT_SUBMIT_STABLE = 1 << 2;
const FEAT_MIN_TIMEOUT = 1 << 15;
const FEAT_EXT_ARG = 1 << 8;

const SQ_CQ_OVERFLOW = 1 << 1;
const SQ_TASKRUN = 1 << 2;

const SQE_WORDS = 16;
const CQE_WORDS = 4;
const LAYOUT_FIELDS = 12;

/** Set-ups from the best to the one that every kernel from 5.15 on has, with their names. */
export const RING_SETUPS = [
  { name: 'defer', flags: SETUP_SINGLE_ISSUER | SETUP_DEFER_TASKRUN | SETUP_TASKRUN_FLAG },
  { name: 'coop', flags: SETUP_COOP_TASKRUN | SETUP_TASKRUN_FLAG },
  { name: 'plain', flags: 0 },
] as const;

export type RingSetup = (typeof RING_SETUPS)[number]['name'];

/** Takes the completions of the entries that were prepared for it. */
export interface RingHandler {
  /**
   * @param index what the entry was prepared with
   * @param result of the operation: >= 0 or -errno
   * @param more true while a multishot entry stays armed
   */
  ringCompleted(index: number, result: number, more: boolean): void;
}

/** What `ubiblk_ring_spin` saw. */
export const SPIN_AVAIL = 1;
export const SPIN_RING = 2;
export const SPIN_CROWDED = 4;

/** Thrown by `Ring` where the kernel or its administrator forbids io_uring. */
export class RingForbidden extends Error {}

export class Ring {
  readonly parallel = true;
  /** Which of RING_SETUPS the kernel took. */
  readonly setup: RingSetup;
  readonly sqEntries: number;
  readonly cqEntries: number;
  /** The kernel can wait for some completions and then make do with fewer (6.12). */
  private readonly canGather: boolean;
  private readonly handle: number;
  private readonly sqHead: Uint32Array;
  private readonly sqTail: Uint32Array;
  private readonly sqFlags: Uint32Array;
  private readonly cqHead: Uint32Array;
  private readonly cqTail: Uint32Array;
  private readonly sqes: Uint32Array;
  private readonly cqes: Int32Array;
  private readonly sqMask: number;
  private readonly cqMask: number;
  private readonly handlers: RingHandler[] = [];
  /** Tail of the submission queue as written here; the kernel's is behind by `pending`. */
  private tail = 0;
  private head = 0;
  private pending = 0;
  /** How often completions were reaped: requests between two of them are one batch. */
  batch = 0;

  /**
   * @param entries entries of the submission queue; rounded up to a power of two by the kernel
   * @param inFlight completions that can be outstanding at once
   * @param best the first of RING_SETUPS to try
   * @throws RingForbidden where io_uring is disabled; UserError where it may not lock memory
   */
  constructor(entries: number, inFlight: number, best: RingSetup = 'defer') {
    const layout = new BigUint64Array(LAYOUT_FIELDS);
    let result = -EINVAL;
    let setup: RingSetup = 'plain';
    for (const option of RING_SETUPS.slice(RING_SETUPS.findIndex((s) => s.name === best))) {
      setup = option.name;
      result = shim.ubiblk_ring_create(entries, inFlight, option.flags, layout);
      if (result !== -EINVAL) break;
    }
    if (result === -ENOMEM) {
      throw new UserError(
        'io_uring found no memory that may be locked (ENOMEM); raise the memlock limit (ulimit -l, ' +
          'LimitMEMLOCK=)',
      );
    }
    if (result < 0) throw new RingForbidden(failed('io_uring_setup', result).message);
    const at = (field: number) => Number(layout[field]);
    const features = at(10);
    const needed = FEAT_NODROP | FEAT_SUBMIT_STABLE | FEAT_EXT_ARG;
    if ((features & needed) !== needed) {
      throw new RingForbidden('its io_uring is older than that of Linux 5.15');
    }
    this.canGather = (features & FEAT_MIN_TIMEOUT) !== 0;
    const word = (field: number) => new Uint32Array(windowOver(at(field), 4));
    this.setup = setup;
    this.handle = at(0);
    this.sqHead = word(1);
    this.sqTail = word(2);
    this.sqFlags = word(3);
    this.cqHead = word(5);
    this.cqTail = word(6);
    this.sqEntries = at(8);
    this.cqEntries = at(9);
    this.sqMask = this.sqEntries - 1;
    this.cqMask = this.cqEntries - 1;
    this.sqes = new Uint32Array(windowOver(at(4), this.sqEntries * SQE_WORDS * 4));
    this.cqes = new Int32Array(windowOver(at(7), this.cqEntries * CQE_WORDS * 4));
  }

  /** Gives a handler the number that entries are prepared with. */
  addHandler(handler: RingHandler): number {
    return this.handlers.push(handler) - 1;
  }

  /**
   * Registers descriptors; entries then name them by their place here.
   * @throws Error
   */
  registerFiles(fds: readonly number[]): void {
    const result = shim.ubiblk_ring_register_files(this.handle, Int32Array.from(fds), fds.length);
    if (result < 0) throw failed('io_uring_register', result);
  }

  /** Puts other files, or none (-1), in the place of registered ones from `first` on. */
  updateFiles(first: number, fds: readonly number[]): void {
    shim.ubiblk_ring_update_files(this.handle, first, Int32Array.from(fds), fds.length);
  }

  /**
   * Registers parts of memory of at most 1 GiB: transfers that name one needn't pin its pages.
   * @returns false where the kernel or the memlock limit has no room for them
   */
  registerMemory(parts: readonly { address: number; length: number }[]): boolean {
    const iovecs = new IovecTable(parts.length);
    parts.forEach((part, i) => {
      iovecs.set(i, part.address, part.length);
    });
    const at = iovecs.addressOf(0);
    const result = shim.ubiblk_ring_register_buffers(this.handle, at as Pointer, parts.length);
    iovecs.free();
    return result >= 0;
  }

  /**
   * Makes places for buffers, which a driver fills with the memory of its requests.
   * @throws Error
   */
  registerPlaces(count: number): void {
    const result = shim.ubiblk_ring_register_places(this.handle, count);
    if (result < 0) throw failed('io_uring_register', result);
  }

  /** Ends the registration; waits for transfers that use it. */
  unregisterMemory(): void {
    shim.ubiblk_ring_unregister_buffers(this.handle);
  }

  /**
   * Prepares a transfer on a registered file.
   * @param op OP_READ, OP_WRITE (address, bytes) or OP_READV, OP_WRITEV (iovec, count)
   * @param offset bytes into the file
   * @param rwFlags RWF_* of preadv2(2)
   * @param buffer for OP_READ and OP_WRITE: the registered part of memory that holds the data, or -1
   */
  transfer(
    op: number,
    file: number,
    address: number,
    length: number,
    offset: number,
    rwFlags: number,
    handler: number,
    index: number,
    buffer: number,
  ): void {
    const i = this.next();
    const sqes = this.sqes;
    const fixed = buffer < 0 ? op : op === OP_READ ? OP_READ_FIXED : OP_WRITE_FIXED;
    sqes[i] = fixed | (FIXED_FILE << 8);
    sqes[i + 1] = file;
    sqes[i + 2] = low32(offset);
    sqes[i + 3] = high32(offset);
    sqes[i + 4] = low32(address);
    sqes[i + 5] = high32(address);
    sqes[i + 6] = length;
    sqes[i + 7] = rwFlags;
    sqes[i + 8] = index;
    sqes[i + 9] = handler;
    sqes[i + 10] = buffer < 0 ? 0 : buffer;
    // What a ublk command had there would be taken for attributes of the transfer.
    sqes[i + 12] = 0;
    sqes[i + 13] = 0;
    sqes[i + 14] = 0;
    sqes[i + 15] = 0;
  }

  /** Prepares an fdatasync of a registered file. */
  fdatasync(file: number, handler: number, index: number): void {
    const i = this.clear(this.next());
    const sqes = this.sqes;
    sqes[i] = OP_FSYNC | (FIXED_FILE << 8);
    sqes[i + 1] = file;
    sqes[i + 7] = FSYNC_DATASYNC;
    sqes[i + 8] = index;
    sqes[i + 9] = handler;
  }

  /** Prepares a fallocate(2) of a registered file. */
  fallocate(
    file: number,
    mode: number,
    offset: number,
    length: number,
    handler: number,
    index: number,
  ): void {
    const i = this.clear(this.next());
    const sqes = this.sqes;
    sqes[i] = OP_FALLOCATE | (FIXED_FILE << 8);
    sqes[i + 1] = file;
    sqes[i + 2] = low32(offset);
    sqes[i + 3] = high32(offset);
    sqes[i + 4] = low32(length);
    sqes[i + 5] = high32(length);
    sqes[i + 6] = mode;
    sqes[i + 8] = index;
    sqes[i + 9] = handler;
  }

  /**
   * Prepares a command to a ublk character device, with a struct ublksrv_io_cmd.
   * @param command UBLK_U_IO_*
   * @param file the device's number among the registered files
   * @param result of the request that the command completes
   * @param address of the request's memory, 0 where the kernel needs none
   * @param place where the kernel is to register the next request's memory, -1: nowhere
   */
  ublkCommand(
    command: number,
    file: number,
    queue: number,
    tag: number,
    result: number,
    address: number,
    place: number,
    handler: number,
  ): void {
    const i = this.next();
    const sqes = this.sqes;
    sqes[i] = OP_URING_CMD | (FIXED_FILE << 8);
    sqes[i + 1] = file;
    sqes[i + 2] = command;
    sqes[i + 3] = 0;
    sqes[i + 4] = place < 0 ? 0 : place;
    sqes[i + 5] = 0;
    sqes[i + 6] = 0;
    sqes[i + 7] = 0;
    sqes[i + 8] = tag;
    sqes[i + 9] = handler;
    sqes[i + 10] = 0;
    sqes[i + 11] = 0;
    sqes[i + 12] = queue | (tag << 16);
    sqes[i + 13] = result;
    sqes[i + 14] = low32(address);
    sqes[i + 15] = high32(address);
  }

  /** Prepares a multishot poll for input on a descriptor (5.13). */
  pollIn(fd: number, handler: number, index: number): void {
    const i = this.clear(this.next());
    const sqes = this.sqes;
    sqes[i] = OP_POLL_ADD;
    sqes[i + 1] = fd;
    sqes[i + 6] = POLL_ADD_MULTI;
    sqes[i + 7] = POLLIN;
    sqes[i + 8] = index;
    sqes[i + 9] = handler;
  }

  /** Prepares the end of the poll that was prepared with this handler and index. */
  pollRemove(handler: number, index: number, ownIndex: number): void {
    const i = this.clear(this.next());
    const sqes = this.sqes;
    sqes[i] = OP_POLL_REMOVE;
    sqes[i + 1] = 0xffffffff;
    sqes[i + 4] = index;
    sqes[i + 5] = handler;
    sqes[i + 8] = ownIndex;
    sqes[i + 9] = handler;
  }

  /**
   * Prepares a receive on a stream socket that blocks. Its result is the bytes, 0 at the end.
   * @param whole waits for all of them, unless the stream ends or breaks
   */
  receive(
    fd: number,
    address: number,
    length: number,
    whole: boolean,
    handler: number,
    index: number,
  ): void {
    const i = this.clear(this.next());
    const sqes = this.sqes;
    sqes[i] = OP_RECV;
    sqes[i + 1] = fd;
    sqes[i + 4] = low32(address);
    sqes[i + 5] = high32(address);
    sqes[i + 6] = length;
    sqes[i + 7] = whole ? MSG_WAITALL : 0;
    sqes[i + 8] = index;
    sqes[i + 9] = handler;
  }

  /**
   * Prepares a send of all that a struct msghdr names; the result may be less where it is interrupted.
   * @param message its address, which stays as it is until the completion
   */
  send(fd: number, message: number, handler: number, index: number): void {
    const i = this.clear(this.next());
    const sqes = this.sqes;
    sqes[i] = OP_SENDMSG;
    sqes[i + 1] = fd;
    sqes[i + 4] = low32(message);
    sqes[i + 5] = high32(message);
    sqes[i + 6] = 1;
    sqes[i + 7] = MSG_WAITALL | MSG_NOSIGNAL;
    sqes[i + 8] = index;
    sqes[i + 9] = handler;
  }

  /** Entries prepared and not yet handed to the kernel. */
  get prepared(): number {
    return this.pending;
  }

  /** Whether the kernel has completions that it posts only in `enter`. */
  get hasDeferredWork(): boolean {
    return (Atomics.load(this.sqFlags, 0) & (SQ_CQ_OVERFLOW | SQ_TASKRUN)) !== 0;
  }

  /**
   * Hands prepared entries to the kernel and lets it post completions.
   * @param minComplete completions to wait for
   * @param timeoutUs the longest wait in microseconds, negative: for ever
   * @throws Error where the kernel refuses the ring itself
   */
  enter(minComplete: number, timeoutUs: number): void {
    if (this.pending > 0) Atomics.store(this.sqTail, 0, this.tail >>> 0);
    this.entered(shim.ubiblk_ring_enter(this.handle, this.pending, minComplete, timeoutUs));
  }

  /**
   * Hands prepared entries to the kernel and waits for `count` completions; after `gatherUs`
   * microseconds one is enough. Where the kernel can't (before Linux 6.12), one is enough at once.
   * @throws Error where the kernel refuses the ring itself
   */
  gather(count: number, gatherUs: number): void {
    if (count < 2 || gatherUs < 1 || !this.canGather) {
      this.enter(1, -1);
      return;
    }
    if (this.pending > 0) Atomics.store(this.sqTail, 0, this.tail >>> 0);
    this.entered(shim.ubiblk_ring_gather(this.handle, this.pending, count, gatherUs));
  }

  private entered(result: number): void {
    if (result >= 0) {
      this.pending -= result;
    } else if (result !== -EINTR && result !== -ETIME && result !== -EAGAIN && result !== -EBUSY) {
      throw failed('io_uring_enter', result);
    } else {
      // The kernel may have taken entries before it was interrupted.
      this.pending = ((this.tail >>> 0) - Atomics.load(this.sqHead, 0)) >>> 0;
    }
  }

  /**
   * Gives each completion that is there to its handler.
   * @returns how many there were
   */
  reap(): number {
    this.batch = (this.batch + 1) | 0;
    const cqes = this.cqes;
    const tail = Atomics.load(this.cqTail, 0);
    let count = 0;
    while (this.head >>> 0 !== tail) {
      const i = (this.head & this.cqMask) * CQE_WORDS;
      const index = cqes[i] as number;
      const handler = cqes[i + 1] as number;
      const result = cqes[i + 2] as number;
      const more = ((cqes[i + 3] as number) & CQE_MORE) !== 0;
      this.head = (this.head + 1) | 0;
      count++;
      (this.handlers[handler] as RingHandler).ringCompleted(index, result, more);
    }
    if (count > 0) Atomics.store(this.cqHead, 0, this.head >>> 0);
    return count;
  }

  /**
   * Spins until a virtqueue's available index moves, the ring has something, or the time is over.
   * @param availIdxAddress where the 16-bit index is, in memory
   * @returns SPIN_* bits, 0 when the time was over
   */
  spin(availIdxAddress: number, seen: number, timeoutUs: number): number {
    return shim.ubiblk_ring_spin(this.handle, availIdxAddress, seen, timeoutUs);
  }

  /** Ends the ring. I/O in flight is cancelled or waited for by the kernel. */
  close(): void {
    shim.ubiblk_ring_destroy(this.handle);
  }

  /** The first word of the next free entry. */
  private next(): number {
    if (this.pending === this.sqEntries) this.makeRoom();
    const i = (this.tail & this.sqMask) * SQE_WORDS;
    this.tail = (this.tail + 1) | 0;
    this.pending++;
    return i;
  }

  private makeRoom(): void {
    for (let attempt = 0; this.pending === this.sqEntries; attempt++) {
      // Only a completion queue that overflows can keep the kernel from taking entries for long.
      if (attempt === 1_000_000) throw new Error('io_uring takes no more requests');
      this.enter(0, 0);
    }
  }

  private clear(i: number): number {
    this.sqes.fill(0, i, i + SQE_WORDS);
    return i;
  }
}

/** An array of iovecs in native memory. */
export class IovecTable {
  private readonly buffer: NativeBuffer;
  private readonly words: Uint32Array;

  /** @param count iovecs, 16 bytes each; memory is used as they are written */
  constructor(count: number) {
    this.buffer = new NativeBuffer(count * 16);
    this.words = new Uint32Array(this.buffer.window());
  }

  addressOf(index: number): number {
    return this.buffer.address + index * 16;
  }

  set(index: number, address: number, length: number): void {
    const words = this.words;
    const i = index * 4;
    words[i] = low32(address);
    words[i + 1] = high32(address);
    words[i + 2] = low32(length);
    words[i + 3] = high32(length);
  }

  address(index: number): number {
    const i = index * 4;
    return (this.words[i] as number) + (this.words[i + 1] as number) * 2 ** 32;
  }

  length(index: number): number {
    const i = index * 4;
    return (this.words[i + 2] as number) + (this.words[i + 3] as number) * 2 ** 32;
  }

  free(): void {
    this.buffer.free();
  }
}
