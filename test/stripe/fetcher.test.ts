/** When stripes are fetched: what is waited for first, what failed again, autofetch at its pace. */
import { beforeEach, expect, test } from 'bun:test';
import { buffersFor, Fetcher } from '../../src/stripe/fetcher.ts';
import { IdleStripes } from '../../src/stripe/idle_stripes.ts';
import type { StripeSource, TargetDisk } from '../../src/stripe/interfaces.ts';
import { FakeClock } from './fake_clock.ts';

const STRIPE = 65536;
const STRIPES = 64;
const HOUR = 3_600_000;

let clock: FakeClock;
let away: boolean;
/** Stripes that can't be read, whatever else can. */
let bad: Set<number>;
/** The stripes that the source was asked for, and those that were fetched, and recorded. */
let asked: number[];
let fetched: number[];
let recorded: Set<number>;
/** Stripes that somebody waits for. */
let awaited: Set<number>;
/** Nothing is recorded. */
let unrecorded: boolean;
/** Where the disk was written to. */
let written: number[];
/** Tells that the source is back. */
let back: () => void;
/** What the source does instead. */
let read: ((stripe: number) => Promise<boolean>) | null;

beforeEach(() => {
  clock = new FakeClock();
  away = false;
  bad = new Set();
  asked = [];
  fetched = [];
  recorded = new Set();
  awaited = new Set();
  unrecorded = false;
  written = [];
  back = () => {};
  read = null;
});

interface Settings {
  buffers: number;
  rate?: number;
  total?: number;
  mostUnrecorded?: number;
}

function fetcher({ buffers, rate = 0, total = STRIPES, mostUnrecorded }: Settings): Fetcher {
  const source = {
    read: async (stripe: number) => {
      asked.push(stripe);
      if (read) return await read(stripe);
      await clock.sleep(0);
      if (away || bad.has(stripe)) throw new Error('the source is away');
      return true;
    },
    whenBack: (listener: () => void) => {
      back = listener;
    },
  } as unknown as StripeSource;
  const write = async (offset: number) => {
    written.push(offset);
  };
  const target = { write, zero: write } as unknown as TargetDisk;
  const busy = new Set<number>();
  const isIdle = (stripe: number) => !busy.has(stripe) && !recorded.has(stripe);
  const idle = new IdleStripes(total, clock, isIdle, () => stripes.pump());
  const stripes: Fetcher = new Fetcher(
    {
      stripeBytes: STRIPE,
      diskBytes: total * STRIPE,
      autofetchBytesPerSecond: rate,
      mostUnrecorded,
    },
    source,
    target,
    clock,
    Array.from({ length: buffers }, () => ({ address: 0, bytes: new Uint8Array(STRIPE) })),
    {
      nextIdle: (probe) => {
        const stripe = probe ? idle.somewhere() : idle.next();
        busy.add(stripe);
        return stripe;
      },
      wishBegun: (stripe) => busy.add(stripe),
      written: (stripe) => {
        fetched.push(stripe);
        if (!unrecorded) queueMicrotask(() => record(stripes, stripe));
      },
      failed: () => {},
      fate: (stripe) => {
        busy.delete(stripe);
        if (awaited.has(stripe)) return 'awaited';
        idle.leave(stripe);
        return 'left';
      },
    },
  );
  return stripes;
}

function record(stripes: Fetcher, stripe: number): void {
  recorded.add(stripe);
  awaited.delete(stripe);
  stripes.recorded(stripe);
}

function ask(stripes: Fetcher, stripe: number): void {
  awaited.add(stripe);
  stripes.request(stripe);
}

