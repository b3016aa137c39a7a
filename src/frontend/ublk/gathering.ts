/**
 * How many requests are worth waiting for where the disk answers at once. How many a client sends in a
 * row shows only when they are waited for: twice as many are tried now and then, more rarely each time
 * that they didn't come.
 */

/** Turns between two tries. */
const MOST_TURNS = 4096;

export class Gathering {
  private count = 1;
  /** Turns until the next try, and from a try that fails to the next one. */
  private rest = 1;
  private interval = 1;
  private trying = false;

  /** @param most that are ever waited for */
  constructor(private readonly most: number) {}

  get wanted(): number {
    return this.count;
  }

  /** @param came so many, when `wanted` were waited for for a while */
  turned(came: number): void {
    const enough = came >= this.count;
    if (!enough) this.count = Math.max(1, this.count >> 1);
    if (this.trying) this.interval = enough ? 1 : Math.min(this.interval * 2, MOST_TURNS);
    if (this.trying || !enough) this.rest = this.interval;
    this.trying = this.count < this.most && --this.rest <= 0;
    if (this.trying) this.count = Math.min(this.count * 2, this.most);
  }
}
