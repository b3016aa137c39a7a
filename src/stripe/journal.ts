/**
 * Brings bits of stripes to the metadata file, in groups: one sync of the data that they speak of, one
 * write of each part of the file that changes, one sync of it, and only then are they told as published.
 * While one group is on its way the next one gathers.
 */
import { backoffMs } from './backoff.ts';
import type { Clock, MetadataStore, TargetDisk } from './interfaces.ts';
import type { MetadataLayout } from './metadata_layout.ts';

/** Bits to set for a stripe. */
export interface Change {
  stripe: number;
  bits: number;
  /** The bits speak of data that was written to the disk and must be durable before them. */
  afterData: boolean;
}

export interface JournalListener {
  /** The bits are durable. */
  published(change: Change): void;
  /**
   * Storage has failed: all that was written up to now and isn't durable may be lost, without any later
   * sync telling so. What is known of it, these changes, follows.
   */
  dataLost(error: Error, changes: number): void;
  /** The data may be lost: the change is forgotten. */
  dataFailed(change: Change, error: Error): void;
  /** The metadata file could not be written, and is tried again. */
  metadataFailed(error: Error, changes: number): void;
  /** It has failed for a while, with a change that is tried on; whoever waits should not. */
  unrecorded(change: Change): void;
}

export interface JournalOptions {
  /** What nobody waits for is brought out when it is this old, in milliseconds. */
  patienceMs: number;
  /** Or when there are so many. */
  patienceChanges: number;
  /** A group has no more. */
  groupChanges: number;
  /** So many are told of in one turn of the event loop. */
  turnChanges: number;
  /** Failures of the metadata file in a row before {@link JournalListener.unrecorded}. */
  attempts: number;
}

export const defaultJournalOptions: JournalOptions = {
  patienceMs: 200,
  patienceChanges: 128,
  groupChanges: 1024,
  turnChanges: 256,
  attempts: 5,
};

const FIRST_DELAY_MS = 50;
const LAST_DELAY_MS = 5000;
/** Parts of the file that are next to each other are written together up to this size. */
const MAX_WRITE_BYTES = 1 << 20;

export class Journal {
  private pending: Change[] = [];
  /** In the headers, and not yet known to be durable. */
  private written: Change[] = [];
  /** Units of the file, by number, that differ from the headers. */
  private readonly dirty = new Set<number>();
  private urgent = false;
  private running = false;
  /** Of the last run. */
  private done = Promise.resolve();
  private readonly ending = new AbortController();
  /** Nothing is written any more. */
  private over = false;
  private timer: AbortController | null = null;
  private failures = 0;
  private failure: Error | null = null;
  private count = 0;

  /**
   * @param headers one byte for each stripe, as they are in the file; changed here alone
   */
  constructor(
    private readonly layout: MetadataLayout,
    private readonly headers: Uint8Array,
    private readonly store: MetadataStore,
    private readonly target: Pick<TargetDisk, 'sync'>,
    private readonly clock: Clock,
    private readonly listener: JournalListener,
    private readonly options: JournalOptions = defaultJournalOptions,
  ) {}

  /** @param urgent somebody waits for it */
  add(change: Change, urgent: boolean): void {
    this.pending.push(change);
    this.count++;
    if (urgent || this.pending.length >= this.options.patienceChanges) this.hurry();
    else this.waitPatiently();
  }

  /** Brings out at once what is pending. */
  hurry(): void {
    this.urgent = true;
    this.timer?.abort();
    if (this.running || this.over) return;
    if (this.pending.length + this.written.length > 0) this.done = this.run();
  }

  /**
   * Brings out what was added; what fails from now on is not tried again. Resolves when nothing is under
   * way, and nothing will be.
   */
  async end(): Promise<void> {
    this.ending.abort();
    while (this.running || (!this.over && this.pending.length > 0)) {
      this.hurry();
      await this.done;
    }
    this.over = true;
  }

  /** Tries since the metadata file was written last, and why the last one failed. */
  get trouble(): { attempts: number; message: string | null } {
    return { attempts: this.failures, message: this.failure?.message ?? null };
  }

