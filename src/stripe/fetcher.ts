/**
 * Copies stripes from the source to the disk: those that somebody waits for first, then, if asked for,
 * all others in the order of the disk. What fails is tried again, later and later, for as long as the
 * process lives.
 */
import type { Clock, StripeBuffer, StripeSource, TargetDisk } from './interfaces.ts';

export interface FetchOptions {
  stripeBytes: number;
  diskBytes: number;
  /** Bytes a second for stripes that nobody waits for; 0: no limit. */
  autofetchBytesPerSecond: number;
}

export interface FetchFailure {
  stripe: number;
  attempts: number;
  message: string;
}

/** A fetch that takes long. */
export interface SlowFetch {
  stripe: number;
  /** For which it has been under way. */
  seconds: number;
}

const FIRST_DELAY_MS = 100;
const LAST_DELAY_MS = 30_000;
/** What takes longer is shown. */
const SLOW_MS = 5000;
/** How long the end waits for what is under way. */
const END_PATIENCE_MS = 3000;
/** Buffers that stripes nobody waits for leave to those that somebody does. */
const RESERVED = (buffers: number) => (buffers > 2 ? Math.ceil(buffers / 4) : buffers > 1 ? 1 : 0);

export class Fetcher {
  /** Stripes that somebody waits for, in order. */
  private readonly demand = new Set<number>();
  /** Since when, in the clock's milliseconds. */
  private readonly running = new Map<number, number>();
  /** Those of them that count as failed whatever becomes of them. */
  private readonly doubtful = new Set<number>();
  private readonly failures = new Map<number, { attempts: number; message: string }>();
  /** Failed stripes that wait for their next try. */
  private readonly resting = new Set<number>();
  private readonly free: StripeBuffer[];
  private readonly buffers: number;
  private readonly stop = new AbortController();
  private settled = Promise.withResolvers<void>();
  private autofetching = false;
  /** When the next stripe that nobody waits for may be begun, in the clock's milliseconds. */
  private autofetchAt = 0;
  /** Until then none of them is begun, because the last ones have failed. */
  private restUntil = 0;
  /** Failures since the last stripe that didn't fail; those that came together count once. */
  private autofetchFailures = 0;
  /** When autofetch goes on by itself. */
  private wakeTime = Number.POSITIVE_INFINITY;

  /**
   * @param buffers each for a whole stripe
   * @param nextIdle the next stripe from its own order that nobody waits for; -1 where there is none now
   * @param fetched is told of each stripe whose data is written, and not yet durable
   * @param failed is told of each that failed and is tried again, unless it is cancelled
   */
  constructor(
    private readonly options: FetchOptions,
    private readonly source: StripeSource,
    private readonly target: TargetDisk,
    private readonly clock: Clock,
    buffers: StripeBuffer[],
    private readonly nextIdle: () => number,
    private readonly fetched: (stripe: number) => void,
    private readonly failed: (failure: FetchFailure) => void,
  ) {
    this.free = [...buffers];
    this.buffers = buffers.length;
  }

  /** Stripes that wait for their turn or their next try, and those under way. */
  get queued(): number {
    return this.demand.size + this.resting.size;
  }

  get inFlight(): number {
    return this.running.size;
  }

  /** What fails at the moment, and why. */
  get failing(): FetchFailure[] {
    return [...this.failures].map(([stripe, failure]) => ({ stripe, ...failure }));
  }

  /** What takes long, be it that the source hangs. */
  get slow(): SlowFetch[] {
    const now = this.clock.now();
    return [...this.running]
      .filter(([, since]) => now - since >= SLOW_MS)
      .map(([stripe, since]) => ({ stripe, seconds: Math.floor((now - since) / 1000) }));
  }

  isRunning(stripe: number): boolean {
    return this.running.has(stripe);
  }

  /** Somebody waits for a stripe. */
  request(stripe: number): void {
    if (this.running.has(stripe) || this.resting.has(stripe)) return;
    this.demand.add(stripe);
    this.pump();
  }

  /** Nobody needs a stripe any more that has not been begun; false where it is under way. */
  cancel(stripe: number): boolean {
    if (this.running.has(stripe)) return false;
    this.demand.delete(stripe);
    this.resting.delete(stripe);
    this.failures.delete(stripe);
    return true;
  }