test('a stripe that fails is tried later and later, never given up, and then had', async () => {
  away = true;
  const stripes = fetcher({ buffers: 4 });
  ask(stripes, 7);
  const tries: number[] = [];
  for (let second = 0; second < 200; second++) {
    await clock.pass(1000);
    tries.push(asked.length);
  }
  // 0, 0.1, 0.3, 0.7, 1.5, 3.1, ... and at last every 30 s.
  expect([tries[0], tries[1], tries[5], tries[24], tries[50]]).toEqual([4, 5, 6, 8, 9]);
  expect(tries[199] - tries[139]).toBe(2);
  expect(stripes.failing(10)).toEqual([
    { stripe: 7, attempts: asked.length, message: 'the source is away' },
  ]);
  expect([stripes.queued, stripes.inFlight]).toEqual([1, 0]);
  away = false;
  await clock.pass(30_000);
  expect(fetched).toEqual([7]);
  expect([stripes.failingCount, stripes.queued, stripes.inFlight]).toEqual([0, 0, 0]);
});

test('others are fetched while one of them rests, and it is not tried each time one of them is had', async () => {
  bad.add(1);
  const stripes = fetcher({ buffers: 1 });
  ask(stripes, 1);
  await clock.pass(10_000);
  for (let stripe = 2; stripe < 60; stripe++) {
    ask(stripes, stripe);
    await clock.pass(1);
    expect(fetched.at(-1)).toBe(stripe);
  }
  // Once because another one was had, which may have meant the end of an outage.
  expect(asked.filter((stripe) => stripe === 1).length).toBe(8);
  expect(stripes.failing(10)).toMatchObject([{ stripe: 1, attempts: 8 }]);
  bad.clear();
  await clock.pass(30_000);
  expect(fetched.at(-1)).toBe(1);
});

test('when the source is back, all that rested goes on with the first that is had', async () => {
  away = true;
  const stripes = fetcher({ buffers: 4 });
  for (let stripe = 0; stripe < 40; stripe++) ask(stripes, stripe);
  await clock.pass(HOUR);
  expect([stripes.failingCount, stripes.failing(10).length]).toEqual([40, 10]);
  away = false;
  // Nobody has asked for this one before.
  ask(stripes, 50);
  await clock.pass(1);
  expect(fetched.length).toBe(41);
  expect([stripes.failingCount, stripes.queued]).toEqual([0, 0]);
});

test('a source that comes back for a moment, or in part, doubles no rest', async () => {
  for (let stripe = 0; stripe < 40; stripe++) bad.add(stripe);
  const stripes = fetcher({ buffers: 4 });
  for (let stripe = 0; stripe < 40; stripe++) ask(stripes, stripe);
  await clock.pass(2000);
  const before = asked.length;
  // They have been tried 5 times, and rest for 1.6 s.
  expect(before).toBe(40 * 5);
  for (const stripe of [50, 51, 52, 53]) {
    ask(stripes, stripe);
    await clock.pass(100);
  }
  expect(asked.length).toBe(before + 4 + 40);
  await clock.pass(1600);
  expect(asked.length).toBe(before + 4 + 80);
  // The next rest can be cut short once more.
  bad.clear();
  ask(stripes, 54);
  await clock.pass(1);
  expect(fetched.length).toBe(45);
});

test('a source that says that it is back is asked at once for all that rests, and by autofetch', async () => {
  away = true;
  const stripes = fetcher({ buffers: 4 });
  for (const stripe of [7, 9]) ask(stripes, stripe);
  await clock.pass(200_000);
  stripes.autofetch = true;
  await clock.pass(200_000);
  away = false;
  fetched = [];
  back();
  await clock.pass(1);
  expect(fetched.slice(0, 2)).toEqual([7, 9]);
  expect(fetched.length).toBeGreaterThan(4);
  expect([stripes.failingCount, stripes.inOutage]).toEqual([0, false]);
});

test('autofetch alone goes on at once when the source says that it is back', async () => {
  away = true;
  const stripes = fetcher({ buffers: 4 });
  stripes.autofetch = true;
  await clock.pass(200_000);
  away = false;
  back();
  await clock.pass(100);
  expect(fetched.length).toBe(STRIPES);
});

