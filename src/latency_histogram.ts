/**
 * Latencies in buckets that are at most 3 % wide, as in an HDR histogram: 32 to each doubling, from 128 ns to
 * 18 minutes; what is shorter or longer is in the first or the last one. It lives in numbers that may be
 * shared: one thread adds, others read a moment's state.
 */

/** Bits of the mantissa that tell buckets of one doubling apart. */
const STEP_BITS = 5;
const STEPS = 1 << STEP_BITS;
const FIRST_POWER = 7;
const LAST_POWER = 40;
export const BUCKETS = (LAST_POWER - FIRST_POWER) * STEPS;

const SUM = 0;
const MAX = 1;
const FIRST = 2;
/** How many numbers a histogram has. */
export const HISTOGRAM_NUMBERS = FIRST + BUCKETS;

/** IEEE 754: the exponent and the upper mantissa of a number are those of its bucket. */
const EXPONENT_BIAS = 1023;
const BELOW = (EXPONENT_BIAS + FIRST_POWER) << STEP_BITS;
const number = new Float64Array(1);
const words = new Uint32Array(number.buffer);

/** The bucket of a latency in nanoseconds. */
function bucketOf(ns: number): number {
  if (!(ns >= 1 << FIRST_POWER)) return 0;
  number[0] = ns;
  const bucket = (words[1] >>> (20 - STEP_BITS)) - BELOW;
  return bucket < BUCKETS ? bucket : BUCKETS - 1;
}

/** What all latencies of a bucket are below, in nanoseconds. */
function endOf(bucket: number): number {
  const next = bucket + 1;
  return 2 ** (FIRST_POWER + Math.floor(next / STEPS)) * (1 + (next % STEPS) / STEPS);
}

export class LatencyHistogram {
  /** @param numbers HISTOGRAM_NUMBERS of them; zeroes at first */
  constructor(private readonly numbers: Float64Array = new Float64Array(HISTOGRAM_NUMBERS)) {}

  /** Clocks of two processors may differ a little: less than nothing counts as 0, and sums only grow. */
  add(ns: number): void {
    const { numbers } = this;
    numbers[FIRST + bucketOf(ns)]++;
    if (ns > 0) numbers[SUM] += ns;
    if (ns > numbers[MAX]) numbers[MAX] = ns;
  }

  /** Adds all that another one holds. */
  addAll({ numbers: from }: LatencyHistogram): void {
    const { numbers } = this;
    for (let i = 0; i < numbers.length; i++) if (i !== MAX) numbers[i] += from[i];
    numbers[MAX] = Math.max(numbers[MAX], from[MAX]);
  }

  get count(): number {
    let count = 0;
    for (let i = FIRST; i < FIRST + BUCKETS; i++) count += this.numbers[i];
    return count;
  }

  get sumNs(): number {
    return this.numbers[SUM];
  }

  get maxUs(): number {
    return this.numbers[MAX] / 1000;
  }

  get meanUs(): number {
    const { count } = this;
    return count === 0 ? 0 : this.sumNs / count / 1000;
  }

  /** The latency that the given share of all (0 to 1) does not exceed, in microseconds. */
  percentileUs(share: number): number {
    // The longest may be anywhere in its bucket.
    return Math.min(percentileUs(this.buckets(), share), this.maxUs);
  }

  /** Buckets that hold something: the end of each in microseconds, and how many. */
  buckets(): [endUs: number, count: number][] {
    const found: [number, number][] = [];
    for (let bucket = 0; bucket < BUCKETS; bucket++) {
      const count = this.numbers[FIRST + bucket];
      if (count > 0) found.push([endOf(bucket) / 1000, count]);
    }
    return found;
  }

  /** How many were shorter than 2 ** power nanoseconds. */
  below(power: number): number {
    const end = Math.min(Math.max(power - FIRST_POWER, 0) * STEPS, BUCKETS);
    let count = 0;
    for (let bucket = 0; bucket < end; bucket++) count += this.numbers[FIRST + bucket];
    return count;
  }
}

/**
 * The latency that the given share of all (0 to 1) does not exceed.
 * @param buckets as {@link LatencyHistogram.buckets} gives them
 * @returns microseconds, 0 where there is nothing
 */
export function percentileUs(
  buckets: readonly (readonly [endUs: number, count: number])[],
  share: number,
): number {
  let left = 0;
  for (const [, count] of buckets) left += count;
  left = Math.ceil(left * share);
  if (left === 0) return 0;
  for (const [endUs, count] of buckets) {
    left -= count;
    if (left <= 0) return endUs;
  }
  return buckets.at(-1)?.[0] ?? 0;
}
