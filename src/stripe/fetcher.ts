/**
 * Copies stripes from the source to the disk: those that somebody waits for first, then those that queues
 * wish to have, then, if asked for, all others.
 *
 * What fails while somebody waits for it is tried again, later and later, for as long as the process
 * lives. As long as nothing succeeds, one stripe of the others at a time is tried, later and later, too;
 * when one does, everything goes on. Only what has been recorded has succeeded: data may be written well
 * and never become durable.
 */
import { backoffMs } from './backoff.ts';
import type { Clock, StripeBuffer, StripeSource, TargetDisk } from './interfaces.ts';

export interface FetchOptions {
  stripeBytes: number;
  diskBytes: number;
  /** Bytes a second for stripes that nobody has asked for; 0: no limit. */
  autofetchBytesPerSecond: number;
  /** With so many stripes on their way, none is begun that nobody waits for. */
  mostUnrecorded?: number;
}

export interface FetchFailure {
  stripe: number;
  attempts: number;
  message: string;
}

/** What has come from the source since the process began; bytes of the disk. */
export interface FetchTotals {
  /** Fetches whose data is on the disk. */
  stripes: number;
  /** Carried from the source. */
  bytesRead: number;
  /** Shared with the source's blocks: nothing was carried. */
  bytesShared: number;
  /** The source has nothing there but zeroes. */
  bytesZero: number;
  /** Fetches that failed. */
  failures: number;
}

/** A fetch that takes long. */
export interface SlowFetch {
  stripe: number;
  /** For which it has been under way. */
  seconds: number;
}

/** Whoever decides what is fetched, and sees to what was. */
export interface FetchListener {
  /**
   * The next stripe that nobody has asked for, to be fetched at once; -1 where there is none now.
   * @param probe nothing has succeeded lately: it is better taken from anywhere
   */
  nextIdle(probe: boolean): number;
  /** A stripe that was wished for is begun. */
  wishBegun(stripe: number): void;
  /** A stripe's data is on the disk, and not yet durable. */
  written(stripe: number): void;
  /** A stripe could not be read, or not be written. */
  failed(stripe: number, error: Error): void;
  /** What is to become of a stripe that has failed. */
  fate(stripe: number): Fate;
}

/**
 * - `awaited`: somebody waits for it, it is tried again
 * - `claimed`: somebody overwrites it
 * - `left`: it comes again some time
 */
export type Fate = 'awaited' | 'claimed' | 'left';

/** A stripe that has failed and is waited for, until it is recorded. */
interface Retry {
  attempts: number;
  /** Those of them that came when their time had come: they make the rest longer. */
  rounds: number;
  message: string;
  /** It waits for its next try. */
  resting: boolean;
  /** The last try was to come later. */
  early: boolean;
  /** It has been tried once in this rest because another stripe had succeeded. */
  hurried: boolean;
}

/** A time in which nothing succeeds. */
interface Outage {
  /** Fetches that began earlier say nothing of it. */
  firstFetch: number;
  /** Failures that came together count once. */
  rounds: number;
  /** Until then, nothing is tried that nobody waits for. */
  restUntilMs: number;
  /** The one stripe that nobody waits for and that is tried; -1: none. */
  probe: number;
  /** The last of those that failed. */
  unawaited: FetchFailure | null;
}

const FIRST_DELAY_MS = 100;
const LAST_DELAY_MS = 30_000;
/** What takes longer is shown. */
const SLOW_MS = 5000;
/** How long the end waits for what is under way. */
const END_PATIENCE_MS = 3000;
const MOST_UNRECORDED = 256;
/** Buffers that stripes nobody waits for leave to those that somebody does. */
const RESERVED = (buffers: number) => (buffers > 2 ? Math.ceil(buffers / 4) : buffers > 1 ? 1 : 0);

/** How many buffers there must be for so many stripes at once that nobody waits for. */
export function buffersFor(unawaited: number): number {
  return Math.ceil((unawaited * 4) / 3);
}

