/**
 * The one that changes stripes' states. Queues ask it for stripes; it has them fetched, or lets a
 * request that overwrites a whole stripe fill it, has the bits recorded, publishes them, and answers.
 *
 * A stripe becomes visible in this order: its data is written; the data is durable; its bits are
 * durable; its shared state changes; whoever asked is answered.
 */
import { EIO } from '../../ffi/errno.ts';
import type { Log } from '../log.ts';
import {
  type Fate,
  Fetcher,
  type FetchFailure,
  type FetchOptions,
  type FetchTotals,
  type SlowFetch,
} from './fetcher.ts';
import { IdleStripes } from './idle_stripes.ts';
import type {
  Clock,
  MetadataStore,
  SourceConnections,
  StripeBuffer,
  StripeSource,
  TargetDisk,
} from './interfaces.ts';
import { type Change, Journal, type JournalOptions } from './journal.ts';
import type { MetadataLayout } from './metadata_layout.ts';
import {
  CLAIMED,
  eachStripe,
  FETCHED,
  GRANTED,
  HAS_SOURCE,
  type QueueMessage,
  type SharedStripes,
  Want,
  WRITTEN,
} from './shared_state.ts';
import { TroubleLog } from './trouble_log.ts';

interface Asker {
  queue: number;
  want: Want;
}

/**
 * - `fetch`: it waits for the source, or is under way
 * - `claimed`: a request fills it
 * - `commit`: its data is written; its bits are on their way
 * - `record`: it is local; that it is written to is on its way
 */
type Phase = 'fetch' | 'claimed' | 'commit' | 'record';

/** A stripe that something happens to. */
interface Work {
  phase: Phase;
  /**
   * Who is answered when it is local, or recorded, in the order in which they came. Whoever would
   * overwrite all of it may do so when its turn comes, never before: a request waits for earlier ones
   * only, and so none for itself.
   */
  askers: Asker[];
  /** Who overwrites it, or has done so and waits for the bits. */
  holder: Asker | null;
  /** What the holder writes may be lost, and no sync will say so. */
  doubtful: boolean;
  /** A queue wishes to have it, and doesn't wait for it. */
  wished: boolean;
}

export interface CoordinatorParts {
  layout: MetadataLayout;
  /** As they are in the metadata file; the coordinator's own from now on. */
  headers: Uint8Array;
  shared: SharedStripes;
  /** Null where nothing is to be fetched. */
  source: StripeSource | null;
  target: TargetDisk;
  store: MetadataStore;
  clock: Clock;
  /** For whole stripes, at least one where there is a source. */
  buffers: StripeBuffer[];
  /** Tells a queue that there are answers for it. */
  wake: (queue: number) => void;
  /** For what fails. */
  log: Pick<Log, 'warn' | 'info'>;
}

export interface CoordinatorOptions extends FetchOptions {
  trackWritten: boolean;
  autofetch: boolean;
  journal?: JournalOptions;
}

export interface StripeStatus {
  total: number;
  source: number;
  fetched: number;
  /** The first of them. */
  failing: FetchFailure[];
  failingCount: number;
  slow: SlowFetch[];
  /** Stripes that wait for a fetch, and those under way. */
  queued: number;
  inFlight: number;
  autofetch: boolean;
  /** Null where nothing was left to fetch when the process began. */
  origin: StripeOrigin | null;
  metadataFailing: boolean;
  metadata: {
    /** Tries since it was written last, and why the last one failed. */
    attempts: number;
    message: string | null;
    /** Changes that are not on record yet. */
    pending: number;
  };
}

/** Where stripes come from, and what has. */
export interface StripeOrigin extends FetchTotals {
  description: string;
  /** False when all is fetched: it is needed no more. */
  inUse: boolean;
  /** Bytes that requests have read from the image without its stripes' becoming local. */
  bytesFromImage: number;
  /** Null for a source that has none. */
  connections: SourceConnections | null;
}

function newWork(phase: Phase, ...askers: Asker[]): Work {
  return { phase, askers, holder: null, doubtful: false, wished: false };
}

const BACKLOG_RETRY_MS = 1;
/** Failing stripes that the status names. */
const MOST_FAILING = 100;

export class Coordinator {
  private readonly work = new Map<number, Work>();
  private readonly journal: Journal;
  private readonly fetcher: Fetcher | null;
  private readonly idle: IdleStripes;
  private readonly fetchTrouble: TroubleLog;
  private readonly dataTrouble: TroubleLog;
  private readonly metadataTrouble: TroubleLog;
  private readonly stopping = new AbortController();
  private readonly states: Uint8Array;
  /** Answers that a queue's ring had no room for. */
  private readonly backlogs = new Map<number, { stripe: number; want: Want; result: number }[]>();
  /** Queues that have answers since they were woken. */
  private readonly toWake = new Set<number>();
  private readonly total: number;
  private sourceStripes = 0;
  private fetchedStripes = 0;
  private givenUp = false;
  private closing: Promise<void> | null = null;