  /** A stripe that was fetched is to be fetched once more, because what was written may be lost. */
  again(stripe: number, error: Error): void {
    this.rest(stripe, error);
  }

  /** What is being written may be lost without anybody being told: it is fetched once more. */
  doubtRunning(): void {
    for (const stripe of this.running.keys()) this.doubtful.add(stripe);
  }

  set autofetch(on: boolean) {
    this.autofetching = on;
    if (on) this.pump();
  }

  get autofetch(): boolean {
    return this.autofetching;
  }

  /** Tries at once what has failed. */
  retryNow(): void {
    for (const stripe of this.resting) this.demand.add(stripe);
    this.resting.clear();
    this.restUntil = 0;
    this.pump();
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
      this.demand.delete(stripe);
      this.running.set(stripe, this.clock.now());
      this.fetch(stripe, this.free.pop() as StripeBuffer);
    }
  }

  private next(): number {
    for (const stripe of this.demand) return stripe;
    if (!this.autofetching || this.free.length <= RESERVED(this.buffers)) return -1;
    const time = Math.max(this.autofetchAt, this.restUntil);
    const waitMs = time - this.clock.now();
    if (waitMs > 0) {
      this.wakeAt(time, waitMs);
      return -1;
    }
    const stripe = this.nextIdle();
    const { autofetchBytesPerSecond, stripeBytes } = this.options;
    if (stripe >= 0 && autofetchBytesPerSecond > 0) {
      const from = Math.max(this.autofetchAt, this.clock.now() - 1000);
      this.autofetchAt = from + (stripeBytes / autofetchBytesPerSecond) * 1000;
    }
    return stripe;
  }

  private wakeAt(time: number, waitMs: number): void {
    if (this.wakeTime <= time) return;
    this.wakeTime = time;
    this.clock.sleep(waitMs, this.stop.signal).then(() => {
      if (this.wakeTime === time) this.wakeTime = Number.POSITIVE_INFINITY;
      this.pump();
    });
  }

  private async fetch(stripe: number, buffer: StripeBuffer): Promise<void> {
    const { stripeBytes, diskBytes } = this.options;
    const offset = stripe * stripeBytes;
    const length = Math.min(stripeBytes, diskBytes - offset);
    const part = { address: buffer.address, bytes: buffer.bytes.subarray(0, length) };
    let failure: Error | null = null;
    try {
      if (!(await this.source.copy?.(stripe, offset, length)))
        await this.carry(stripe, offset, part);
    } catch (error) {
      failure = error as Error;
    }
    this.free.push(buffer);
    this.running.delete(stripe);
    if (this.running.size === 0) this.settled.resolve();
    if (this.doubtful.delete(stripe)) failure ??= new Error('the disk has lost writes');
    if (this.stop.signal.aborted) return;
    if (failure) {
      this.rest(stripe, failure);
    } else {
      this.failures.delete(stripe);
      this.autofetchFailures = 0;
      this.restUntil = 0;
      this.fetched(stripe);
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
    } else {
      await this.target.zero(offset, part.bytes.length);
      // It may have waited for nothing: others get their turn before the next one.
      await this.clock.sleep(0);
    }
  }

  private rest(stripe: number, error: Error): void {
    const attempts = (this.failures.get(stripe)?.attempts ?? 0) + 1;
    const failure = { attempts, message: error.message };
    this.failures.set(stripe, failure);
    this.resting.add(stripe);
    // A source that is away is not asked for one stripe after the other that nobody waits for.
    const now = this.clock.now();
    if (now >= this.restUntil) this.restUntil = now + delayMs(++this.autofetchFailures);
    this.clock.sleep(delayMs(attempts), this.stop.signal).then(() => {
      if (!this.resting.delete(stripe)) return;
      this.demand.add(stripe);
      this.pump();
    });
    this.failed({ stripe, ...failure });
  }
}

function delayMs(attempts: number): number {
  return Math.min(FIRST_DELAY_MS * 2 ** Math.min(attempts - 1, 20), LAST_DELAY_MS);
}
