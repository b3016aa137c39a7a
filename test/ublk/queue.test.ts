/** A queue of a ublk device whose kernel, disk and main thread do what they like. */
import { afterEach, expect, test } from 'bun:test';
import { EINVAL, EIO, ENOSPC, EOPNOTSUPP } from '../../ffi/errno.ts';
import { DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES } from '../../src/device/request.ts';
import { Random, seed, soak } from '../random.ts';
import {
  type BenchOptions,
  MAX_IO,
  OPS,
  QueueBench,
  type Script,
  SIZE_BYTES,
} from './queue_bench.ts';

/** UBLK_IO_OP_* and flags, as linux/ublk_cmd.h has them. */
const OP_READ = 0;
const OP_WRITE = 1;
const OP_FLUSH = 2;
const OP_DISCARD = 3;
const OP_WRITE_SAME = 4;
const OP_WRITE_ZEROES = 5;
const OP_ZONE_OPEN = 10;
const OP_REPORT_ZONES = 18;
const F_META = 1 << 11;
const F_FUA = 1 << 13;
const F_NOUNMAP = 1 << 15;

let bench: QueueBench;

function run(script: (bench: QueueBench) => Script, options: BenchOptions = {}): void {
  bench = new QueueBench(options);
  bench.run(script(bench));
}

afterEach(() => bench.free());

test('every tag is fetched once, each with memory of its own', () => {
  run(function* (b) {
    yield;
    const fetched = b.ring.take(OPS.fetch);
    expect(fetched.map(({ tag }) => tag)).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    const [{ address }] = fetched;
    expect(fetched.map((command) => command.address - address)).toEqual(
      fetched.map(({ tag }) => tag * MAX_IO),
    );
    expect(address % 4096).toBe(0);
    expect(fetched.every(({ place, result }) => place === -1 && result === 0)).toBe(true);
  });
  expect(bench.end).toBe('device ended');
});

test('as many completions are waited for as came last, where the disk has enough of them', () => {
  run(function* (b) {
    yield;
    let tag = 0;
    for (const [given, waitedFor] of [
      [3, 1],
      [2, 2],
      [1, 1],
      [2, 2],
    ]) {
      for (let i = 0; i < given; i++) b.give(tag++, { op: OP_READ, sectors: 8, start: 16 });
      yield;
      expect(b.ring.gathered).toBe(waitedFor);
    }
    for (let done = 0; done < tag; done++) b.disk.finish(done);
    yield;
    expect(b.ring.gathered).toBe(1);
  });
});

test('a disk that answers at once has more and more requests waited for, as long as they come', () => {
  run(function* (b) {
    yield;
    const waitedFor: number[] = [];
    for (const given of [1, 2, 4, 8, 8, 1, 1, 1]) {
      for (let tag = 0; tag < given; tag++) b.give(tag, { op: 9 });
      yield;
      waitedFor.push(b.ring.gathered);
    }
    expect(waitedFor).toEqual([1, 2, 4, 8, 16, 8, 4, 2]);
  });
});

