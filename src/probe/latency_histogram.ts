/** Latencies in buckets that are at most 3 % wide: of a fixed size, however many there are. */

const BUCKETS_PER_OCTAVE = 32;
const OCTAVES = 40;

export class LatencyHistogram {
  count = 0;
  private sumNs = 0;
  private readonly buckets = new Uint32Array(BUCKETS_PER_OCTAVE * OCTAVES);

  add(ns: number): void {
    const bucket = Math.floor(Math.log2(ns < 1 ? 1 : ns) * BUCKETS_PER_OCTAVE);
    this.buckets[Math.min(bucket, this.buckets.length - 1)]++;
    this.sumNs += ns;
    this.count++;
  }

  get meanUs(): number {
    return this.count === 0 ? 0 : this.sumNs / this.count / 1000;
  }

  /** The latency that the given share of all (0 to 1) does not exceed, in microseconds. */
  percentileUs(share: number): number {
    let left = Math.ceil(this.count * share);
    if (left === 0) return 0;
    let bucket = 0;
    for (; bucket < this.buckets.length - 1; bucket++) {
      left -= this.buckets[bucket];
      if (left <= 0) break;
    }
    return 2 ** ((bucket + 1) / BUCKETS_PER_OCTAVE) / 1000;
  }
}