export class Fetcher {
  /** Stripes that somebody waits for and that are not begun, in order; likewise the wished ones. */
  private readonly awaited = new Set<number>();
  private readonly wished = new Set<number>();
  /** Since when, in the clock's milliseconds. */
  private readonly running = new Map<number, number>();
  /** Those of them that count as failed whatever becomes of them, and why. */
  private readonly doubtful = new Map<number, Error>();
  /** Those whose data is written and not recorded, and the number of their fetch. */
  private readonly unrecorded = new Map<number, number>();
  private readonly retries = new Map<number, Retry>();
  private outage: Outage | null = null;
  private fetches = 0;
  readonly totals: FetchTotals = {
    stripes: 0,
    bytesRead: 0,
    bytesShared: 0,
    bytesZero: 0,
    failures: 0,
  };
  private readonly free: StripeBuffer[];
  private readonly buffers: number;
  private readonly stop = new AbortController();
  private settled = Promise.withResolvers<void>();
  private autofetching = false;
  /** When the next stripe that nobody has asked for may be begun, in the clock's milliseconds. */
  private autofetchAtMs = 0;
  /** When it goes on by itself. */
  private wakeAtMs = Number.POSITIVE_INFINITY;

  /** @param buffers each for a whole stripe */
  constructor(
    private readonly options: FetchOptions,
    private readonly source: StripeSource,
    private readonly target: TargetDisk,
    private readonly clock: Clock,
    buffers: StripeBuffer[],
    private readonly listener: FetchListener,
  ) {
    this.free = [...buffers];
    this.buffers = buffers.length;
    source.whenBack?.(() => this.retryFailed());
  }

  /** Stripes that wait for their turn or their next try. */
  get queued(): number {
    let count = this.awaited.size + this.wished.size;
    for (const { resting } of this.retries.values()) if (resting) count++;
    return count;
  }

  get inFlight(): number {
    return this.running.size;
  }

  /** How many stripes fail that somebody waits for, and whether others do counts as one. */
  get failingCount(): number {
    return this.retries.size + (this.outage?.unawaited ? 1 : 0);
  }

  /** So many of them at most, and why. */
  failing(most: number): FetchFailure[] {
    const failures: FetchFailure[] = [];
    if (this.outage?.unawaited) failures.push(this.outage.unawaited);
    for (const [stripe, { attempts, message }] of this.retries) {
      if (failures.length >= most) break;
      failures.push({ stripe, attempts, message });
    }
    return failures;
  }

  /** What takes long, be it that the source hangs. */
  get slow(): SlowFetch[] {
    const now = this.clock.now();
    return [...this.running]
      .filter(([, since]) => now - since >= SLOW_MS)
      .map(([stripe, since]) => ({ stripe, seconds: Math.floor((now - since) / 1000) }));
  }

  /** Nothing has succeeded since the last failure. */
  get inOutage(): boolean {
    return this.outage !== null;
  }

  /** Somebody waits for a stripe from now on; one that has failed is tried at once. */
  request(stripe: number): void {
    if (this.running.has(stripe)) return;
    this.wished.delete(stripe);
    this.tryNow(stripe, true);
    this.pump();
  }

  /** A stripe is to be fetched when nobody waits for another one. */
  wish(stripe: number): void {
    this.wished.add(stripe);
    this.pump();
  }

  /** Somebody overwrites a stripe that nobody waits for. @returns whether it was wished for */
  forget(stripe: number): boolean {
    this.noLongerFails(stripe);
    return this.wished.delete(stripe);
  }

  /** A stripe is on record as local, whoever has made it so. */
  recorded(stripe: number): void {
    this.noLongerFails(stripe);
    const { outage } = this;
    const fetch = this.unrecorded.get(stripe);
    if (fetch === undefined) return;
    this.unrecorded.delete(stripe);
    if (outage && fetch >= outage.firstFetch) this.endOutage();
    this.pump();
  }