test('each operation goes down as it came, and its result is what it moved', () => {
  run(function* (b) {
    yield;
    const [{ address }] = b.ring.take(OPS.fetch);
    b.give(0, { op: OP_READ, sectors: 8, start: 16 });
    b.give(1, { op: OP_WRITE, sectors: 2048, start: 0 });
    b.give(2, { op: OP_FLUSH });
    b.give(3, { op: OP_DISCARD, sectors: SIZE_BYTES / 512, start: 0 });
    b.give(4, { op: OP_WRITE_ZEROES, sectors: 1 << 20, start: 1 << 20 });
    b.give(5, { op: OP_WRITE_ZEROES | F_NOUNMAP, sectors: 8, start: 8 });
    yield;
    const asked = b.disk.asked.map(({ tag, op, offset, length }) => [tag, op, offset, length]);
    expect(asked).toEqual([
      [0, READ, 8192, 4096],
      [1, WRITE, 0, 1 << 20],
      [2, FLUSH, 0, 0],
      [3, DISCARD, 0, SIZE_BYTES],
      [4, WRITE_ZEROES, 1 << 29, 1 << 29],
      [5, WRITE_ZEROES, 4096, 4096],
    ]);
    expect(b.disk.asked.slice(0, 2)).toMatchObject([
      { segments: 1, address, buffer: -1 },
      { segments: 1, address: address + MAX_IO, buffer: -1 },
    ]);
    expect(b.disk.asked.slice(2).every(({ segments }) => segments === 0)).toBe(true);
    expect(b.disk.asked.map(({ unmap }) => unmap)).toEqual([true, true, true, true, true, false]);
    for (let tag = 0; tag < 6; tag++) b.disk.finish(tag);
    yield;
    expect(b.committed()).toEqual([
      [0, 4096],
      [1, 1 << 20],
      [2, 0],
      [3, 0],
      [4, 0],
      [5, 0],
    ]);
  });
});

test('FUA makes what writes durable; other flags change nothing', () => {
  run(function* (b) {
    yield;
    b.give(0, { op: OP_WRITE | F_FUA, sectors: 1 });
    b.give(1, { op: OP_WRITE | F_META | 0xf0000 | (7 << 8), sectors: 1 });
    b.give(2, { op: OP_WRITE_ZEROES | F_FUA | F_NOUNMAP, sectors: 1 });
    yield;
    expect(b.disk.asked.map(({ op, durable, unmap }) => [op, durable, unmap])).toEqual([
      [WRITE, true, true],
      [WRITE, false, true],
      [WRITE_ZEROES, true, false],
    ]);
  });
});

test('places beyond 2^32 sectors are exact', () => {
  const far = 2 ** 33 + 5;
  run(
    function* (b) {
      yield;
      b.give(0, { op: OP_READ, sectors: 3, start: far });
      yield;
      expect(b.disk.asked[0]).toMatchObject({ offset: far * 512, length: 1536, bits: 1536 });
    },
    { sizeBytes: 2 ** 33 * 1024 },
  );
});

test('requests that follow one another are answered as they are done, and a slow one holds up none', () => {
  run(function* (b) {
    yield;
    b.give(0, { op: OP_READ, sectors: 8, start: 0 });
    yield;
    for (let round = 0; round < 50; round++) {
      for (let tag = 1; tag < 8; tag++) b.give(tag, { op: OP_WRITE, sectors: 8, start: tag * 8 });
      yield;
      const order = [5, 1, 7, 2, 6, 3, 4];
      for (const tag of order) b.disk.finish(tag);
      yield;
      expect(b.committed()).toEqual(order.map((tag) => [tag, 4096]));
      expect(b.ring.stateOf(0)).toBe('with the server');
    }
    b.disk.finish(0);
    yield;
    expect(b.committed()).toEqual([[0, 4096]]);
  });
});

test('one that is done at once is committed in the same turn', () => {
  run(function* (b) {
    yield;
    const { submit } = b.disk;
    b.disk.submit = (request) => {
      submit.call(b.disk, request);
      b.disk.finish((request as unknown as { tag: number }).tag);
    };
    b.ring.take(0);
    for (let tag = 0; tag < 8; tag++) b.give(tag, { op: OP_READ, sectors: 1 });
    yield;
    expect(b.committed().length).toBe(8);
    expect(b.shown).toEqual([]);
  });
});

test('an error of the disk is the result of its request alone', () => {
  run(function* (b) {
    yield;
    b.give(0, { op: OP_WRITE, sectors: 8 });
    b.give(1, { op: OP_FLUSH });
    b.give(2, { op: OP_READ, sectors: 8 });
    yield;
    b.disk.finish(0, -ENOSPC);
    b.disk.finish(1, -EIO);
    b.disk.finish(2);
    yield;
    expect(b.committed()).toEqual([
      [0, -ENOSPC],
      [1, -EIO],
      [2, 4096],
    ]);
  });
});

