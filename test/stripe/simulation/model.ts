/**
 * What a disk may hold, sector by sector, by what its guest has done: the values that a read may see
 * now, and those that may be there after a power cut. The lists are never changed, only replaced, so
 * that reads and flushes can keep what was true when they began.
 */
import { describe } from './values.ts';

interface Entry {
  value: number;
  /** The request that wrote it; 0: it was there before. */
  request: number;
}

type Entries = readonly Entry[];

export interface ModelWrite {
  request: number;
  first: number;
  entries: Entry[];
  /** It may also leave sectors as they are. */
  blurred: boolean;
  durable: boolean;
}

export interface ModelRead {
  first: number;
  allowed: Entries[];
}

export interface ModelFlush {
  request: number;
  seen: Entries[];
  /** Another one failed meanwhile: what this one says is worth nothing. */
  void: boolean;
}

/** Writes that were under way together on a sector. */
interface Group {
  entries: Entry[];
  running: number;
  succeeded: boolean;
  blurred: boolean;
}

export class Model {
  private readonly now: Entries[];
  private readonly kept: Entries[];
  private readonly groups: (Group | null)[];
  private readonly reads = new Set<ModelRead>();
  private readonly flushes = new Set<ModelFlush>();
  private requests = 0;

  /** @param changed is told of sectors after which a power cut may leave less, or something else */
  constructor(
    private readonly sectors: number,
    initial: (sector: number) => number,
    private readonly changed: (sector: number) => void,
  ) {
    this.now = Array.from({ length: sectors }, (_, i) => [{ value: initial(i), request: 0 }]);
    this.kept = this.now.slice();
    this.groups = new Array(sectors).fill(null);
  }

  /** A write begins. @param valueAt what it puts into its n-th sector */
  write(
    first: number,
    count: number,
    valueAt: (index: number) => number,
    blurred: boolean,
    durable: boolean,
  ): ModelWrite {
    const request = ++this.requests;
    const entries: Entry[] = [];
    for (let i = 0; i < count; i++) {
      const sector = first + i;
      const entry = { value: valueAt(i), request };
      entries.push(entry);
      this.now[sector] = [...this.now[sector], entry];
      this.kept[sector] = [...this.kept[sector], entry];
      this.groups[sector] ??= { entries: [], running: 0, succeeded: false, blurred: false };
      const group = this.groups[sector] as Group;
      group.entries.push(entry);
      group.running++;
      group.blurred ||= blurred;
      for (const read of this.reads) {
        const at = sector - read.first;
        if (at >= 0 && at < read.allowed.length) read.allowed[at] = [...read.allowed[at], entry];
      }
    }
    return { request, first, entries, blurred, durable };
  }

  /** A write is answered. Where it failed, each of its sectors is as before or as it should be. */
  written({ first, entries, durable }: ModelWrite, ok: boolean): void {
    for (let i = 0; i < entries.length; i++) {
      const sector = first + i;
      const group = this.groups[sector] as Group;
      group.running--;
      group.succeeded ||= ok;
      if (group.running > 0) continue;
      this.groups[sector] = null;
      if (!group.succeeded || group.blurred) continue;
      this.now[sector] = group.entries;
      if (!durable || !ok || group.entries.length > 1) continue;
      this.kept[sector] = group.entries;
      this.changed(sector);
    }
  }

  read(first: number, count: number): ModelRead {
    const read = { first, allowed: this.now.slice(first, first + count) };
    this.reads.add(read);
    return read;
  }

  /**
   * A read is answered.
   * @param valueAt what it found in its n-th sector
   * @returns what is wrong with that, or null
   */
  readEnded(read: ModelRead, valueAt: ((index: number) => number) | null): string | null {
    this.reads.delete(read);
    if (!valueAt) return null;
    for (let i = 0; i < read.allowed.length; i++) {
      const value = valueAt(i);
      const allowed = read.allowed[i];
      if (allowed.some((entry) => entry.value === value)) continue;
      return `sector ${read.first + i} reads as ${describe(value)}, not ${listed(allowed)}`;
    }
    return null;
  }

  flush(): ModelFlush {
    const flush = { request: this.requests, seen: this.now.slice(), void: false };
    this.flushes.add(flush);
    return flush;
  }

  flushed(flush: ModelFlush, ok: boolean): void {
    this.flushes.delete(flush);
    if (!ok) {
      this.flushFailed();
      return;
    }
    if (flush.void) return;
    for (let sector = 0; sector < this.sectors; sector++) {
      const kept = this.kept[sector];
      if (kept.length === 1) continue;
      const seen = flush.seen[sector];
      const left = kept.filter((entry) => entry.request > flush.request || seen.includes(entry));
      if (left.length === kept.length) continue;
      this.kept[sector] = left;
      this.changed(sector);
    }
  }

  /** Nobody knows what of all that wasn't flushed is durable, also when a later flush succeeds. */
  private flushFailed(): void {
    for (const flush of this.flushes) flush.void = true;
    for (let sector = 0; sector < this.sectors; sector++) {
      const now = this.now[sector];
      const doubtful = this.kept[sector].filter((entry) => !now.includes(entry));
      if (doubtful.length > 0) this.now[sector] = [...doubtful, ...now];
      const group = this.groups[sector];
      if (group) group.blurred = true;
    }
  }

  /** Whether a power cut may leave a value. */
  mayKeep(sector: number, value: number): boolean {
    const kept = this.kept[sector];
    for (let i = 0; i < kept.length; i++) if (kept[i].value === value) return true;
    return false;
  }

  /** In words, what a power cut may leave. */
  describeKept(sector: number): string {
    return listed(this.kept[sector]);
  }

  /** Nobody hears of what was under way any more. @param left what is there after a power cut */
  restarted(left: ((sector: number) => number) | null): void {
    this.reads.clear();
    this.flushes.clear();
    this.groups.fill(null);
    if (!left) return;
    for (let sector = 0; sector < this.sectors; sector++) {
      this.now[sector] = [{ value: left(sector), request: 0 }];
      this.kept[sector] = this.now[sector];
      this.changed(sector);
    }
  }
}

function listed(entries: Entries): string {
  return [...new Set(entries.map(({ value }) => describe(value)))].join(' or ');
}
