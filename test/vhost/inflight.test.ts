/**
 * A server that is killed between any two stores to shared memory, and its successor: no request is
 * lost, none is answered twice.
 */
import { afterEach, expect, test } from 'bun:test';
import { NativeBuffer } from '../../ffi/memory.ts';
import { InflightRecord, inflightBytes, inflightShare } from '../../src/frontend/vhost/inflight.ts';
import { Random, seed, soak } from '../random.ts';
import { QueueBench, type Script } from './queue_bench.ts';

const SIZE = 8;

/** What remains when the server is killed: shared memory, and what the driver knows. */
interface Crash {
  memory: Uint8Array;
  /** Heads that the driver has offered and not yet taken back. */
  outstanding: number[];
  /** How many answers it has taken. */
  taken: number;
}

let bench: QueueBench;
const atomicsStore = Atomics.store;

afterEach(() => {
  Atomics.store = atomicsStore;
});

/** Runs the script; remembers what would remain after each store to memory that others see. */
function runWithCrashes(script: Script, outstanding: Set<number>): Crash[] {
  const crashes: Crash[] = [];
  let before = 0n;
  Atomics.store = ((array: Uint8Array, index: number, value: number) => {
    const stored = atomicsStore(array, index, value);
    if (array.buffer instanceof SharedArrayBuffer) return stored;
    const memory = bench.guest.memory.save();
    const hash = BigInt(Bun.hash(memory));
    if (hash !== before) {
      crashes.push({ memory, outstanding: [...outstanding], taken: bench.taken.length });
    }
    before = hash;
    return stored;
  }) as typeof Atomics.store;
  try {
    bench.run(script);
  } finally {
    Atomics.store = atomicsStore;
  }
  return crashes;
}

/** Takes answers and strikes them off; throws for one that nobody waits for. */
function takeAnswers(outstanding: Set<number>): void {
  for (const { head } of bench.take()) {
    if (!outstanding.delete(head)) throw new Error(`head ${head} is answered twice`);
  }
}

/** Offers and finishes requests of all kinds in random order, and reuses heads at once. */
function* load(random: Random, outstanding: Set<number>, steps: number): Script {
  for (let step = 0; step < steps; step++) {
    takeAnswers(outstanding);
    for (let tries = random.below(4); tries > 0; tries--) {
      const head = random.below(SIZE);
      if (outstanding.has(head)) continue;
      const type = random.pick([0, 1, 4, 8, 99]);
      bench.prepare(head, type, random.below(64), random.pick([0, 512, 1024]));
      outstanding.add(head);
      bench.guest.driver.add(head);
    }
    bench.guest.driver.publish();
    for (let count = random.below(3); count > 0 && bench.device.open.length > 0; count--) {
      bench.device.finish(random.below(bench.device.open.length), random.chance(5) ? -5 : 0);
    }
    yield;
  }
}

/** Finishes everything. */
function* drain(outstanding: Set<number>): Script {
  yield;
  while (bench.device.open.length > 0) {
    bench.device.finish(0);
    yield;
  }
  takeAnswers(outstanding);
}

function* loadThenDrain(random: Random, outstanding: Set<number>, steps: number): Script {
  yield* load(random, outstanding, steps);
  yield* drain(outstanding);
}

/** Puts memory and driver back to the moment of a crash; returns the heads outstanding then. */
function restart(crash: Crash): Set<number> {
  const { driver, memory } = bench.guest;
  memory.restore(crash.memory);
  bench.taken.length = crash.taken;
  const nextAvailable = driver.available[1];
  Object.assign(driver, { nextUsed: crash.taken & 0xffff, nextAvailable, notified: nextAvailable });
  return new Set(crash.outstanding);
}

for (let round = 0; round < (soak ? 40 : 4); round++) {
  const roundSeed = seed + round;
  test(`killed at any store, and once more (UBIBLK_TEST_SEED=${roundSeed})`, () => {
    const random = new Random(roundSeed);
    bench = new QueueBench({ size: SIZE, inflight: true, eventIdx: random.chance(2) });
    const first = new Set<number>();
    const crashes = runWithCrashes(load(random, first, 25), first);
    expect(crashes.length).toBeGreaterThan(100);
    let resubmitted = 0;
    for (const crash of crashes) {
      const outstanding = restart(crash);
      const again = runWithCrashes(loadThenDrain(random, outstanding, 3), outstanding);
      expect([...outstanding]).toEqual([]);
      resubmitted += crash.outstanding.length;

      const last = restart(random.pick(again));
      bench.run(drain(last));
      expect([...last]).toEqual([]);
    }
    expect(resubmitted).toBeGreaterThan(100);
    expect(bench.logged).toEqual([]);
    bench.free();
  });
}