test('what is too long, outside the disk or unknown fails at once, and the rest goes on', () => {
  const last = SIZE_BYTES / 512;
  run(function* (b) {
    yield;
    b.ring.take(0);
    b.give(0, { op: OP_READ, sectors: MAX_IO / 512 + 1 });
    b.give(1, { op: OP_WRITE, sectors: 8, start: last - 7 });
    b.give(2, { op: OP_DISCARD, sectors: 1, start: last });
    b.give(3, { op: OP_WRITE_ZEROES, sectors: 0xffff_ffff, start: 0 });
    b.give(4, { op: OP_READ, sectors: 1, start: 0xffff_ffff_ffff_ffffn });
    b.give(5, { op: OP_WRITE_SAME, sectors: 1 });
    b.give(6, { op: OP_REPORT_ZONES, sectors: 1 });
    b.give(7, { op: OP_READ, sectors: 1, start: last - 1 });
    yield;
    expect(b.committed()).toEqual([
      [0, -EINVAL],
      [1, -EIO],
      [2, -EIO],
      [3, -EIO],
      [4, -EIO],
      [5, -EOPNOTSUPP],
      [6, -EOPNOTSUPP],
    ]);
    b.give(0, { op: OP_ZONE_OPEN, sectors: 1 });
    b.give(1, { op: 0xff, sectors: 1 });
    yield;
    expect(b.committed()).toEqual([
      [0, -EOPNOTSUPP],
      [1, -EOPNOTSUPP],
    ]);
    expect(b.disk.asked.map(({ tag }) => tag)).toEqual([7]);
  });
});

test('what is in work is shown, and gone from there when it is answered', () => {
  run(function* (b) {
    yield;
    b.give(6, { op: OP_WRITE, sectors: 16, start: 32 });
    b.give(2, { op: OP_FLUSH });
    b.give(4, { op: 77 });
    yield;
    expect(b.shown).toEqual([['flush'], ['write', 32, 16]]);
    b.disk.finish(2);
    yield;
    expect(b.shown).toEqual([['write', 32, 16]]);
    b.disk.finish(6);
    yield;
    expect(b.shown).toEqual([]);
    const { counters } = b.board.queues[0];
    expect(counters.refusedRequests).toBe(1);
    expect(counters.of(WRITE)).toMatchObject({ ops: 1, bytes: 16 * 512, errors: 0 });
    for (const op of [WRITE, FLUSH]) expect(counters.of(op).latency.count).toBe(1);
  });
});

test('data that must be asked for is, with the memory of the tag, and then the request begins', () => {
  run(function* (b) {
    yield;
    const fetched = b.ring.take(OPS.fetch);
    b.ring.complete(3, 1);
    yield;
    expect(b.disk.asked).toEqual([]);
    const { address } = fetched[3];
    expect(b.ring.take(OPS.getData)).toMatchObject([{ tag: 3, address, place: -1 }]);
    b.give(3, { op: OP_WRITE, sectors: 8 });
    yield;
    expect(b.disk.asked).toMatchObject([{ tag: 3, op: WRITE, address }]);
    b.disk.finish(3);
    yield;
    expect(b.committed()).toEqual([[3, 4096]]);
  });
});

test('registered memory is named by the tag, and begins at 0', () => {
  run(
    function* (b) {
      yield;
      const fetched = b.ring.take(OPS.fetch);
      expect(fetched.map(({ place, address }) => [place, address])).toEqual(
        fetched.map(({ tag }) => [tag, 0]),
      );
      b.give(5, { op: OP_WRITE, sectors: 8 });
      b.give(6, { op: OP_DISCARD, sectors: 8 });
      yield;
      expect(b.disk.asked).toMatchObject([
        { tag: 5, buffer: 5, address: 0, segments: 1 },
        { tag: 6, buffer: -1 },
      ]);
      b.disk.finish(5);
      yield;
      expect(b.ring.take(OPS.commit)).toMatchObject([{ tag: 5, place: 5, address: 0 }]);
    },
    { dataPath: 'registered' },
  );
});