  /** The data of a stripe may be lost that was written and not recorded. */
  again(stripe: number, error: Error): void {
    this.unrecorded.delete(stripe);
    this.retryOrForget(stripe, error);
    this.pump();
  }

  /** What is being written may be lost without anybody being told: it is fetched once more. */
  doubtRunning(error: Error): void {
    for (const stripe of this.running.keys()) this.doubtful.set(stripe, error);
    this.noteFailure();
  }

  /** All that has failed is tried at once, whatever the reason is to believe in it. */
  retryFailed(): void {
    for (const [stripe, retry] of this.retries) if (retry.resting) this.tryNow(stripe, true);
    if (this.outage) this.outage.restUntilMs = this.clock.now();
    this.pump();
  }

  set autofetch(on: boolean) {
    this.autofetching = on;
    if (on) this.pump();
  }

  get autofetch(): boolean {
    return this.autofetching;
  }

  /**
   * Begins nothing more; resolves when nothing is under way, or only what may hang for ever: it is not
   * told of, and will be fetched again.
   */
  async end(): Promise<void> {
    this.stop.abort();
    this.settled = Promise.withResolvers();
    if (this.running.size === 0) return;
    await Promise.race([this.settled.promise, this.clock.sleep(END_PATIENCE_MS)]);
  }

  /** Begins what can be begun. */
  pump(): void {
    while (!this.stop.signal.aborted && this.free.length > 0) {
      const stripe = this.next();
      if (stripe < 0) return;
      this.awaited.delete(stripe);
      this.wished.delete(stripe);
      this.running.set(stripe, this.clock.now());
      this.fetch(stripe, this.free.pop() as StripeBuffer);
    }
  }

  private next(): number {
    for (const stripe of this.awaited) return stripe;
    if (!this.autofetching && this.wished.size === 0) return -1;
    if (this.free.length <= RESERVED(this.buffers)) return -1;
    const { mostUnrecorded = MOST_UNRECORDED } = this.options;
    if (this.running.size + this.unrecorded.size >= mostUnrecorded) return -1;
    return this.outage ? this.nextProbe(this.outage) : this.nextUnawaited();
  }

  private nextUnawaited(): number {
    const stripe = this.nextWished();
    return stripe >= 0 ? stripe : this.nextIdle(false);
  }

  /** Autofetch can choose; wishes may be for what can't be had, and come again and again. */
  private nextProbe(outage: Outage): number {
    if (outage.probe >= 0 || !this.isTime(outage.restUntilMs)) return -1;
    outage.probe = this.nextIdle(true);
    if (outage.probe < 0) outage.probe = this.nextWished();
    return outage.probe;
  }

  private nextWished(): number {
    for (const stripe of this.wished) {
      this.listener.wishBegun(stripe);
      return stripe;
    }
    return -1;
  }

  private nextIdle(probe: boolean): number {
    if (!this.autofetching || !this.isTime(this.autofetchAtMs)) return -1;
    const stripe = this.listener.nextIdle(probe);
    const { autofetchBytesPerSecond, stripeBytes } = this.options;
    if (stripe >= 0 && autofetchBytesPerSecond > 0) {
      const from = Math.max(this.autofetchAtMs, this.clock.now() - 1000);
      this.autofetchAtMs = from + (stripeBytes / autofetchBytesPerSecond) * 1000;
    }
    return stripe;
  }

  /** Whether a time has come; otherwise it goes on by itself when it has. */
  private isTime(ms: number): boolean {
    const now = this.clock.now();
    if (ms <= now) return true;
    if (this.wakeAtMs <= ms) return false;
    this.wakeAtMs = ms;
    this.clock.sleep(ms - now, this.stop.signal).then(() => {
      if (this.wakeAtMs === ms) this.wakeAtMs = Number.POSITIVE_INFINITY;
      this.pump();
    });
    return false;
  }

