/**
 * What main does while the source, the disk or the metadata file fails for long, or when all goes well
 * with millions of stripes: how much is tried, logged and shown.
 */
import { expect, setDefaultTimeout, test } from 'bun:test';
import { Coordinator } from '../../src/stripe/coordinator.ts';
import type { Clock } from '../../src/stripe/interfaces.ts';
import { MetadataLayout } from '../../src/stripe/metadata_layout.ts';
import {
  type Answer,
  CLAIMED,
  GRANTED,
  HAS_SOURCE,
  SharedStripes,
  sharedStripeBytes,
  Want,
} from '../../src/stripe/shared_state.ts';
import { FakeClock } from './fake_clock.ts';

/** On a machine with other work. */
setDefaultTimeout(120_000);

const MINUTE = 60_000;
const STRIPE = 32768;

/** A disk in memory that has nothing yet, all of whose parts take a millisecond unless they fail. */
class Main {
  readonly coordinator: Coordinator;
  readonly reads: number[] = [];
  readonly lines: string[] = [];
  syncs = 0;
  /** What is away at the moment. */
  source = false;
  disk = false;
  metadata = false;
  private readonly shared: SharedStripes;

  constructor(
    readonly clock: Clock,
    stripes: number,
    autofetch: boolean,
    private readonly zeroes = false,
  ) {
    const layout = new MetadataLayout(1, 6, stripes);
    this.shared = new SharedStripes(
      new SharedArrayBuffer(sharedStripeBytes(stripes, 1)),
      stripes,
      1,
    );
    const step = async (fails: boolean, what: string) => {
      if (!this.zeroes) await clock.sleep(1);
      if (fails) throw Object.assign(new Error(`EIO: ${what}`), { code: 'EIO' });
    };
    const options = {
      stripeBytes: STRIPE,
      diskBytes: stripes * STRIPE,
      trackWritten: false,
      autofetch,
      autofetchBytesPerSecond: 0,
    };
    this.coordinator = new Coordinator(options, {
      layout,
      headers: new Uint8Array(stripes).fill(HAS_SOURCE),
      shared: this.shared,
      source: {
        description: 'a source',
        sizeBytes: options.diskBytes,
        has: () => true,
        read: async (stripe) => {
          this.reads.push(stripe);
          await step(this.source, 'source');
          return !this.zeroes;
        },
        close: async () => {},
      },
      target: {
        write: () => step(false, 'disk'),
        zero: async () => {},
        sync: () => {
          this.syncs++;
          return step(this.disk, 'disk');
        },
      },
      store: {
        unitBytes: 512,
        write: () => step(this.metadata, 'metadata'),
        sync: () => step(false, 'metadata'),
      },
      clock,
      buffers: Array.from({ length: 16 }, () => ({ address: 0, bytes: new Uint8Array(STRIPE) })),
      wake: () => {},
      log: {
        warn: (line) => this.lines.push(`warn: ${line}`),
        info: (line) => this.lines.push(`info: ${line}`),
      },
    });
    this.coordinator.start();
  }

  ask(first: number, count = 1, want: Want = Want.LOCAL): void {
    this.coordinator.receive({ kind: 'ask', queue: 0, asks: [{ first, count, want }] });
  }

  answers(): number[] {
    const results: number[] = [];
    const answer: Answer = { stripe: 0, want: Want.LOCAL, result: 0 };
    while (this.shared.take(0, answer)) results.push(answer.result);
    return results;
  }

  readsOf(stripe: number): number {
    return this.reads.filter((other) => other === stripe).length;
  }
}

test('a source that is away for long: few tries, two lines, a short status', async () => {
  const clock = new FakeClock();
  const main = new Main(clock, 100_000, true);
  await clock.pass(10);
  main.source = true;
  main.ask(90_000, 120);
  await clock.pass(10 * MINUTE);
  const { length } = main.reads;
  await clock.pass(10 * MINUTE);
  // Each that is waited for, and one of the others.
  expect(main.reads.length - length).toBeLessThanOrEqual(121 * 21);
  const { failing, failingCount, queued } = main.coordinator.status;
  expect([failing.length, failingCount, queued]).toEqual([100, 121, 120]);
  expect(main.lines.length).toBe(1);
  expect(main.lines[0]).toMatch(/^warn: stripe \d+ could not be fetched: EIO: source$/);
  main.source = false;
  await clock.pass(MINUTE);
  expect(main.answers()).toEqual(new Array(120).fill(GRANTED));
  expect(main.coordinator.status).toMatchObject({ failing: [], failingCount: 0 });
  expect(main.lines.length).toBe(2);
  expect(main.lines[1]).toMatch(/^info: stripes are fetched again; \d+ tries had failed$/);
});

