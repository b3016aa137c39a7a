/** When stripes are fetched: what is waited for first, what failed again, autofetch at its pace. */
import { beforeEach, expect, test } from 'bun:test';
import { Fetcher } from '../../src/stripe/fetcher.ts';
import type { Clock, StripeSource, TargetDisk } from '../../src/stripe/interfaces.ts';

const STRIPE = 65536;
const STRIPES = 64;

/** Time passes when a test says so. */
class FakeClock implements Clock {
  time = 0;
  /** How long it takes to look at it. */
  lookMs = 0;
  shortestSleepMs = Number.POSITIVE_INFINITY;
  private timers: { at: number; wake: () => void }[] = [];

  now(): number {
    this.time += this.lookMs;
    return this.time;
  }

  sleep(ms: number): Promise<void> {
    this.shortestSleepMs = Math.min(this.shortestSleepMs, ms);
    return new Promise((wake) => {
      this.timers.push({ at: this.time + ms, wake });
    });
  }

  /** Lets so many milliseconds pass, and all that happens in them. */
  async pass(ms: number): Promise<void> {
    const end = this.time + ms;
    for (;;) {
      await settled();
      const next = this.timers.toSorted((a, b) => a.at - b.at)[0];
      if (!next || next.at > end) break;
      this.timers.splice(this.timers.indexOf(next), 1);
      this.time = next.at;
      next.wake();
    }
    this.time = end;
  }
}