test('data that a layer fetches needs no memory here', () => {
  run(
    function* (b) {
      yield;
      expect(
        b.ring.take(OPS.fetch).every(({ address, place }) => address === 0 && place === -1),
      ).toBe(true);
      b.give(0, { op: OP_READ, sectors: 8 });
      yield;
      expect(b.disk.asked).toMatchObject([{ segments: 1, buffer: -1, length: 4096 }]);
    },
    { dataPath: 'fetched' },
  );
});

test('a device that ends takes back its tags, and waits for what is in work', () => {
  run(function* (b) {
    yield;
    b.give(0, { op: OP_WRITE, sectors: 8 });
    b.give(1, { op: OP_READ, sectors: 8 });
    yield;
    b.ring.take(0);
    b.ring.giveBack();
    yield;
    expect(b.end).toBe(undefined);
    b.disk.finish(1);
    yield;
    // The queue is not done before the last one is.
    expect(b.end).toBe(undefined);
    b.disk.finish(0, -EIO);
    expect(b.committed()).toEqual([[1, 4096]]);
  });
  expect(bench.committed()).toEqual([[0, -EIO]]);
  expect(bench.end).toBe('device ended');
});

test('a device may end before a single request has come', () => {
  run(function* (b) {
    b.ring.giveBack();
    yield;
  });
  expect(bench.end).toBe('device ended');
});

test('a queue that is to leave finishes what it has, hands it over, and takes nothing new', () => {
  run(function* (b) {
    yield;
    b.give(0, { op: OP_WRITE, sectors: 8 });
    b.give(1, { op: OP_WRITE, sectors: 8 });
    yield;
    b.leave = true;
    b.disk.finish(0);
    yield;
    // Something comes all the same: the kernel keeps it for the successor.
    b.give(2, { op: OP_WRITE, sectors: 8 });
    b.give(0, { op: OP_WRITE, sectors: 8, start: 64 });
    yield;
    expect(b.end).toBe(undefined);
    b.disk.finish(1);
  });
  expect(bench.end).toBe('left');
  expect(bench.disk.asked.map(({ tag }) => tag)).toEqual([0, 1]);
  expect(bench.committed()).toEqual([
    [0, 4096],
    [1, 4096],
  ]);
  expect([0, 1, 2].map((tag) => bench.ring.stateOf(tag))).toEqual([
    'with the server',
    'fetching',
    'with the server',
  ]);
});

test('one that has nothing in work leaves at once', () => {
  run(function* (b) {
    b.leave = true;
    yield;
  });
  expect(bench.end).toBe('left');
  expect(bench.ring.stateOf(0)).toBe('fetching');
});

test('what waits for stripes is left to the successor, too, and what is at work is not', () => {
  run(
    function* (b) {
      yield;
      for (let tag = 0; tag < 4; tag++) b.give(tag, { op: OP_READ, sectors: 8, start: tag * 8 });
      yield;
      b.disk.parked.add(1).add(3);
      // Until it has to leave, a queue gives nothing up.
      b.give(4, { op: OP_FLUSH });
      yield;
      expect(b.disk.open.size).toBe(5);
      b.leave = true;
      yield;
      expect([...b.disk.open.keys()]).toEqual([0, 2, 4]);
      expect(b.shown).toEqual([['read', 0, 8], ['read', 16, 8], ['flush']]);
      for (const tag of [0, 2, 4]) b.disk.finish(tag);
    },
    { lazy: true },
  );
  expect(bench.end).toBe('left');
  expect(bench.committed()).toEqual([
    [0, 4096],
    [2, 4096],
    [4, 0],
  ]);
  expect(bench.ring.stateOf(1)).toBe('with the server');
});