  constructor(
    private readonly options: CoordinatorOptions,
    private readonly parts: CoordinatorParts,
  ) {
    const { layout, headers, shared, store, target, clock, source, buffers, log } = parts;
    this.states = shared.states;
    this.total = layout.stripes;
    this.states.set(headers.subarray(0, this.total));
    for (let i = 0; i < this.total; i++) {
      if (headers[i] & HAS_SOURCE) {
        this.sourceStripes++;
        if (headers[i] & FETCHED) this.fetchedStripes++;
      }
    }
    const listener = {
      published: (change: Change) => this.published(change),
      dataLost: (error: Error, changes: number) => this.dataLost(error, changes),
      dataFailed: (change: Change, error: Error) => this.dataFailed(change, error),
      metadataFailed: (error: Error, changes: number) => this.metadataFailed(error, changes),
      unrecorded: (change: Change) => this.unrecorded(change),
    };
    this.journal = new Journal(layout, headers, store, target, clock, listener, options.journal);
    this.fetcher = source
      ? new Fetcher(options, source, target, clock, buffers, {
          nextIdle: (probe) => this.nextIdle(probe),
          wishBegun: (stripe) => this.wishBegun(stripe),
          written: (stripe) => this.fetched(stripe),
          failed: (stripe, error) => this.fetchFailed(stripe, error),
          fate: (stripe) => this.fate(stripe),
        })
      : null;
    this.idle = new IdleStripes(
      this.total,
      clock,
      (stripe) => !this.isLocal(stripe) && !this.work.has(stripe),
      () => this.fetcher?.pump(),
    );
    const trouble = (over: string) => new TroubleLog(log, clock, over, this.stopping.signal);
    this.fetchTrouble = trouble('stripes are fetched again');
    this.dataTrouble = trouble('data is made durable again');
    this.metadataTrouble = trouble("stripes' states are recorded again");
    this.noteQuiet();
  }

  /** Begins what goes on by itself. */
  start(): void {
    if (this.fetcher && this.options.autofetch) this.fetcher.autofetch = true;
    this.closeSourceIfDone();
  }

  /** A queue's message. */
  receive(message: QueueMessage): void {
    const { queue } = message;
    this.flushBacklog(queue);
    if (message.kind === 'ask') {
      for (const { want, ...run } of message.asks) {
        eachStripe(run, (stripe) => this.ask(stripe, { queue, want }));
      }
    } else if (message.kind === 'wish') {
      for (const stripe of message.stripes) this.wish(stripe);
    } else if (message.kind === 'claimDone') {
      for (const run of message.stripes) {
        eachStripe(run, (stripe) => this.claimDone(stripe, message.ok));
      }
    }
  }

  get status(): StripeStatus {
    const { attempts, message } = this.journal.trouble;
    return {
      total: this.total,
      source: this.sourceStripes,
      fetched: this.fetchedStripes,
      failing: this.fetcher?.failing(MOST_FAILING) ?? [],
      failingCount: this.fetcher?.failingCount ?? 0,
      slow: this.fetcher?.slow ?? [],
      queued: this.fetcher?.queued ?? 0,
      inFlight: this.fetcher?.inFlight ?? 0,
      autofetch: this.fetcher?.autofetch ?? false,
      origin: this.origin,
      metadataFailing: attempts > 0,
      metadata: { attempts, message, pending: this.journal.unfinished },
    };
  }

  /** Whether stripes are fetched that nobody has asked for; nothing is where none is left. */
  set autofetch(on: boolean) {
    if (this.fetcher) this.fetcher.autofetch = on;
  }

  /** Has all that fails tried at once. @returns how much that is */
  retryFailed(): number {
    const failing = this.fetcher?.failingCount ?? 0;
    this.parts.source?.reconnect?.();
    this.fetcher?.retryFailed();
    return failing;
  }

  private get origin(): StripeOrigin | null {
    const { source, shared } = this.parts;
    if (!source || !this.fetcher) return null;
    return {
      ...this.fetcher.totals,
      description: source.description,
      inUse: this.closing === null,
      bytesFromImage: shared.bytesFromImage,
      connections: this.closing ? null : (source.connections ?? null),
    };
  }

  /** Fails whoever waits for something that may never come, now and from now on. */
  giveUp(): void {
    this.givenUp = true;
    for (const [stripe, work] of this.work) {
      // A request that fills a stripe ends by itself; queues expect its answer before those behind it.
      if (!work.holder) this.failAskers(stripe, work, -EIO);
    }
  }

  /** Fetches no more, records what is there to record, gives up the source. */
  async stop(): Promise<void> {
    this.stopping.abort();
    await this.fetcher?.end();
    // What the metadata file refuses stays as it was: those stripes are fetched again next time.
    await this.journal.end();
    await this.closeSource();
  }