/** Whatever promises lead to has happened. */
function settled(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

let clock: FakeClock;
let away: boolean;
/** The stripes that the source was asked for, and those that were fetched. */
let asked: number[];
let fetched: number[];
/** Where the disk was written to. */
let written: number[];
/** What the source does instead. */
let read: ((stripe: number) => Promise<boolean>) | null;

beforeEach(() => {
  clock = new FakeClock();
  away = false;
  asked = [];
  fetched = [];
  written = [];
  read = null;
});

function fetcher(buffers: number, bytesPerSecond = 0): Fetcher {
  const source = {
    read: async (stripe: number) => {
      asked.push(stripe);
      if (read) return await read(stripe);
      if (away) throw new Error('the source is away');
      return true;
    },
  } as unknown as StripeSource;
  const write = async (offset: number) => {
    written.push(offset);
  };
  const target = { write, zero: write } as unknown as TargetDisk;
  let idle = 0;
  return new Fetcher(
    { stripeBytes: STRIPE, diskBytes: STRIPES * STRIPE, autofetchBytesPerSecond: bytesPerSecond },
    source,
    target,
    clock,
    Array.from({ length: buffers }, () => ({ address: 0, bytes: new Uint8Array(STRIPE) })),
    () => (idle < STRIPES ? idle++ : -1),
    (stripe) => fetched.push(stripe),
    () => {},
  );
}

test('a stripe that fails is tried later and later, never given up, and then had', async () => {
  away = true;
  const stripes = fetcher(4);
  stripes.request(7);
  const tries: number[] = [];
  for (let second = 0; second < 200; second++) {
    await clock.pass(1000);
    tries.push(asked.length);
  }
  // 0, 0.1, 0.3, 0.7, 1.5, 3.1, ... and at last every 30 s.
  expect([tries[0], tries[1], tries[5], tries[24], tries[50]]).toEqual([4, 5, 6, 8, 9]);
  expect(tries[199] - tries[139]).toBe(2);
  expect(stripes.failing).toEqual([
    { stripe: 7, attempts: asked.length, message: 'the source is away' },
  ]);
  expect([stripes.queued, stripes.inFlight]).toEqual([1, 0]);
  away = false;
  await clock.pass(30_000);
  expect(fetched).toEqual([7]);
  expect([stripes.failing.length, stripes.queued, stripes.inFlight]).toEqual([0, 0, 0]);
});

test('others are fetched while one of them rests', async () => {
  away = true;
  const stripes = fetcher(1);
  stripes.request(1);
  await clock.pass(50);
  away = false;
  stripes.request(2);
  await clock.pass(1);
  expect(fetched).toEqual([2]);
  await clock.pass(50);
  expect(fetched).toEqual([2, 1]);
});

for (const rate of [0, 100 * STRIPE]) {
  test(`autofetch goes on right after a short outage, at ${rate || 'any'} bytes a second`, async () => {
    away = true;
    const stripes = fetcher(16, rate);
    stripes.autofetch = true;
    await clock.pass(90);
    // Many failed at once, which tells no more than one.
    expect(asked.length).toBeGreaterThan(rate === 0 ? 10 : 0);
    away = false;
    await clock.pass(100 + (rate === 0 ? 0 : (STRIPES * STRIPE * 1000) / rate));
    expect(fetched.length).toBe(STRIPES);
  });

  test(`autofetch leaves a source alone that stays away, at ${rate || 'any'} bytes a second`, async () => {
    away = true;
    const stripes = fetcher(4, rate);
    stripes.autofetch = true;
    await clock.pass(60_000);
    const before = new Set(asked).size;
    await clock.pass(60_000);
    expect(new Set(asked).size - before).toBeLessThan(20);
    // As soon as a stripe is had, so are the others.
    away = false;
    await clock.pass(31_000);
    expect(fetched.length).toBe(STRIPES);
  });
}

test('autofetch keeps to its limit', async () => {
  const stripes = fetcher(16, 10 * STRIPE);
  await clock.pass(5000);
  stripes.autofetch = true;
  await clock.pass(0);
  // What a second allows may be made up for.
  const first = fetched.length;
  expect(first).toBeLessThanOrEqual(11);
  for (let second = 1; second <= 5; second++) {
    await clock.pass(1000);
    expect(fetched.length - first).toBeLessThanOrEqual(second * 10 + 1);
  }
  expect(fetched.length).toBeGreaterThanOrEqual(50);
});

test('what is waited for comes first, also before what autofetch may begin', async () => {
  const stripes = fetcher(2, STRIPE);
  stripes.autofetch = true;
  stripes.request(40);
  stripes.request(41);
  stripes.request(42);
  await clock.pass(1);
  expect(fetched.slice(-3)).toEqual([40, 41, 42]);
});

test('a fetch that hangs is shown, and the end waits for it only so long', async () => {
  const hanging = Promise.withResolvers<boolean>();
  read = () => hanging.promise;
  const stripes = fetcher(2);
  stripes.request(3);
  await clock.pass(4999);
  expect(stripes.slow).toEqual([]);
  await clock.pass(2500);
  expect(stripes.slow).toEqual([{ stripe: 3, seconds: 7 }]);
  let ended = false;
  stripes.end().then(() => {
    ended = true;
  });
  await clock.pass(2000);
  expect(ended).toBe(false);
  await clock.pass(2000);
  expect(ended).toBe(true);
  // Whoever has the disk now must not find it changed.
  hanging.resolve(true);
  await clock.pass(1);
  expect([written, fetched]).toEqual([[], []]);
});

test('the end waits for what is under way, and no longer', async () => {
  const slow = Promise.withResolvers<boolean>();
  read = () => slow.promise;
  const stripes = fetcher(2);
  stripes.request(3);
  await clock.pass(1);
  let ended = false;
  stripes.end().then(() => {
    ended = true;
  });
  await clock.pass(1);
  expect(ended).toBe(false);
  slow.resolve(true);
  await clock.pass(0);
  expect(ended).toBe(true);
});

test('autofetch at a pace never sleeps for less than no time', async () => {
  clock.lookMs = 0.7;
  fetcher(4, 333 * STRIPE).autofetch = true;
  await clock.pass(10_000);
  expect(fetched.length).toBe(STRIPES);
  expect(clock.shortestSleepMs).toBeGreaterThan(0);
});