test('requests that came to wait while the queue leaves are left, too', () => {
  run(
    function* (b) {
      yield;
      b.give(0, { op: OP_READ, sectors: 8 });
      b.give(1, { op: OP_READ, sectors: 8 });
      yield;
      b.leave = true;
      yield;
      b.disk.parked.add(1);
      b.disk.finish(0);
    },
    { lazy: true },
  );
  expect(bench.end).toBe('left');
  expect(bench.committed()).toEqual([[0, 4096]]);
});

test('a queue hears from other threads whenever it is awake', () => {
  run(
    function* (b) {
      yield;
      const before = b.disk.received;
      b.give(0, { op: OP_FLUSH });
      yield;
      expect(b.disk.received).toBe(before + 1);
    },
    { lazy: true },
  );
});

test('a queue none of whose commands are taken says so', () => {
  run(function* (b) {
    for (let tag = 0; tag < 8; tag++) b.ring.complete(tag, -EOPNOTSUPP);
    yield;
  });
  expect(bench.error?.message).toBe('a ublk command of queue 3 failed with EOPNOTSUPP');
});

test('one command that is refused ends the queue, whose requests could not be answered any more', () => {
  run(function* (b) {
    yield;
    b.give(0, { op: OP_WRITE, sectors: 8 });
    b.give(1, { op: OP_WRITE, sectors: 8 });
    yield;
    b.disk.finish(0);
    yield;
    b.ring.complete(0, -EINVAL);
    b.give(2, { op: OP_WRITE, sectors: 8 });
    yield;
    // What the disk has in work is waited for: its memory must stay.
    expect(bench.error).toBe(undefined);
    b.disk.finish(1);
    yield;
    throw new Error('the queue goes on');
  });
  expect(bench.error?.message).toBe('a ublk command of queue 3 failed with EINVAL');
  expect(bench.disk.asked.map(({ tag }) => tag)).toEqual([0, 1]);
  expect(bench.committed().map(([tag]) => tag)).toEqual([0, 1]);
});

test(`a random load is answered once and rightly, in whatever order (${seed})`, () => {
  const random = new Random(seed);
  const depth = 64;
  const rounds = soak ? 20_000 : 500;
  let answered = 0;
  let given = 0;
  run(
    function* (b) {
      yield;
      b.ring.take(0);
      const expected = new Map<number, number>();
      for (let round = 0; round < rounds; round++) {
        for (let tag = 0; tag < depth; tag++) {
          if (b.ring.stateOf(tag) !== 'fetching' || random.chance(2)) continue;
          const op = random.pick([OP_READ, OP_WRITE, OP_FLUSH, OP_DISCARD, 9]);
          const sectors = op === OP_FLUSH ? 0 : 1 + random.below(MAX_IO / 512 + 8);
          const start = random.below(SIZE_BYTES / 512 + 64);
          b.give(tag, { op, sectors, start });
          expected.set(tag, resultOf(op, sectors, start));
          given++;
        }
        yield;
        for (const tag of [...b.disk.open.keys()]) if (random.chance(3)) b.disk.finish(tag);
        yield;
        for (const [tag, result] of b.committed()) {
          expect(result).toBe(expected.get(tag) as number);
          expected.delete(tag);
          answered++;
        }
      }
      expect(given - answered).toBe(expected.size);
      expect(b.shown.length).toBe(b.disk.open.size);
    },
    { depth },
  );
  expect(answered).toBeGreaterThan(rounds);
});

function resultOf(op: number, sectors: number, start: number): number {
  if (op === 9) return -EOPNOTSUPP;
  if (op === OP_FLUSH) return 0;
  const moves = op === OP_READ || op === OP_WRITE;
  if (moves && sectors > MAX_IO / 512) return -EINVAL;
  if (start + sectors > SIZE_BYTES / 512) return -EIO;
  return moves ? sectors * 512 : 0;
}