test('a source that only says that it is back is asked once each time, and rests grow no longer', async () => {
  away = true;
  const stripes = fetcher({ buffers: 4 });
  ask(stripes, 7);
  await clock.pass(50);
  asked = [];
  for (let time = 1; time <= 5; time++) {
    back();
    back();
    await clock.pass(0);
    expect(asked.length).toBe(time);
  }
  await clock.pass(101);
  expect(asked.length).toBe(6);
});

test.each([1, 2, 3, 4, 14, 16, 128])(
  'with buffers for %d, autofetch has so many under way, and who waits has room',
  async (count) => {
    read = () => new Promise(() => {});
    const stripes = fetcher({ buffers: buffersFor(count), total: 1000 });
    stripes.autofetch = true;
    await clock.pass(10);
    expect(stripes.inFlight).toBe(count);
    ask(stripes, 999);
    await clock.pass(0);
    expect(asked.at(-1)).toBe(999);
  },
);

test('a stripe that rests is tried at once for a new asker, and its rest begins again', async () => {
  away = true;
  const stripes = fetcher({ buffers: 4 });
  ask(stripes, 5);
  await clock.pass(HOUR);
  const before = asked.length;
  ask(stripes, 5);
  await clock.pass(29_000);
  expect(asked.length).toBe(before + 1);
  away = false;
  ask(stripes, 5);
  await clock.pass(1);
  expect(fetched).toEqual([5]);
});

test('while the source is away, autofetch leaves nothing behind, and tries one stripe at a time', async () => {
  away = true;
  const total = 100_000;
  const stripes = fetcher({ buffers: 16, total });
  stripes.autofetch = true;
  await clock.pass(HOUR);
  const tries = asked.length;
  expect(tries).toBeLessThan(160);
  expect(stripes.queued).toBe(0);
  expect(stripes.failing(10)).toMatchObject([{ message: 'the source is away' }]);
  await clock.pass(HOUR);
  expect(asked.length - tries).toBeLessThanOrEqual(120);
  expect([stripes.queued, stripes.failingCount]).toEqual([0, 1]);
});

test('autofetch passes by what can not be read, and comes back to it', async () => {
  for (let stripe = 100; stripe < 400; stripe++) bad.add(stripe);
  const stripes = fetcher({ buffers: 16, total: 1000 });
  stripes.autofetch = true;
  await clock.pass(60_000);
  expect(fetched.length).toBe(700);
  bad.clear();
  await clock.pass(31_000);
  expect(fetched.length).toBe(1000);
  expect([stripes.queued, stripes.failingCount]).toEqual([0, 0]);
});

test('what is waited for is had at once, however much else can not be read, slowly', async () => {
  for (let stripe = 100; stripe < 400; stripe++) bad.add(stripe);
  read = async (stripe) => {
    await clock.sleep(bad.has(stripe) ? 2000 : 1);
    if (bad.has(stripe)) throw new Error('the source is away');
    return true;
  };
  const stripes = fetcher({ buffers: 16, total: 5000 });
  stripes.autofetch = true;
  await clock.pass(60_000);
  for (let stripe = 5000; stripe < 5050; stripe++) {
    ask(stripes, stripe);
    await clock.pass(2);
    expect(fetched).toContain(stripe);
    await clock.pass(777);
  }
});

test('data that is written well and never becomes durable is written again later and later', async () => {
  unrecorded = true;
  const stripes = fetcher({ buffers: 16, total: 100_000 });
  stripes.autofetch = true;
  ask(stripes, 7);
  const lost = new Error('EIO: the sync failed');
  for (let step = 0; step < 60_000; step += 20) {
    await clock.pass(20);
    if (fetched.length === 0) continue;
    stripes.doubtRunning(lost);
    for (const stripe of fetched.splice(0)) stripes.again(stripe, lost);
  }
  // What was begun before the first sync, and then a try now and then: 0.1 s, 0.2 s, ... 30 s.
  expect(asked.length).toBeLessThan(256 + 30);
  expect(asked.filter((stripe) => stripe === 7).length).toBeLessThan(12);
  expect(stripes.failing(10)).toContainEqual({
    stripe: 7,
    attempts: expect.any(Number),
    message: lost.message,
  });
  unrecorded = false;
  await clock.pass(31_000);
  expect(fetched.length).toBeGreaterThan(1000);
});

