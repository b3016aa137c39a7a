/**
 * Sectors behind a cache. What was written stays one of several versions of its sector until a sync
 * makes it, or a later one, the oldest that can be left; a power cut leaves any one of them, for each
 * sector by itself.
 */
export class VolatileSectors<Value> {
  /** Of each sector, the durable version first, the visible one last. */
  private readonly versions: Value[][];
  /** The number of the first version in the list above. */
  private readonly oldest: Int32Array;
  /** The newest version whose write has ended. */
  private readonly ended: Int32Array;
  /** A sync brings out nothing up to this version: it was tried, it failed, and it was forgotten. */
  private readonly lost: Int32Array;

  constructor(
    readonly count: number,
    initial: (sector: number) => Value,
  ) {
    this.versions = Array.from({ length: count }, (_, sector) => [initial(sector)]);
    this.oldest = new Int32Array(count);
    this.ended = new Int32Array(count);
    this.lost = new Int32Array(count).fill(-1);
  }

  visible(sector: number): Value {
    const versions = this.versions[sector];
    return versions[versions.length - 1];
  }

  /** What a power cut now may leave. */
  possible(sector: number): readonly Value[] {
    return this.versions[sector];
  }

  /** A write reaches the cache; gives the version's number. */
  put(sector: number, value: Value): number {
    return this.oldest[sector] + this.versions[sector].push(value) - 1;
  }

  /** The write of a version has ended. */
  end(sector: number, version: number): void {
    if (version > this.ended[sector]) this.ended[sector] = version;
  }

  /** What a sync that begins now covers. */
  mark(): Int32Array {
    return this.ended.slice();
  }

  /** A sync ends that began at `mark`. */
  hardenAll(mark: Int32Array): void {
    for (let sector = 0; sector < this.count; sector++) this.harden(sector, mark[sector]);
  }

  harden(sector: number, version: number): void {
    const surplus = version - this.oldest[sector];
    if (surplus <= 0 || this.isLost(sector, version)) return;
    this.versions[sector].splice(0, surplus);
    this.oldest[sector] = version;
  }

  isLost(sector: number, version: number): boolean {
    return version <= this.lost[sector];
  }

  /** The storage refuses some of what is in the cache, which then takes it for written. */
  lose(pick: () => boolean): void {
    for (let sector = 0; sector < this.count; sector++) {
      const last = this.oldest[sector] + this.versions[sector].length - 1;
      if (last > this.oldest[sector] && pick()) this.lost[sector] = last;
    }
  }

  /** The power is cut: `pick` chooses among so many versions. */
  cut(pick: (versions: number) => number): void {
    for (let sector = 0; sector < this.count; sector++) {
      const versions = this.versions[sector];
      if (versions.length > 1) this.keepOnly(sector, versions[pick(versions.length)]);
    }
    this.forgetWrites();
  }

  /** Whoever wrote is gone, the cache is not: what was refused leaves it, the rest is brought out. */
  settle(): void {
    for (let sector = 0; sector < this.count; sector++) {
      const versions = this.versions[sector];
      const last = this.oldest[sector] + versions.length - 1;
      this.keepOnly(sector, this.isLost(sector, last) ? versions[0] : this.visible(sector));
    }
    this.forgetWrites();
  }

  /** No write is under way any more. */
  endAll(): void {
    for (let sector = 0; sector < this.count; sector++) {
      this.ended[sector] = this.oldest[sector] + this.versions[sector].length - 1;
    }
  }

  private keepOnly(sector: number, value: Value): void {
    this.versions[sector] = [value];
  }

  private forgetWrites(): void {
    this.oldest.fill(0);
    this.ended.fill(0);
    this.lost.fill(-1);
  }
}