test('without the record the same crashes lose requests, so the test would notice', () => {
  const random = new Random(1);
  bench = new QueueBench({ size: SIZE, inflight: true });
  const first = new Set<number>();
  const crashes = runWithCrashes(load(random, first, 25), first);
  const { size, address } = bench.guest.memory.regions[1];
  const record = new Uint8Array(bench.guest.memory.window(0, size, 1));
  expect(address % 8).toBe(0);
  let harmed = 0;
  for (const crash of crashes) {
    const outstanding = restart(crash);
    record.fill(0);
    try {
      bench.run(drain(outstanding));
      if (outstanding.size > 0) harmed++;
    } catch {
      harmed++;
    }
  }
  expect(harmed).toBeGreaterThan(0);
  bench.free();
});

test('requests come back in the order they were taken', () => {
  bench = new QueueBench({ size: SIZE, inflight: true });
  const order = [5, 2, 7, 0, 3];
  const outstanding = new Set(order);
  const crashes = runWithCrashes(
    (function* (): Script {
      for (const head of order) bench.offer(head, 0, head);
      yield;
    })(),
    outstanding,
  );
  // The moment when all were taken and none was answered.
  const crash = crashes.filter(({ memory }) => {
    bench.guest.memory.restore(memory);
    return bench.guest.driver.usedIdx === 0;
  });
  restart(crash[crash.length - 2]);
  bench.run(
    (function* (): Script {
      yield;
      const sectors = bench.device.asked.map(({ offset }) => offset / 512);
      expect(sectors.slice(0, 5)).toEqual(order);
    })(),
  );
  bench.free();
});

test('a record of nonsense harms nobody', () => {
  const random = new Random(seed);
  for (let round = 0; round < 200; round++) {
    bench = new QueueBench({ size: SIZE, inflight: true });
    const { size } = bench.guest.memory.regions[1];
    const record = new Uint8Array(bench.guest.memory.window(0, size, 1));
    for (let i = 0; i < size; i++) record[i] = random.chance(2) ? random.below(3) : random.next();
    // The right version, so that it is believed.
    if (!random.chance(4)) record.set([1, 0], 8);
    for (let head = 0; head < SIZE; head++) bench.prepare(head, 0, head, 512);
    bench.run(
      (function* (): Script {
        yield;
        while (bench.device.open.length > 0) bench.device.finish(0);
        yield;
      })(),
    );
    bench.free();
  }
});

test('a new record begins with the used index and holds nothing', () => {
  const memory = new NativeBuffer(inflightBytes(SIZE));
  new Uint8Array(memory.window()).fill(0xee);
  const record = new InflightRecord(memory.address, SIZE);
  expect(record.recover(77)).toBe(null);
  expect(new InflightRecord(memory.address, SIZE).recover(77)).toEqual([]);
  memory.free();
});

test('one record is a multiple of 64 bytes, as the next one follows it', () => {
  for (const size of [1, 2, 8, 256, 1024, 32768]) {
    expect(inflightBytes(size) % 64).toBe(0);
    expect(inflightBytes(size)).toBeGreaterThanOrEqual(16 + 16 * size);
  }
});

test('queues share a record alike, and each gets what its size needs', () => {
  for (const size of [1, 8, 128, 32768])
    for (const queues of [1, 2, 3, 64])
      expect(inflightShare(queues * inflightBytes(size), queues)).toBe(inflightBytes(size));
  // Whoever rounds the whole up to pages gives each queue more, none a part of the next one's.
  const share = inflightShare(8192, 3);
  expect(share % 64).toBe(0);
  expect(share).toBeGreaterThanOrEqual(inflightBytes(128));
  expect(3 * share).toBeLessThanOrEqual(8192);
});
