/**
 * Whether the queue threads still go round. Main asks, by a number in shared memory, and signals each
 * queue's eventfd; a queue that comes to look at it answers. Nobody waits for anybody, and between two
 * questions nothing is done.
 */
import { shim } from '../../ffi/library.ts';

const ASKED = 0;
const ANSWERED = 1;

/** Main's end. */
export class Heartbeat {
  readonly shared: SharedArrayBuffer;
  private readonly numbers: Int32Array;

  /** @param wakeFds the eventfd of each queue */
  constructor(private readonly wakeFds: readonly number[]) {
    const numbers = ANSWERED + wakeFds.length;
    this.shared = new SharedArrayBuffer(numbers * Int32Array.BYTES_PER_ELEMENT);
    this.numbers = new Int32Array(this.shared);
  }

  /** Asks all queues. */
  ask(): void {
    Atomics.add(this.numbers, ASKED, 1);
    for (const fd of this.wakeFds) shim.ubiblk_eventfd_signal(fd);
  }

  /** The queues that have not answered what was asked last. */
  get silent(): number[] {
    const asked = Atomics.load(this.numbers, ASKED);
    return [...this.wakeFds.keys()].filter(
      (queue) => Atomics.load(this.numbers, ANSWERED + queue) !== asked,
    );
  }
}

/** A queue's end. */
export class Pulse {
  private readonly numbers: Int32Array;

  constructor(
    shared: SharedArrayBuffer,
    private readonly queue: number,
  ) {
    this.numbers = new Int32Array(shared);
  }

  answer(): void {
    Atomics.store(this.numbers, ANSWERED + this.queue, Atomics.load(this.numbers, ASKED));
  }
}