  private ask(stripe: number, asker: Asker): void {
    const work = this.work.get(stripe);
    if (this.satisfied(stripe, asker.want)) {
      this.answer(stripe, asker, GRANTED);
    } else if (this.givenUp && !work?.holder) {
      this.answer(stripe, asker, -EIO);
    } else if (work) {
      this.join(stripe, work, asker);
    } else if (this.isLocal(stripe)) {
      this.record(stripe, newWork('record', asker));
    } else if (asker.want === Want.CLAIM) {
      this.claim(stripe, newWork('claimed'), asker);
    } else {
      this.fetch(stripe, newWork('fetch', asker));
    }
  }

  /** Somebody asks for a stripe that something happens to already. */
  private join(stripe: number, work: Work, asker: Asker): void {
    work.askers.push(asker);
    if (work.phase === 'commit' || work.phase === 'record') this.journal.hurry();
    if (work.phase === 'fetch') this.fetcher?.request(stripe);
  }

  private claim(stripe: number, work: Work, holder: Asker): void {
    work.phase = 'claimed';
    work.holder = holder;
    work.doubtful = false;
    if (this.fetcher?.forget(stripe)) work.wished = true;
    this.work.set(stripe, work);
    this.answer(stripe, holder, CLAIMED);
  }

  private fetch(stripe: number, work: Work): void {
    work.phase = 'fetch';
    this.work.set(stripe, work);
    if (this.fetcher) {
      this.fetcher.request(stripe);
    } else {
      this.work.delete(stripe);
      this.failAskers(stripe, work, -EIO);
    }
  }

  /** A queue would like to have a stripe, and doesn't wait for it. */
  private wish(stripe: number): void {
    const work = this.work.get(stripe);
    if (work) work.wished = true;
    else if (!this.isLocal(stripe)) this.fetcher?.wish(stripe);
  }

  private wishBegun(stripe: number): void {
    this.work.set(stripe, { ...newWork('fetch'), wished: true });
  }

  private fetched(stripe: number): void {
    this.commit(stripe, this.work.get(stripe) as Work);
  }

  private fetchFailed(stripe: number, { message }: Error): void {
    this.fetchTrouble.failed(`stripe ${stripe} could not be fetched: ${message}`);
  }

  /** Of a stripe that could not be fetched: it is tried again for those who need something of it. */
  private fate(stripe: number): Fate {
    const work = this.work.get(stripe) as Work;
    work.phase = 'fetch';
    if (work.askers.length === 0) {
      this.leave(stripe, work);
      return 'left';
    }
    if (work.askers[0].want !== Want.CLAIM) return 'awaited';
    this.claim(stripe, work, work.askers.shift() as Asker);
    return 'claimed';
  }

  /** Nothing happens any more to a stripe that isn't local. */
  private leave(stripe: number, work: Work): void {
    this.work.delete(stripe);
    this.idle.leave(stripe);
    // Autofetch comes back to it anyway.
    if (work.wished && !this.fetcher?.autofetch) this.fetcher?.wish(stripe);
    this.fetcher?.pump();
  }

  private commit(stripe: number, work: Work): void {
    work.phase = 'commit';
    const writes = work.holder !== null || work.askers.some(({ want }) => want !== Want.LOCAL);
    const bits = FETCHED | (writes && this.options.trackWritten ? WRITTEN : 0);
    const awaited = work.holder !== null || work.askers.length > 0;
    // After failures others wait to hear of a success.
    const urgent = awaited || this.fetcher?.inOutage === true;
    this.journal.add({ stripe, bits, afterData: true }, urgent);
  }

  private record(stripe: number, work: Work): void {
    work.phase = 'record';
    this.work.set(stripe, work);
    this.journal.add({ stripe, bits: WRITTEN, afterData: false }, true);
  }

  private claimDone(stripe: number, ok: boolean): void {
    const work = this.work.get(stripe);
    if (work?.phase !== 'claimed') throw new Error(`stripe ${stripe} was not claimed`);
    if (ok && !work.doubtful) this.commit(stripe, work);
    else this.claimFailed(stripe, work, ok);
  }

  /** Whoever comes next may try. @param waiting whether the holder is to be told */
  private claimFailed(stripe: number, work: Work, waiting: boolean): void {
    if (waiting) this.answer(stripe, work.holder as Asker, -EIO);
    work.holder = null;
    if (this.givenUp) this.failAskers(stripe, work, -EIO);
    if (work.askers[0]?.want === Want.CLAIM) {
      this.claim(stripe, work, work.askers.shift() as Asker);
    } else if (work.askers.length > 0) {
      this.fetch(stripe, work);
    } else {
      this.leave(stripe, work);
    }
  }

