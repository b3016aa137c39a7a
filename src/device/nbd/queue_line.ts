/**
 * What main and a queue share of the queue's connection to an NBD server. Main connects and shakes
 * hands; then the socket is the queue's. A connection that is lost is asked for anew.
 */

const GIVEN = 0;
const FD = 1;
const LOST = 2;
const WORDS = 16;

/** Bytes of shared memory for the lines of so many queues. */
export function queueLineBytes(queues: number): number {
  return queues * WORDS * Int32Array.BYTES_PER_ELEMENT;
}

export class QueueLine {
  private readonly words: Int32Array;

  constructor(shared: SharedArrayBuffer, queue: number) {
    this.words = new Int32Array(shared, queue * WORDS * Int32Array.BYTES_PER_ELEMENT, WORDS);
  }

  /** Main: hands over a socket, the first or the next. */
  give(fd: number): void {
    Atomics.store(this.words, FD, fd);
    Atomics.add(this.words, GIVEN, 1);
  }

  /** Queue: how many sockets it has been given. */
  get given(): number {
    return Atomics.load(this.words, GIVEN);
  }

  /** Queue: the last one. */
  get fd(): number {
    return Atomics.load(this.words, FD);
  }

  /** Queue: so many are lost. Main: whether that is all of them. */
  lose(): void {
    Atomics.add(this.words, LOST, 1);
  }

  get isLost(): boolean {
    return Atomics.load(this.words, LOST) === this.given;
  }
}
