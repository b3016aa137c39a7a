/**
 * What a queue has done since the process began: numbers in shared memory, written by the queue's thread
 * alone, with plain stores. Whoever reads sees each number whole, but numbers of one moment only roughly.
 */
import { HISTOGRAM_NUMBERS, LatencyHistogram } from '../latency_histogram.ts';
import type { BlockOp } from './request.ts';

/** How operations are called in answers, by their numbers. */
export const OP_NAMES = ['read', 'write', 'flush', 'discard', 'write_zeroes'] as const;

const REFUSED = 0;
const HEADER = 8;
/** Numbers of an operation, before its histogram. */
const OPS = 0;
const BYTES = 1;
const ERRORS = 2;
const FIELDS = 8;
const STRIDE = FIELDS + HISTOGRAM_NUMBERS;

/** How many numbers the counters of one queue are. */
export const COUNTER_NUMBERS = HEADER + OP_NAMES.length * STRIDE;

/** What a queue has done of one operation. */
export interface OpCounts {
  /** Requests taken, whatever became of them. */
  ops: number;
  bytes: number;
  /** Requests answered with an error of the disk. */
  errors: number;
  /** Of all that were answered: from being taken to being answered. */
  latency: LatencyHistogram;
}

export class QueueCounters {
  private readonly latencies: readonly LatencyHistogram[];

  /** @param numbers COUNTER_NUMBERS of them */
  constructor(private readonly numbers: Float64Array) {
    this.latencies = OP_NAMES.map((_, op) => {
      const at = HEADER + op * STRIDE + FIELDS;
      return new LatencyHistogram(numbers.subarray(at, at + HISTOGRAM_NUMBERS));
    });
  }

  /** A request was taken. */
  began(op: BlockOp, bytes: number): void {
    const at = HEADER + op * STRIDE;
    this.numbers[at + OPS]++;
    this.numbers[at + BYTES] += bytes;
  }

  /** The request goes on with so many bytes more. */
  more(op: BlockOp, bytes: number): void {
    this.numbers[HEADER + op * STRIDE + BYTES] += bytes;
  }

  ended(op: BlockOp, ns: number, failed: boolean): void {
    if (failed) this.numbers[HEADER + op * STRIDE + ERRORS]++;
    this.latencies[op].add(ns);
  }

  /** A request was answered with an error that never reached the disk: its own fault. */
  refused(): void {
    this.numbers[REFUSED]++;
  }

  get refusedRequests(): number {
    return this.numbers[REFUSED];
  }

  of(op: number): OpCounts {
    const at = HEADER + op * STRIDE;
    const [ops, bytes, errors] = this.numbers.subarray(at);
    return { ops, bytes, errors, latency: this.latencies[op] };
  }
}
