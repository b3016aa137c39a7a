/**
 * A board on which the queue threads show their requests in flight to the main thread: two numbers for
 * each place in a queue, written when a request starts, one of them again when it is answered.
 *
 * Nobody waits or locks here, so whoever looks while a queue writes may see the range of one request
 * with the operation of the one before it. That is good enough for eyes, and for nothing else.
 */
import { type BlockRequest, FLUSH } from './request.ts';

/** A request in flight as it is shown: in sectors of 512 bytes, and a flush by its name alone. */
export type ShownRequest = [op: string, firstSector: number, sectors: number] | ['flush'];

const SECTOR_BYTES = 512;
/** Numbers before a queue's places: how many of them are in use. */
const PLACES = 0;
const HEADER = 8;
const OFFSET = 0;
/** The length in bytes and the operation in one number, 0 where nothing is in flight. */
const WHAT = 1;
const FIELDS = 2;
const OPS = 8;
/** By operation. */
const NAMES = ['read', 'write', 'flush', 'discard', 'write_zeroes'];

/** Bytes of shared memory for so many queues of at most so many requests in flight. */
export function requestBoardBytes(queues: number, places: number): number {
  return queues * queueBytes(places);
}

function queueBytes(places: number): number {
  return (HEADER + places * FIELDS) * Float64Array.BYTES_PER_ELEMENT;
}

/** The part of the board that one queue thread writes. */
export class QueueBoard {
  private readonly numbers: Float64Array;

  /** @param places as many as the board was made for */
  constructor(shared: SharedArrayBuffer, queue: number, places: number) {
    const at = queue * queueBytes(places);
    this.numbers = new Float64Array(shared, at, HEADER + places * FIELDS);
  }

  /** Shows a request at a place below the board's number of them. */
  show(place: number, request: BlockRequest): void {
    const at = HEADER + place * FIELDS;
    this.numbers[at + OFFSET] = request.offset;
    this.numbers[at + WHAT] = request.length * OPS + request.op + 1;
  }

  wipe(place: number): void {
    this.numbers[HEADER + place * FIELDS + WHAT] = 0;
  }

  /** Takes everything off; from now on so many places are in use. */
  reset(places: number): void {
    this.numbers.fill(0);
    this.numbers[PLACES] = places;
  }

  /** What is shown, in the order of the places. */
  list(): ShownRequest[] {
    const shown: ShownRequest[] = [];
    const { numbers } = this;
    const end = Math.min(HEADER + numbers[PLACES] * FIELDS, numbers.length);
    for (let at = HEADER; at < end; at += FIELDS) {
      const what = numbers[at + WHAT];
      if (what === 0) continue;
      const op = (what - 1) % OPS;
      const bytes = (what - 1 - op) / OPS;
      if (op === FLUSH) shown.push(['flush']);
      else shown.push([NAMES[op], numbers[at + OFFSET] / SECTOR_BYTES, bytes / SECTOR_BYTES]);
    }
    return shown;
  }
}

/** The whole board, for the main thread. */
export class RequestBoard {
  readonly shared: SharedArrayBuffer;
  readonly queues: readonly QueueBoard[];

  constructor(
    queues: number,
    readonly places: number,
  ) {
    this.shared = new SharedArrayBuffer(requestBoardBytes(queues, places));
    this.queues = Array.from({ length: queues }, (_, i) => new QueueBoard(this.shared, i, places));
  }

  /** The requests of each queue that were in flight a moment ago, in the order of their places. */
  list(): ShownRequest[][] {
    return this.queues.map((queue) => queue.list());
  }
}
