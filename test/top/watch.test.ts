/** Rates and percentiles from two looks at a server. */
import { expect, test } from 'bun:test';
import { Watch } from '../../src/top/watch.ts';
import { sample } from './views.ts';

function watch(): Watch {
  return new Watch('/run/disk.sock', 1000);
}

test('rates are over the time that has passed, by the clock of the server', () => {
  const watched = watch();
  expect(watched.take(sample({ reads: 500 })).rates).toBeNull();
  // The answer came late; the server says that two seconds have passed.
  const { rates, queues, latencyUs } = watched.take(
    sample({ atMs: 5000, uptimeS: 2, reads: 700, writes: 100 }),
  );
  expect(rates).toMatchObject({ readOps: 100, writeOps: 50, readBytes: 409_600, flushOps: 0 });
  expect(queues).toEqual([{ readBytes: 409_600, writtenBytes: 204_800, ops: 150, inFlight: 0 }]);
  expect(latencyUs).toMatchObject({ read: { p50: 100 }, write: { p99: 100 }, flush: null });
});

test('of a server that tells no time, our own clock counts', () => {
  const watched = watch();
  watched.take(sample({ uptimeS: null, pid: null }));
  const { rates } = watched.take(sample({ atMs: 4000, uptimeS: null, pid: null, reads: 400 }));
  expect(rates?.readOps).toBe(100);
});

test('percentiles are of the requests in between, not of all', () => {
  const watched = watch();
  const slow = sample({ reads: 0 });
  slow.counters.buckets = { read: [[9000, 1000]] };
  expect(watched.take(slow).latencyUs.read?.p50).toBe(9000);
  const fast = sample({ atMs: 1000 });
  fast.counters.buckets = {
    read: [
      [50, 99],
      [9000, 1001],
    ],
  };
  expect(watched.take(fast).latencyUs.read).toEqual({ p50: 50, p99: 50, p999: 9000 });
  const idle = sample({ atMs: 2000 });
  idle.counters.buckets = fast.counters.buckets;
  expect(watched.take(idle).latencyUs.read).toBeNull();
});

test('a server that begins anew has no rates at first, and never negative ones', () => {
  for (const again of [
    { atMs: 2000, pid: 8, reads: 5000 },
    { atMs: 2000, uptimeS: 0.5, reads: 5000 },
    { atMs: 2000, reads: 3 },
  ]) {
    const watched = watch();
    watched.take(sample({ atMs: 0, reads: 1000 }));
    expect(watched.take(sample({ atMs: 1000, reads: 1100 })).rates?.readOps).toBe(100);
    const restarted = watched.take(sample(again));
    expect(restarted.rates).toBeNull();
    expect(restarted.restarts).toBe(1);
    const reads = (again.reads ?? 0) + 10;
    const next = { ...again, atMs: 3000, uptimeS: (again.uptimeS ?? 2) + 1, reads };
    expect(watched.take(sample(next)).rates?.readOps).toBe(10);
    expect(watched.take(sample(next)).restarts).toBe(1);
  }
});

test('what is left takes as long as what was fetched lately says', () => {
  const watched = watch();
  expect(watched.take(sample({ fetched: 10 })).stripes?.secondsLeft).toBeNull();
  expect(watched.take(sample({ atMs: 1000, fetched: 20 })).stripes?.secondsLeft).toBe(6);
  expect(watched.take(sample({ atMs: 2000, fetched: 20 })).stripes?.secondsLeft).toBe(12);
  expect(watched.take(sample({ atMs: 3000, fetched: 80 })).stripes?.secondsLeft).toBe(0);
});

test('the history has one value for each look, and an end', () => {
  const watched = watch();
  let view = watched.take(sample());
  for (let i = 1; i <= 300; i++) view = watched.take(sample({ atMs: i * 1000, reads: i }));
  expect(view.history.length).toBe(240);
  expect(new Set(view.history)).toEqual(new Set([4096]));
});

test('where there is no server, that is what is shown', async () => {
  const view = await new Watch('/nowhere/rpc.sock', 100).look();
  expect(view.problem).toContain("there is no socket '/nowhere/rpc.sock'");
  expect(view.rates).toBeNull();
});
