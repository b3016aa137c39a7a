/**
 * What the control thread and one queue thread share: a block of a SharedArrayBuffer with the
 * command in hand and its arguments, and an eventfd that the queue's wait always watches.
 *
 * The control thread gives one command at a time and waits for its answer; the queue thread answers
 * between two batches and never waits for the control thread.
 */

import type { MemoryRegion } from './guest_memory.ts';
import { MAX_MEMORY_SLOTS } from './protocol.ts';

export const Command = {
  NONE: 0,
  /** Serve the ring described by the arguments. Answer: 0, or -1 where it is broken from the start. */
  START: 1,
  /**
   * Take nothing more, finish what is in flight, see `QueueLink.waiting`. Answer: the next available
   * index.
   */
  STOP: 2,
  /** Use another call descriptor from now on, and signal it once. Answer: 0. */
  CALL: 3,
  /** Leave the loop for good; like STOP. */
  EXIT: 4,
} as const;
export type CommandCode = (typeof Command)[keyof typeof Command];

/**
 * What becomes of requests at a stop that wait for another thread's word: bits, of which the first that
 * applies does.
 */
export const Waiting = {
  /** They are waited for. */
  FINISH: 0,
  /** They are left unanswered. */
  LEAVE: 1,
  /** The same where a record of them is kept. */
  RECORD: 2,
  /** They end with an I/O error. */
  FAIL: 4,
} as const;

/** 32-bit fields of a link. */
const SEQUENCE = 0;
const ANSWERED = 1;
const COMMAND = 2;
const ANSWER = 3;
const WAITING = 4;
const INTS = 16;

/** 64-bit floating-point arguments of START. */
const ARGS = 16;
const LINK_BYTES = INTS * 4 + ARGS * 8;

/**
 * Fields that all queues share, in 32-bit words: whether the guest's writes may stay in a cache; whether
 * there is a frontend.
 */
const WRITEBACK = 0;
const REGION_COUNT = 1;
const CONNECTED = 2;
const SHARED_INTS = 4;
const REGION_FIELDS = 5;
const SHARED_BYTES = SHARED_INTS * 4 + MAX_MEMORY_SLOTS * REGION_FIELDS * 8;

/** Bytes of the SharedArrayBuffer for so many queues. */
export function linkBytes(queues: number): number {
  return SHARED_BYTES + queues * LINK_BYTES;
}

/** Arguments of START; addresses in this process, descriptors of this process, -1 for none. */
export interface RingStart {
  size: number;
  descriptors: number;
  available: number;
  used: number;
  nextAvailable: number;
  kickFd: number;
  callFd: number;
  errFd: number;
  eventIdx: boolean;
  indirect: boolean;
  /** Address of the in-flight record, 0 without one. */
  inflight: number;
}

/** Fields that concern all queues. The control thread writes them while the queues are stopped. */
export class SharedState {
  private readonly ints: Int32Array;
  private readonly table: Float64Array;

  constructor(buffer: SharedArrayBuffer) {
    this.ints = new Int32Array(buffer, 0, SHARED_INTS);
    this.table = new Float64Array(buffer, SHARED_INTS * 4, MAX_MEMORY_SLOTS * REGION_FIELDS);
  }

  /** Whether writes may complete before they are durable; may change while queues run. */
  get writeback(): boolean {
    return Atomics.load(this.ints, WRITEBACK) === 1;
  }

  set writeback(on: boolean) {
    Atomics.store(this.ints, WRITEBACK, on ? 1 : 0);
  }

  get connected(): boolean {
    return Atomics.load(this.ints, CONNECTED) === 1;
  }

  set connected(yes: boolean) {
    Atomics.store(this.ints, CONNECTED, yes ? 1 : 0);
  }

  get regions(): MemoryRegion[] {
    const regions: MemoryRegion[] = [];
    for (let i = 0; i < Atomics.load(this.ints, REGION_COUNT); i++) {
      const at = i * REGION_FIELDS;
      const [guestAddress, size, userAddress, address, pageBytes] = this.table.subarray(at);
      regions.push({ guestAddress, size, userAddress, address, pageBytes });
    }
    return regions;
  }

  set regions(regions: readonly MemoryRegion[]) {
    regions.forEach((r, i) => {
      const fields = [r.guestAddress, r.size, r.userAddress, r.address, r.pageBytes];
      this.table.set(fields, i * REGION_FIELDS);
    });
    Atomics.store(this.ints, REGION_COUNT, regions.length);
  }
}

/** Both ends of the link to one queue. */
export class QueueLink {
  private readonly ints: Int32Array;
  private readonly args: Float64Array;

  constructor(buffer: SharedArrayBuffer, queue: number) {
    const at = SHARED_BYTES + queue * LINK_BYTES;
    this.ints = new Int32Array(buffer, at, INTS);
    this.args = new Float64Array(buffer, at + INTS * 4, ARGS);
  }

  // The control thread's end.

  set ring(ring: RingStart) {
    this.args.set([
      ring.size,
      ring.descriptors,
      ring.available,
      ring.used,
      ring.nextAvailable,
      ring.kickFd,
      ring.callFd,
      ring.errFd,
      ring.eventIdx ? 1 : 0,
      ring.indirect ? 1 : 0,
      ring.inflight,
    ]);
  }

  /** Posts a command; the queue's eventfd is to be signalled after it. */
  post(command: CommandCode): void {
    Atomics.store(this.ints, COMMAND, command);
    Atomics.add(this.ints, SEQUENCE, 1);
  }

  /** Blocks until the command posted last is answered. */
  await(): number {
    while (!this.isAnswered(Number.POSITIVE_INFINITY)) {}
    return Atomics.load(this.ints, ANSWER);
  }

  /** Blocks for some time. @returns whether the command posted last is answered */
  isAnswered(timeoutMs: number): boolean {
    const sequence = Atomics.load(this.ints, SEQUENCE);
    const answered = Atomics.load(this.ints, ANSWERED);
    if (answered === sequence) return true;
    Atomics.wait(this.ints, ANSWERED, answered, timeoutMs);
    return Atomics.load(this.ints, ANSWERED) === sequence;
  }

  /** Bits of `Waiting`. They may change during a stop; the queue's eventfd is to be signalled after it. */
  set waiting(waiting: number) {
    Atomics.store(this.ints, WAITING, waiting);
  }

  get waiting(): number {
    return Atomics.load(this.ints, WAITING);
  }

  // The queue thread's end.

  get ring(): RingStart {
    const a = this.args;
    return {
      size: a[0],
      descriptors: a[1],
      available: a[2],
      used: a[3],
      nextAvailable: a[4],
      kickFd: a[5],
      callFd: a[6],
      errFd: a[7],
      eventIdx: a[8] === 1,
      indirect: a[9] === 1,
      inflight: a[10],
    };
  }

  /** The call descriptor of a CALL command. */
  get callFd(): number {
    return this.args[6];
  }

  set callFd(fd: number) {
    this.args[6] = fd;
  }

  /** The command that waits for its answer, NONE where there is none. */
  get command(): CommandCode {
    const pending = Atomics.load(this.ints, SEQUENCE) !== Atomics.load(this.ints, ANSWERED);
    return pending ? (Atomics.load(this.ints, COMMAND) as CommandCode) : Command.NONE;
  }

  answer(value: number): void {
    Atomics.store(this.ints, ANSWER, value);
    Atomics.store(this.ints, ANSWERED, Atomics.load(this.ints, SEQUENCE));
    Atomics.notify(this.ints, ANSWERED);
  }
}
