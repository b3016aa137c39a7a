/** What a server does, from two looks at it, and what it has done lately. */
import { errorName } from '../errors.ts';
import { percentileUs } from '../latency_histogram.ts';
import { type Bucket, type Sample, type Stripes, takeSample } from './sample.ts';

/** Microseconds; null where there was no such request. */
export interface Percentiles {
  p50: number;
  p99: number;
  p999: number;
}

export interface Rates {
  readBytes: number;
  writtenBytes: number;
  readOps: number;
  writeOps: number;
  flushOps: number;
  errors: number;
  fetchedBytes: number;
}

/** What one look shows. */
export interface View {
  socket: string;
  /** Why nothing is known; null where something is. */
  problem: string | null;
  /** A second; null at the first look at a process. */
  rates: Rates | null;
  latencyUs: Record<string, Percentiles | null>;
  inFlight: number;
  oldestMs: number;
  /** For each queue, a second. */
  queues: { readBytes: number; writtenBytes: number; ops: number; inFlight: number }[];
  connected: boolean | null;
  uptimeS: number | null;
  stripes: (Stripes & { secondsLeft: number | null }) | null;
  /** Errors since the server began. */
  errors: number;
  /** Bytes a second, read and written, the newest last. */
  history: readonly number[];
  /** How often the server has begun anew since the first look. */
  restarts: number;
}

const HISTORY = 240;
/** What is left is told from so many looks. */
const PACE_LOOKS = 30;
const OPS = ['read', 'write', 'flush'] as const;

export class Watch {
  private last: Sample | null = null;
  private view: View | null = null;
  /** A look whose answer hasn't come yet. */
  private asked: Promise<View> | null = null;
  private readonly history: number[] = [];
  /** Fetched stripes and when, of the last looks. */
  private readonly pace: { atMs: number; fetched: number }[] = [];
  private restarts = 0;

  constructor(
    readonly socket: string,
    private readonly timeoutMs: number,
  ) {}

  /**
   * Looks once more; never rejects.
   * @param patienceMs how long the answer may take; then what was known before it is shown, and the answer
   * at a later look
   */
  async look(patienceMs?: number): Promise<View> {
    this.asked ??= this.ask();
    if (patienceMs === undefined) return await this.asked;
    const late = Bun.sleep(patienceMs).then(() => null);
    const view = (await Promise.race([this.asked, late])) ?? this.view;
    return view ?? this.missing('no answer yet');
  }

  private async ask(): Promise<View> {
    try {
      this.view = this.take(await takeSample(this.socket, this.timeoutMs));
    } catch (error) {
      this.note(0);
      this.view = this.missing(errorName(error));
    }
    this.asked = null;
    return this.view;
  }

  /** Takes a sample in. */
  take(sample: Sample): View {
    const before = this.last;
    this.last = sample;
    const sameServer = before !== null && isSame(before, sample);
    if (before && !sameServer) {
      this.restarts++;
      this.pace.length = 0;
    }
    const seconds = sameServer ? secondsBetween(before, sample) : 0;
    const rates = sameServer && seconds > 0 ? ratesOf(before, sample, seconds) : null;
    this.note(rates ? rates.readBytes + rates.writtenBytes : 0);
    const { stripes, queues, connected, uptimeS, counters } = sample;
    return {
      socket: this.socket,
      problem: null,
      rates,
      latencyUs: latencies(sameServer ? before : null, sample),
      inFlight: queues.reduce((all, { inFlight }) => all + inFlight, 0),
      oldestMs: Math.max(0, ...queues.map(({ oldestMs }) => oldestMs)),
      queues: queueRates(sameServer ? before : null, sample, seconds),
      connected,
      uptimeS,
      stripes: stripes && { ...stripes, secondsLeft: this.secondsLeft(sample.atMs, stripes) },
      errors: counters.errors,
      history: this.history,
      restarts: this.restarts,
    };
  }

  private missing(problem: string): View {
    return {
      socket: this.socket,
      problem,
      rates: null,
      latencyUs: {},
      inFlight: 0,
      oldestMs: 0,
      queues: [],
      connected: null,
      uptimeS: null,
      stripes: null,
      errors: 0,
      history: this.history,
      restarts: this.restarts,
    };
  }

  private note(bytesPerSecond: number): void {
    this.history.push(bytesPerSecond);
    if (this.history.length > HISTORY) this.history.shift();
  }

  private secondsLeft(atMs: number, { fetched, source }: Stripes): number | null {
    this.pace.push({ atMs, fetched });
    if (this.pace.length > PACE_LOOKS) this.pace.shift();
    if (fetched >= source) return 0;
    const [first] = this.pace;
    const perMs = (fetched - first.fetched) / (atMs - first.atMs);
    return perMs > 0 ? (source - fetched) / perMs / 1000 : null;
  }
}

/** Counters that have shrunk are of another process, too. */
function isSame(before: Sample, now: Sample): boolean {
  if (before.pid !== now.pid) return false;
  if (before.uptimeS !== null && now.uptimeS !== null && now.uptimeS < before.uptimeS) return false;
  const { counters: a } = before;
  const { counters: b } = now;
  return b.readOps >= a.readOps && b.writeOps >= a.writeOps && b.flushOps >= a.flushOps;
}

/** By the server's own clock, where it tells: an answer may be late. */
function secondsBetween(before: Sample, now: Sample): number {
  if (before.uptimeS !== null && now.uptimeS !== null) return now.uptimeS - before.uptimeS;
  return (now.atMs - before.atMs) / 1000;
}

function ratesOf({ counters: a }: Sample, { counters: b }: Sample, seconds: number): Rates {
  const rate = (of: Exclude<keyof Rates, never>) => Math.max(b[of] - a[of], 0) / seconds;
  return {
    readBytes: rate('readBytes'),
    writtenBytes: rate('writtenBytes'),
    readOps: rate('readOps'),
    writeOps: rate('writeOps'),
    flushOps: rate('flushOps'),
    errors: rate('errors'),
    fetchedBytes: rate('fetchedBytes'),
  };
}

function queueRates(before: Sample | null, { queues }: Sample, seconds: number): View['queues'] {
  return queues.map((queue, i) => {
    const was = before?.queues[i];
    const rate = (now: number, then = now) => (seconds > 0 ? Math.max(now - then, 0) / seconds : 0);
    return {
      readBytes: rate(queue.readBytes, was?.readBytes),
      writtenBytes: rate(queue.writtenBytes, was?.writtenBytes),
      ops: rate(queue.readOps, was?.readOps) + rate(queue.writeOps, was?.writeOps),
      inFlight: queue.inFlight,
    };
  });
}

/** Of the requests in between; at the first look, of all. */
function latencies(before: Sample | null, now: Sample): Record<string, Percentiles | null> {
  return Object.fromEntries(
    OPS.map((op) => {
      const buckets = newIn(before?.counters.buckets[op] ?? [], now.counters.buckets[op] ?? []);
      if (buckets.length === 0) return [op, null];
      const of = (share: number) => percentileUs(buckets, share);
      return [op, { p50: of(0.5), p99: of(0.99), p999: of(0.999) }];
    }),
  );
}

function newIn(before: readonly Bucket[], now: readonly Bucket[]): Bucket[] {
  const old = new Map(before);
  return now
    .map(([endUs, count]): Bucket => [endUs, count - (old.get(endUs) ?? 0)])
    .filter(([, count]) => count > 0);
}
