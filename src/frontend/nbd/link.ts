/**
 * What main, the accepting thread and a queue of an NBD server share: connections that are handed to the
 * queue, how many it has, and whether it is to end. Whoever hands something over signals its eventfd.
 */
import { shim } from '../../../ffi/library.ts';

/** Connections of one queue at a time. */
export const MOST_CONNECTIONS = 64;
const PLACES = 256;
const STAY = 0;
const PUT = 1;
const TAKEN = 2;
const OPEN = 3;
const FDS = 16;

/** Bits beside a connection's descriptor. */
export const OVER_TLS = 1;
/** Its client doesn't want the zeroes behind NBD_OPT_EXPORT_NAME's answer. */
export const WITHOUT_ZEROES = 2;
const BITS = 4;

export const Stay = { SERVE: 0, UNTIL_ANSWERED: 1, NO_LONGER: 2 } as const;

/** Bytes of shared memory for one queue. */
export const LINK_BYTES = (FDS + PLACES) * Int32Array.BYTES_PER_ELEMENT;

export class NbdLink {
  private readonly words: Int32Array;

  constructor(readonly shared: SharedArrayBuffer) {
    this.words = new Int32Array(shared);
  }

  get stay(): number {
    return Atomics.load(this.words, STAY);
  }

  set stay(wanted: number) {
    Atomics.store(this.words, STAY, wanted);
  }

  /** Connections that the queue has or is about to take. */
  get open(): number {
    return Atomics.load(this.words, OPEN);
  }

  /** Hands a connection over; one thread alone does. @returns false where too many wait */
  put(fd: number, bits: number): boolean {
    const put = Atomics.load(this.words, PUT);
    if (((put - Atomics.load(this.words, TAKEN)) | 0) >= PLACES) return false;
    this.words[FDS + (put & (PLACES - 1))] = fd * BITS + bits;
    Atomics.add(this.words, OPEN, 1);
    Atomics.store(this.words, PUT, (put + 1) | 0);
    return true;
  }

  /** Queue: the next connection's descriptor and bits, as `put` together; -1 where there is none. */
  take(): number {
    const taken = Atomics.load(this.words, TAKEN);
    if (taken === Atomics.load(this.words, PUT)) return -1;
    const value = this.words[FDS + (taken & (PLACES - 1))];
    Atomics.store(this.words, TAKEN, (taken + 1) | 0);
    return value;
  }

  /** Queue: a connection is closed. */
  closed(): void {
    Atomics.sub(this.words, OPEN, 1);
  }

  static fdOf(value: number): number {
    return Math.floor(value / BITS);
  }

  static bitsOf(value: number): number {
    return value % BITS;
  }
}

/** Hands a connection to the queue with the fewest; where all are full, it is closed. */
export function handOver(
  queues: readonly NbdLink[],
  wakeFds: readonly number[],
  fd: number,
  bits: number,
): void {
  let best = 0;
  for (let i = 1; i < queues.length; i++) if (queues[i].open < queues[best].open) best = i;
  if (queues[best].open < MOST_CONNECTIONS && queues[best].put(fd, bits)) {
    shim.ubiblk_eventfd_signal(wakeFds[best]);
    return;
  }
  shim.ubiblk_close(fd);
  // Each may make room for the next one, also those to which nothing happens.
  for (const wakeFd of wakeFds) shim.ubiblk_eventfd_signal(wakeFd);
}
