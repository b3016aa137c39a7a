import { EIO, ENOSPC } from '../../../ffi/errno.ts';
import { VolatileSectors } from './volatile_sectors.ts';
import type { World } from './world.ts';

/** Somebody who has a file open: each is told once of what was lost since. */
export interface Opening {
  seen: number;
}

export interface FileRates {
  read: number;
  write: number;
  sync: number;
}

interface Write<Value> {
  first: number;
  /** What it puts into its n-th sector, read from memory when it gets there; null: leaves it alone. */
  valueAt: (index: number) => Value | null;
  /** The versions that it has put; -1: not yet, -2: left alone. */
  versions: Int32Array;
}

/**
 * A file of sectors, whose operations take their time, overtake each other, and reach the cache sector
 * by sector. A sync that fails, of whomever, loses a part of what was not durable: everybody who has
 * the file open is told once, and later syncs succeed though those sectors never reached the storage.
 */
export class SimFile<Value> {
  readonly sectors: VolatileSectors<Value>;
  /** Every write and sync fails. */
  dead = false;
  syncs = 0;
  private losses = 0;
  private readonly writes = new Set<Write<Value>>();

  /** @param changed is told of each sector of which a power cut may leave one thing more */
  constructor(
    private readonly world: World,
    readonly name: string,
    count: number,
    initial: (sector: number) => Value,
    private readonly rates: FileRates,
    private readonly meanMs: number,
    private readonly changed: (sector: number) => void,
  ) {
    this.sectors = new VolatileSectors(count, initial);
  }

  open(): Opening {
    return { seen: this.losses };
  }

  /** @param done gets 0 or -errno */
  write(
    first: number,
    count: number,
    valueAt: (index: number) => Value | null,
    durable: boolean,
    done: (result: number) => void,
  ): void {
    const { timeline, dice } = this.world;
    if (!this.contains(first, count)) return;
    const write = { first, valueAt, versions: new Int32Array(count).fill(-1) };
    this.writes.add(write);
    const ms = dice.delayMs(this.meanMs);
    if (dice.chance(2)) timeline.after(ms * dice.real(), () => this.apply(write, true));
    timeline.after(ms, () => {
      const result = this.finish(write, durable);
      this.world.note(() => `${this.name}: write ${first}+${count} ${said(result)}`);
      done(result);
    });
  }

  /** @param take is given each sector's value some time before the end */
  read(
    first: number,
    count: number,
    take: (index: number, value: Value) => void,
    done: (result: number) => void,
  ): void {
    const { timeline, dice } = this.world;
    if (!this.contains(first, count)) return;
    const ms = dice.delayMs(this.meanMs);
    const early = dice.chance(2) ? dice.below(count + 1) : 0;
    const copy = (from: number, to: number) => {
      for (let i = from; i < to; i++) take(i, this.sectors.visible(first + i));
    };
    if (early > 0) timeline.after(ms * dice.real(), () => copy(0, early));
    timeline.after(ms, () => {
      copy(early, count);
      done(this.world.fault(this.rates.read) ? -EIO : 0);
    });
  }

  /** A write that is in the cache at once. */
  writeNow(first: number, values: Value[]): void {
    if (!this.contains(first, values.length)) return;
    values.forEach((value, i) => {
      this.sectors.end(first + i, this.sectors.put(first + i, value));
      this.changed(first + i);
    });
  }

  sync(opening: Opening, done: (result: number) => void): void {
    const mark = this.sectors.mark();
    this.syncs++;
    this.world.timeline.after(this.world.dice.delayMs(this.meanMs), () => {
      if (this.fails(this.rates.sync)) this.lose();
      const failed = opening.seen !== this.losses || this.dead;
      opening.seen = this.losses;
      if (failed) {
        this.world.faultAtMs = this.world.timeline.now();
      } else {
        this.sectors.hardenAll(mark);
      }
      this.world.note(() => `${this.name}: sync ${said(failed ? -EIO : 0)}`);
      done(failed ? -EIO : 0);
    });
  }

  /** What was under way has happened, or a part of it, and nobody hears of it any more. */
  abandon(): void {
    for (const write of this.writes) this.apply(write, true);
    this.writes.clear();
  }

  private lose(): void {
    this.losses++;
    this.sectors.lose(() => this.world.dice.chance(2));
  }

  private fails(oneIn: number): boolean {
    if (this.world.fault(oneIn)) return true;
    if (this.dead) this.world.faultAtMs = this.world.timeline.now();
    return this.dead;
  }

  private contains(first: number, count: number): boolean {
    const inside = first >= 0 && count > 0 && first + count <= this.sectors.count;
    if (!inside) this.world.fail(`${this.name}: sectors ${first}+${count} are not there`);
    return inside;
  }

  private apply({ first, valueAt, versions }: Write<Value>, some: boolean): void {
    for (let i = 0; i < versions.length; i++) {
      if (versions[i] !== -1 || (some && this.world.dice.chance(2))) continue;
      const value = valueAt(i);
      versions[i] = value === null ? -2 : this.sectors.put(first + i, value);
      this.changed(first + i);
    }
  }

  private finish(write: Write<Value>, durable: boolean): number {
    this.writes.delete(write);
    if (this.fails(this.rates.write)) {
      if (!this.dead) this.apply(write, true);
      return this.world.dice.chance(2) ? -EIO : -ENOSPC;
    }
    this.apply(write, false);
    const { first, versions } = write;
    for (let i = 0; i < versions.length; i++) {
      if (versions[i] < 0) continue;
      this.sectors.end(first + i, versions[i]);
      if (!durable) continue;
      if (this.sectors.isLost(first + i, versions[i])) return -EIO;
      this.sectors.harden(first + i, versions[i]);
    }
    return 0;
  }
}

function said(result: number): string {
  return result === 0 ? 'done' : `fails (${result})`;
}
