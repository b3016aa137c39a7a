/**
 * A board on which the queue threads show to the main thread what they do: three numbers for each
 * place in a queue, written when a request starts, one of them again when it is answered; and the queue's
 * counters, which are kept at the same two moments.
 *
 * Nobody waits or locks here, so whoever looks while a queue writes may see the range of one request
 * with the operation of the one before it. That is good enough for eyes, and for nothing else.
 */
import { COUNTER_NUMBERS, OP_NAMES, QueueCounters } from './queue_counters.ts';
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
/** When it was taken, in nanoseconds of the shim's clock. */
const SINCE = 2;
const FIELDS = 3;
const OPS = 8;

/** Bytes of shared memory for so many queues of at most so many requests in flight. */
export function requestBoardBytes(queues: number, places: number): number {
  return queues * queueBytes(places);
}

function queueBytes(places: number): number {
  return (COUNTER_NUMBERS + HEADER + places * FIELDS) * Float64Array.BYTES_PER_ELEMENT;
}

/** The part of the board that one queue thread writes. */
export class QueueBoard {
  readonly counters: QueueCounters;
  private readonly numbers: Float64Array;

  /** @param places as many as the board was made for */
  constructor(shared: SharedArrayBuffer, queue: number, places: number) {
    const at = queue * queueBytes(places);
    this.counters = new QueueCounters(new Float64Array(shared, at, COUNTER_NUMBERS));
    const board = at + COUNTER_NUMBERS * Float64Array.BYTES_PER_ELEMENT;
    this.numbers = new Float64Array(shared, board, HEADER + places * FIELDS);
  }

  /** Shows a request that was taken, at a place below the board's number of them, and counts it. */
  begin(place: number, request: BlockRequest, nowNs: number): void {
    const at = HEADER + place * FIELDS;
    const { op, length } = request;
    this.numbers[at + OFFSET] = request.offset;
    this.numbers[at + WHAT] = length * OPS + op + 1;
    this.numbers[at + SINCE] = nowNs;
    this.counters.began(op, op === FLUSH ? 0 : length);
  }

  /** The request goes on with its next range. */
  goOn(place: number, request: BlockRequest): void {
    const at = HEADER + place * FIELDS;
    this.numbers[at + OFFSET] = request.offset;
    this.numbers[at + WHAT] = request.length * OPS + request.op + 1;
    this.counters.more(request.op, request.length);
  }

  /** The request is answered; one that was never shown here is passed over. */
  end(place: number, { op, result }: BlockRequest, nowNs: number): void {
    const at = HEADER + place * FIELDS;
    const { numbers } = this;
    if (numbers[at + WHAT] === 0) return;
    numbers[at + WHAT] = 0;
    this.counters.ended(op, nowNs - numbers[at + SINCE], result !== 0);
  }

  /** The request is given back as if it had not been taken. */
  drop(place: number): void {
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
    for (let at = HEADER; at < this.endOfPlaces; at += FIELDS) {
      const what = numbers[at + WHAT];
      if (what === 0) continue;
      const op = (what - 1) % OPS;
      const bytes = (what - 1 - op) / OPS;
      if (op === FLUSH) shown.push(['flush']);
      else shown.push([OP_NAMES[op], numbers[at + OFFSET] / SECTOR_BYTES, bytes / SECTOR_BYTES]);
    }
    return shown;
  }

  /**
   * How many requests are shown, and for how long the oldest of them has been.
   * @param nowNs of the shim's clock
   */
  inFlight(nowNs: number): { count: number; oldestNs: number } {
    const { numbers } = this;
    let count = 0;
    let oldestNs = 0;
    for (let at = HEADER; at < this.endOfPlaces; at += FIELDS) {
      if (numbers[at + WHAT] === 0) continue;
      count++;
      oldestNs = Math.max(oldestNs, nowNs - numbers[at + SINCE]);
    }
    return { count, oldestNs };
  }

  private get endOfPlaces(): number {
    return Math.min(HEADER + this.numbers[PLACES] * FIELDS, this.numbers.length);
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