  private async fetch(stripe: number, buffer: StripeBuffer): Promise<void> {
    const { stripeBytes, diskBytes } = this.options;
    const offset = stripe * stripeBytes;
    const length = Math.min(stripeBytes, diskBytes - offset);
    const part = { address: buffer.address, bytes: buffer.bytes.subarray(0, length) };
    const number = this.fetches++;
    let error: Error | null = null;
    try {
      if (await this.source.copy?.(stripe, offset, length)) this.totals.bytesShared += length;
      else await this.carry(stripe, offset, part);
    } catch (thrown) {
      error = thrown as Error;
    }
    this.free.push(buffer);
    this.running.delete(stripe);
    if (this.running.size === 0) this.settled.resolve();
    const lost = this.doubtful.get(stripe);
    this.doubtful.delete(stripe);
    if (this.stop.signal.aborted) return;
    if (error) {
      this.totals.failures++;
      this.listener.failed(stripe, error);
    }
    error ??= lost ?? null;
    if (error) {
      this.noteFailure();
      this.retryOrForget(stripe, error);
    } else {
      this.totals.stripes++;
      this.unrecorded.set(stripe, number);
      this.listener.written(stripe);
    }
    this.pump();
  }

  private async carry(stripe: number, offset: number, part: StripeBuffer): Promise<void> {
    const { signal } = this.stop;
    // After the end, nobody may be there any more who waits for it.
    if (signal.aborted) return;
    const hasData = await this.source.read(stripe, part, signal);
    if (signal.aborted) return;
    if (hasData) {
      await this.target.write(offset, part);
      this.totals.bytesRead += part.bytes.length;
    } else {
      await this.target.zero(offset, part.bytes.length);
      this.totals.bytesZero += part.bytes.length;
      // It may have waited for nothing: others get their turn before the next one.
      await this.clock.sleep(0);
    }
  }

  private noteFailure(): void {
    const now = this.clock.now();
    const firstFetch = this.fetches;
    this.outage ??= { firstFetch, rounds: 0, restUntilMs: now, probe: -1, unawaited: null };
    const { outage } = this;
    if (now < outage.restUntilMs) return;
    outage.restUntilMs = now + backoffMs(++outage.rounds, FIRST_DELAY_MS, LAST_DELAY_MS);
  }

  private retryOrForget(stripe: number, { message }: Error): void {
    const { outage } = this;
    if (outage?.probe === stripe) outage.probe = -1;
    const before = this.retries.get(stripe);
    this.noLongerFails(stripe);
    const fate = this.listener.fate(stripe);
    if (fate === 'left' && outage) outage.unawaited = { stripe, attempts: outage.rounds, message };
    if (fate !== 'awaited') return;
    this.rest(stripe, message, before);
  }

  private rest(stripe: number, message: string, before: Retry | undefined): void {
    const { attempts = 0, rounds = 0, early = false, hurried = false } = before ?? {};
    const retry = {
      attempts: attempts + 1,
      rounds: early ? rounds : rounds + 1,
      message,
      resting: true,
      early: false,
      hurried: early && hurried,
    };
    this.retries.set(stripe, retry);
    const delayMs = backoffMs(retry.rounds, FIRST_DELAY_MS, LAST_DELAY_MS);
    this.clock.sleep(delayMs, this.stop.signal).then(() => {
      if (this.retries.get(stripe) !== retry || !retry.resting) return;
      this.tryNow(stripe, false);
      this.pump();
    });
  }

  private noLongerFails(stripe: number): void {
    this.retries.delete(stripe);
    if (this.outage?.unawaited?.stripe === stripe) this.outage.unawaited = null;
  }

  private tryNow(stripe: number, early: boolean): void {
    const retry = this.retries.get(stripe);
    if (retry) Object.assign(retry, { resting: false, early });
    this.awaited.add(stripe);
  }

  /** What has failed goes on; but not time and again what fails though others succeed. */
  private endOutage(): void {
    this.outage = null;
    for (const [stripe, retry] of this.retries) {
      if (!retry.resting || retry.hurried) continue;
      retry.hurried = true;
      this.tryNow(stripe, true);
    }
  }
}