test('autofetch waits until what it has brought is recorded, and who waits does not', async () => {
  unrecorded = true;
  const stripes = fetcher({ buffers: 16, mostUnrecorded: 20 });
  stripes.autofetch = true;
  await clock.pass(1000);
  expect(fetched.length).toBe(20);
  ask(stripes, 60);
  await clock.pass(1);
  expect(fetched.at(-1)).toBe(60);
  for (const stripe of [0, 1, 2, 3]) record(stripes, stripe);
  await clock.pass(1);
  expect(fetched.length).toBe(24);
});

test('a wish comes behind what is waited for and before autofetch, until somebody waits for it', async () => {
  const stripes = fetcher({ buffers: 1 });
  ask(stripes, 50);
  for (const stripe of [40, 41, 42]) stripes.wish(stripe);
  stripes.autofetch = true;
  ask(stripes, 51);
  ask(stripes, 42);
  expect(stripes.queued).toBe(4);
  await clock.pass(1);
  expect(fetched.slice(0, 6)).toEqual([50, 51, 42, 40, 41, 0]);
});

test('wishes leave buffers to those who wait', async () => {
  read = () => new Promise(() => {});
  const stripes = fetcher({ buffers: 8 });
  for (let stripe = 0; stripe < 20; stripe++) stripes.wish(stripe);
  await clock.pass(1);
  expect(stripes.inFlight).toBe(6);
  ask(stripes, 30);
  await clock.pass(0);
  expect([stripes.inFlight, asked.at(-1)]).toEqual([7, 30]);
});

for (const rate of [0, 100 * STRIPE]) {
  test(`autofetch goes on right after a short outage, at ${rate || 'any'} bytes a second`, async () => {
    away = true;
    const stripes = fetcher({ buffers: 16, rate });
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
    const stripes = fetcher({ buffers: 4, rate });
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
  const stripes = fetcher({ buffers: 16, rate: 10 * STRIPE });
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
  const stripes = fetcher({ buffers: 2, rate: STRIPE });
  stripes.autofetch = true;
  ask(stripes, 40);
  ask(stripes, 41);
  ask(stripes, 42);
  await clock.pass(1);
  expect(fetched.slice(-3)).toEqual([40, 41, 42]);
});

test('a fetch that hangs is shown, and the end waits for it only so long', async () => {
  const hanging = Promise.withResolvers<boolean>();
  read = () => hanging.promise;
  const stripes = fetcher({ buffers: 2 });
  ask(stripes, 3);
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
  const stripes = fetcher({ buffers: 2 });
  ask(stripes, 3);
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
  fetcher({ buffers: 4, rate: 333 * STRIPE }).autofetch = true;
  await clock.pass(10_000);
  expect(fetched.length).toBe(STRIPES);
  expect(clock.shortestSleepMs).toBeGreaterThanOrEqual(0);
});

test('all that rests is tried at once when somebody says so, and what becomes of fetches is counted', async () => {
  away = true;
  const stripes = fetcher({ buffers: 4 });
  for (const stripe of [3, 4]) ask(stripes, stripe);
  await clock.pass(HOUR);
  const tries = asked.length;
  expect(stripes.totals).toEqual({
    ...{ stripes: 0, bytesRead: 0, bytesShared: 0, bytesZero: 0 },
    failures: tries,
  });
  stripes.retryFailed();
  await clock.pass(1);
  expect(asked.length).toBe(tries + 2);
  away = false;
  stripes.retryFailed();
  await clock.pass(1);
  expect(fetched).toEqual([3, 4]);
  read = async () => false;
  ask(stripes, 5);
  await clock.pass(1);
  expect(stripes.totals).toEqual({
    ...{ stripes: 3, bytesRead: 2 * STRIPE, bytesShared: 0, bytesZero: STRIPE },
    failures: tries + 2,
  });
});