test('a wish is not forgotten, whatever fails', async () => {
  const clock = new FakeClock();
  const main = new Main(clock, 100, false);
  main.source = true;
  main.coordinator.receive({ kind: 'wish', queue: 0, stripes: [4, 5] });
  await clock.pass(MINUTE);
  expect(main.coordinator.status).toMatchObject({ queued: 2, failingCount: 1 });
  // Somebody overwrites one of them, and fails.
  main.ask(5, 1, Want.CLAIM);
  await clock.pass(10);
  expect(main.answers()).toEqual([CLAIMED]);
  const claim = { first: 5, count: 1 };
  main.coordinator.receive({ kind: 'claimDone', queue: 0, stripes: [claim], ok: false });
  main.disk = true;
  main.source = false;
  await clock.pass(MINUTE);
  expect(main.coordinator.status.fetched).toBe(0);
  main.disk = false;
  await clock.pass(MINUTE);
  expect(main.coordinator.status).toMatchObject({ fetched: 2, queued: 0, failingCount: 0 });
});

test('a disk that can not be synced is not written to again and again', async () => {
  const clock = new FakeClock();
  const main = new Main(clock, 100_000, true);
  main.disk = true;
  main.ask(70_000);
  await clock.pass(MINUTE);
  expect(main.readsOf(70_000)).toBeLessThanOrEqual(12);
  expect(main.reads.length).toBeLessThan(400);
  expect(main.syncs).toBeLessThan(40);
  const { failing, fetched } = main.coordinator.status;
  expect(failing).toContainEqual({
    stripe: 70_000,
    attempts: expect.any(Number),
    message: 'EIO: disk',
  });
  expect(fetched).toBe(0);
  expect(main.lines.length).toBe(1);
  expect(main.lines[0]).toMatch(
    /^warn: the data of \d+ stripes? could not be made durable: EIO: disk$/,
  );
  main.disk = false;
  await clock.pass(MINUTE);
  expect(main.answers()).toEqual([GRANTED]);
  expect(main.coordinator.status.fetched).toBeGreaterThan(1000);
  expect(main.lines.slice(1)).toEqual([
    expect.stringMatching(/^info: data is made durable again; \d+ tries had failed$/),
  ]);
});

test('metadata that can not be written is told of, also where nobody waits for it', async () => {
  const clock = new FakeClock();
  const main = new Main(clock, 100_000, true);
  main.metadata = true;
  await clock.pass(MINUTE);
  // Autofetch has left off.
  expect(main.reads.length).toBeLessThanOrEqual(256);
  const { metadata, metadataFailing, fetched } = main.coordinator.status;
  expect([metadataFailing, fetched]).toEqual([true, 0]);
  expect(metadata.attempts).toBeGreaterThan(5);
  expect(metadata).toMatchObject({ message: 'EIO: metadata', pending: main.reads.length });
  expect(main.lines.length).toBe(1);
  expect(main.lines[0]).toMatch(/^warn: the state of \d+ stripes could not be recorded: EIO: meta/);
  // Each of many who wait is told, and the log says nothing more.
  main.ask(50_000, 500);
  await clock.pass(MINUTE);
  expect(main.answers()).toEqual(new Array(500).fill(-5));
  expect(main.lines.length).toBe(1);
  main.metadata = false;
  await clock.pass(MINUTE);
  const { status } = main.coordinator;
  expect(status).toMatchObject({
    metadataFailing: false,
    metadata: { attempts: 0, message: null },
  });
  expect(main.lines.slice(1)).toEqual([
    expect.stringMatching(/^info: stripes' states are recorded again; \d+ tries had failed$/),
  ]);
});

test('trouble that comes and goes is one trouble for the log', async () => {
  const clock = new FakeClock();
  const main = new Main(clock, 100_000, true);
  for (let i = 0; i < 100; i++) {
    main.source = i % 2 === 1;
    await clock.pass(200);
  }
  main.source = false;
  await clock.pass(MINUTE);
  expect(main.lines.length).toBe(2);
});

test('an image of millions of stripes without data lets everybody have a turn', async () => {
  const clock: Clock = {
    now: () => performance.now(),
    sleep: (ms, signal) =>
      new Promise((wake) => {
        if (ms <= 0) return void setImmediate(wake);
        const timer = setTimeout(wake, ms);
        signal?.addEventListener('abort', () => clearTimeout(timer));
      }),
  };
  const stripes = 1 << 20;
  const main = new Main(clock, stripes, true, true);
  let longestMs = 0;
  let mostPending = 0;
  let mostReads = 0;
  let from = performance.now();
  for (let status = main.coordinator.status; status.fetched < stripes; ) {
    main.reads.length = 0;
    await new Promise((wake) => setImmediate(wake));
    mostReads = Math.max(mostReads, main.reads.length);
    const now = performance.now();
    longestMs = Math.max(longestMs, now - from);
    from = now;
    status = main.coordinator.status;
    mostPending = Math.max(mostPending, status.metadata.pending);
  }
  expect(mostPending).toBeLessThanOrEqual(256);
  expect(mostReads).toBeLessThan(100);
  expect(longestMs).toBeLessThan(3000);
  await main.coordinator.stop();
});
