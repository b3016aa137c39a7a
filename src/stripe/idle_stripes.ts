/**
 * The order in which autofetch takes stripes: that of the disk, and then once more from the first one
 * that had to be left.
 */
import type { Clock } from './interfaces.ts';

/** Stripes looked at in one go for one that is to be fetched. */
const SCAN = 1 << 16;
/** Its multiples are everywhere between the whole numbers, and nowhere close together. */
const GOLDEN_RATIO = 0.618033988749895;

export class IdleStripes {
  /** Those below have been taken, or left. */
  private cursor = 0;
  private firstLeft: number;
  private place = 0;
  private scanning = false;

  /**
   * @param isIdle whether a stripe is to be fetched and nothing happens to it
   * @param goOn is called when it is worth while to ask once more
   */
  constructor(
    private readonly total: number,
    private readonly clock: Clock,
    private readonly isIdle: (stripe: number) => boolean,
    private readonly goOn: () => void,
  ) {
    this.firstLeft = total;
  }

  /** @returns the next stripe, to be taken at once; -1 where there is none now */
  next(): number {
    if (this.cursor >= this.total) {
      this.cursor = this.firstLeft;
      this.firstLeft = this.total;
    }
    const found = this.find(this.cursor);
    if (found >= 0) {
      this.cursor = found + 1;
      return found;
    }
    this.cursor = Math.min(this.cursor + SCAN, this.total);
    if (this.cursor < this.total || this.firstLeft < this.total) this.goOnLater();
    return -1;
  }

  /**
   * One from another place each time: a part of the source that can't be read is not to look like a
   * source that is away.
   */
  somewhere(): number {
    this.place = (this.place + GOLDEN_RATIO) % 1;
    const found = this.find(Math.floor(this.cursor + (this.total - this.cursor) * this.place));
    return found >= 0 ? found : this.next();
  }

  /** A stripe that was taken is as it was, and comes again when the others have had their turn. */
  leave(stripe: number): void {
    this.firstLeft = Math.min(this.firstLeft, stripe);
  }

  private find(from: number): number {
    const end = Math.min(from + SCAN, this.total);
    for (let stripe = from; stripe < end; stripe++) if (this.isIdle(stripe)) return stripe;
    return -1;
  }

  private goOnLater(): void {
    if (this.scanning) return;
    this.scanning = true;
    this.clock.sleep(0).then(() => {
      this.scanning = false;
      this.goOn();
    });
  }
}