  /** Changes that are not on record yet. */
  get unfinished(): number {
    return this.count;
  }

  private waitPatiently(): void {
    if (this.timer || this.running || this.over) return;
    const timer = new AbortController();
    this.timer = timer;
    this.clock.sleep(this.options.patienceMs, timer.signal).then(() => {
      if (this.timer === timer) this.timer = null;
      if (!timer.signal.aborted) this.hurry();
    });
  }

  private async run(): Promise<void> {
    this.running = true;
    this.timer = null;
    // What else comes in this turn goes along.
    await null;
    while (!this.over && (this.urgent || this.written.length > 0)) {
      const group = this.pending.splice(0, this.options.groupChanges);
      this.urgent = this.pending.length > 0;
      await this.bringOut(await this.withDurableData(group));
      if (this.pending.length >= this.options.patienceChanges) this.urgent = true;
    }
    this.running = false;
    if (this.pending.length > 0) this.waitPatiently();
  }

  /** The changes whose data is durable. */
  private async withDurableData(group: Change[]): Promise<Change[]> {
    if (!group.some(({ afterData }) => afterData)) return group;
    try {
      await this.target.sync();
      return group;
    } catch (error) {
      // What was written since the sync began is as doubtful.
      const doubtful = [...group, ...this.pending].filter(({ afterData }) => afterData);
      this.pending = this.pending.filter(({ afterData }) => !afterData);
      this.count -= doubtful.length;
      this.listener.dataLost(error as Error, doubtful.length);
      await this.tell(doubtful, (change) => this.listener.dataFailed(change, error as Error));
      return group.filter(({ afterData }) => !afterData);
    }
  }

  private async bringOut(group: Change[]): Promise<void> {
    const { unitBytes } = this.store;
    for (const { stripe, bits } of group) {
      this.headers[stripe] |= bits;
      this.dirty.add(Math.floor(this.layout.sectorOffset(stripe) / unitBytes));
    }
    this.written = this.written.concat(group);
    if (this.written.length === 0) return;
    try {
      // After a failed sync nobody knows what of the last writes is durable: `dirty` has them still.
      await this.writeDirty();
      await this.store.sync();
    } catch (error) {
      await this.failed(error as Error);
      return;
    }
    this.failures = 0;
    this.failure = null;
    this.dirty.clear();
    const published = this.written;
    this.written = [];
    this.count -= published.length;
    await this.tell(published, (change) => this.listener.published(change));
  }

  private async failed(error: Error): Promise<void> {
    this.failures++;
    this.failure = error;
    this.listener.metadataFailed(error, this.written.length);
    if (this.failures >= this.options.attempts) {
      // Also those whose group's turn has not come: it would fail as well.
      const waiting = this.written.concat(this.pending);
      await this.tell(waiting, (change) => this.listener.unrecorded(change));
    }
    if (this.ending.signal.aborted) {
      this.over = true;
      return;
    }
    const delayMs = backoffMs(this.failures, FIRST_DELAY_MS, LAST_DELAY_MS);
    await this.clock.sleep(delayMs, this.ending.signal);
    // What came meanwhile goes along.
    this.urgent = true;
  }

  /** Others have their turn between what a large group leads to. */
  private async tell(changes: Change[], call: (change: Change) => void): Promise<void> {
    for (let i = 0; i < changes.length; i++) {
      if (i > 0 && i % this.options.turnChanges === 0) await this.clock.sleep(0);
      call(changes[i]);
    }
  }

  private async writeDirty(): Promise<void> {
    const { unitBytes } = this.store;
    const units = [...this.dirty].sort((a, b) => a - b);
    for (let i = 0; i < units.length; ) {
      const first = units[i];
      let count = 1;
      while (units[i + count] === first + count && (count + 1) * unitBytes <= MAX_WRITE_BYTES)
        count++;
      const bytes = new Uint8Array(count * unitBytes);
      this.layout.encode(this.headers, first * unitBytes, bytes);
      await this.store.write(first * unitBytes, bytes);
      i += count;
    }
  }
}