  private published({ stripe, bits, afterData }: Change): void {
    const before = this.states[stripe];
    Atomics.store(this.states, stripe, before | bits);
    if (bits & ~before & FETCHED && before & HAS_SOURCE) this.fetchedStripes++;
    const work = this.work.get(stripe);
    if (work) {
      this.work.delete(stripe);
      if (work.holder) this.ask(stripe, work.holder);
      for (const asker of work.askers) this.ask(stripe, asker);
    }
    this.metadataTrouble.succeeded();
    if (afterData) this.dataTrouble.succeeded();
    if (bits & FETCHED) this.fetcher?.recorded(stripe);
    if (this.fetcher?.failingCount === 0 && !this.fetcher.inOutage) this.fetchTrouble.succeeded();
    this.noteQuiet();
    this.closeSourceIfDone();
  }

  /** All that is on its way to the disk at the moment may be lost, too. */
  private dataLost(error: Error, changes: number): void {
    const what = `the data of ${stripes(changes)} could not be made durable`;
    this.dataTrouble.failed(`${what}: ${error.message}`);
    this.fetcher?.doubtRunning(error);
    for (const work of this.work.values()) if (work.phase === 'claimed') work.doubtful = true;
  }

  private dataFailed({ stripe }: Change, error: Error): void {
    const work = this.work.get(stripe);
    if (!work) return;
    if (work.holder) this.claimFailed(stripe, work, true);
    else this.fetcher?.again(stripe, error);
  }

  private metadataFailed({ message }: Error, changes: number): void {
    const what = `the state of ${stripes(changes)} could not be recorded`;
    this.metadataTrouble.failed(`${what}: ${message}`);
  }

  private unrecorded({ stripe }: Change): void {
    const work = this.work.get(stripe);
    if (!work) return;
    if (work.holder) this.answer(stripe, work.holder, -EIO);
    work.holder = null;
    this.failAskers(stripe, work, -EIO);
  }

  private failAskers(stripe: number, work: Work, result: number): void {
    const failed = work.askers;
    work.askers = [];
    for (const asker of failed) this.answer(stripe, asker, result);
  }

  private isLocal(stripe: number): boolean {
    const state = this.states[stripe];
    return (state & HAS_SOURCE) === 0 || (state & FETCHED) !== 0;
  }

  private satisfied(stripe: number, want: Want): boolean {
    if (!this.isLocal(stripe)) return false;
    if (want === Want.LOCAL || !this.options.trackWritten) return true;
    return (this.states[stripe] & WRITTEN) !== 0;
  }

  private answer(stripe: number, { queue, want }: Asker, result: number): void {
    const answer = { stripe, want, result };
    const backlog = this.backlogs.get(queue);
    if (backlog) backlog.push(answer);
    else if (!this.parts.shared.put(queue, answer)) this.delay(queue, answer);
    this.wakeSoon(queue);
  }

  /** Once, however many answers a queue gets in one go: each time is a system call. */
  private wakeSoon(queue: number): void {
    if (this.toWake.size === 0) queueMicrotask(() => this.wakeAll());
    this.toWake.add(queue);
  }

  private wakeAll(): void {
    for (const queue of this.toWake) this.parts.wake(queue);
    this.toWake.clear();
  }

  private delay(queue: number, answer: { stripe: number; want: Want; result: number }): void {
    this.backlogs.set(queue, [answer]);
    const later = async () => {
      while (this.backlogs.has(queue)) {
        await this.parts.clock.sleep(BACKLOG_RETRY_MS);
        this.flushBacklog(queue);
      }
    };
    later();
  }

  private flushBacklog(queue: number): void {
    const backlog = this.backlogs.get(queue);
    if (!backlog) return;
    let done = 0;
    while (done < backlog.length && this.parts.shared.put(queue, backlog[done])) done++;
    backlog.splice(0, done);
    if (backlog.length === 0) this.backlogs.delete(queue);
    if (done > 0) this.parts.wake(queue);
  }

  /** The next stripe for autofetch, which takes it at once; -1 where there is none now. */
  private nextIdle(probe: boolean): number {
    const stripe = probe ? this.idle.somewhere() : this.idle.next();
    if (stripe >= 0) this.work.set(stripe, newWork('fetch'));
    return stripe;
  }

  private noteQuiet(): void {
    const { shared } = this.parts;
    if (!this.options.trackWritten && this.fetchedStripes === this.sourceStripes)
      shared.quiet = true;
  }

  private closeSourceIfDone(): void {
    if (this.fetchedStripes === this.sourceStripes) this.closeSource().catch(() => {});
  }

  private closeSource(): Promise<void> {
    this.closing ??= this.parts.source?.close() ?? Promise.resolve();
    return this.closing;
  }
}

function stripes(count: number): string {
  return count === 1 ? '1 stripe' : `${count} stripes`;
}
