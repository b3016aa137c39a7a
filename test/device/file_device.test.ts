/** The bottom of the device stack on an engine that is short, interrupted, full and broken. */
import { afterEach, beforeEach, expect, test } from 'bun:test';
import { EAGAIN, EINTR, EIO, ENOSPC, EOPNOTSUPP } from '../../ffi/errno.ts';
import type { DiskFacts } from '../../src/device/disk.ts';
import { FileDevice } from '../../src/device/file_device.ts';
import {
  DISCARD,
  FLUSH,
  READ,
  RequestTable,
  WRITE,
  WRITE_ZEROES,
} from '../../src/device/request.ts';
import { Random, seed } from '../random.ts';
import { diskFacts } from '../vhost/fake_guest.ts';
import { FakeEngine, Requester } from './fake_engine.ts';

const DISK_BYTES = 1 << 22;
const PUNCH_HOLE = 3;
const ZERO_RANGE = 0x11;
const DSYNC = 2;

let engine: FakeEngine;
let table: RequestTable;
let requester: Requester;
let failures: number[];

function deviceWith(facts: Partial<DiskFacts> = {}): FileDevice {
  const onFailure = (_: unknown, result: number) => failures.push(result);
  return new FileDevice(engine, diskFacts(facts), table, onFailure);
}

/** A range to discard or zero. */
function range(
  op: typeof DISCARD | typeof WRITE_ZEROES,
  offset: number,
  length: number,
  more = {},
) {
  return requester.make(op, offset, [], { length, ...more });
}

beforeEach(() => {
  const random = new Random(7);
  engine = new FakeEngine(DISK_BYTES);
  table = new RequestTable();
  requester = new Requester(table);
  failures = [];
  for (let i = 0; i < DISK_BYTES; i += 97) engine.disk[i] = 1 + (random.next() % 255);
});

afterEach(() => requester.free());

const SHAPES: [string, [number, number][]][] = [
  ['one part', [[0, 4096]]],
  [
    'two parts',
    [
      [8192, 512],
      [0, 512],
    ],
  ],
  [
    'parts of all lengths',
    [
      [100, 512],
      [5000, 13],
      [4096, 1],
      [9000, 498],
      [20000, 2048],
      [12000, 1024],
    ],
  ],
];

for (const [name, parts] of SHAPES) {
  const length = parts.reduce((sum, [, bytes]) => sum + bytes, 0);

  test(`a read of ${name} that is short at any byte goes on there`, () => {
    const device = deviceWith();
    for (let cut = 1; cut < length; cut += cut % 64 < 3 ? 1 : 61) {
      requester.bytes.fill(0xee, 0, 32768);
      engine.verdict = (_, number) =>
        number === engine.calls.length - 1 && first() ? cut : undefined;
      let calls = 0;
      const first = () => calls++ === 0;
      expect(requester.run(device, engine, requester.make(READ, 1024, parts))).toBe(0);
      const expected = engine.disk.subarray(1024, 1024 + length);
      expect(Buffer.compare(requester.gather(parts), expected)).toBe(0);
    }
    expect(failures).toEqual([]);
    expect(device.inFlight).toBe(0);
  });

  test(`a write of ${name} that is short again and again is whole in the end (${seed})`, () => {
    const random = new Random(seed);
    const device = deviceWith();
    for (let round = 0; round < 100; round++) {
      for (let i = 0; i < 32768; i++) requester.bytes[i] = random.next();
      engine.verdict = (call) => {
        if (random.chance(4)) return random.pick([-EINTR, -EAGAIN]);
        return 1 + random.below(call.length);
      };
      const before = engine.disk.slice();
      expect(requester.run(device, engine, requester.make(WRITE, 2048, parts))).toBe(0);
      before.set(requester.gather(parts), 2048);
      expect(Buffer.compare(engine.disk, before)).toBe(0);
    }
  });
}

const MIB = 1 << 20;
const PIECE = 1 << 18;

test('a large direct transfer goes in pieces side by side, to the right places', () => {
  engine.parallel = true;
  const device = deviceWith({ direct: true, pieceBytes: PIECE, sizeBytes: DISK_BYTES });
  const expected = engine.disk.slice(4096, 4096 + MIB + 512);
  expect(requester.run(device, engine, requester.make(READ, 4096, [[512, MIB + 512]]))).toBe(0);
  expect(Buffer.compare(requester.bytes.subarray(512, 512 + MIB + 512), expected)).toBe(0);
  const at = [0, 1, 2, 3, 4].map((i) => 4096 + i * PIECE);
  expect(engine.calls.map(({ offset }) => offset)).toEqual(at);
  expect(engine.calls.map(({ length }) => length)).toEqual([PIECE, PIECE, PIECE, PIECE, 512]);
  expect(engine.calls.some(({ byWorker }) => byWorker)).toBe(false);

  engine.calls.length = 0;
  requester.bytes.fill(0x5a, 0, MIB);
  const write = requester.make(WRITE, MIB, [[0, MIB]], { durable: true });
  expect(requester.run(device, engine, write)).toBe(0);
  expect(engine.calls.map(({ flags }) => flags)).toEqual([DSYNC, DSYNC, DSYNC, DSYNC]);
  expect(engine.disk.subarray(MIB, 2 * MIB).every((byte) => byte === 0x5a)).toBe(true);
});

test('a piece that falls short or fails makes all go once more, and an error is told once', () => {
  engine.parallel = true;
  const device = deviceWith({ direct: true, pieceBytes: PIECE, sizeBytes: DISK_BYTES });
  for (const wrong of [512, 0, -EINTR, -EAGAIN, -EIO]) {
    engine.calls.length = 0;
    requester.bytes.fill(0, 0, MIB);
    engine.verdict = (_, number) => (number === 2 ? wrong : undefined);
    expect(requester.run(device, engine, requester.make(READ, 0, [[0, MIB]]))).toBe(0);
    expect(Buffer.compare(requester.bytes.subarray(0, MIB), engine.disk.subarray(0, MIB))).toBe(0);
    expect(engine.calls.length).toBe(5);
  }
  expect(failures).toEqual([]);
  engine.verdict = () => -EIO;
  expect(requester.run(device, engine, requester.make(READ, 0, [[0, MIB]]))).toBe(-EIO);
  expect(failures).toEqual([-EIO]);
  expect(device.inFlight).toBe(0);
});

test('of a large read from the page cache a worker thread copies every other piece', () => {
  engine.parallel = true;
  const device = deviceWith({ direct: false, pieceBytes: PIECE, sizeBytes: DISK_BYTES });
  expect(requester.run(device, engine, requester.make(READ, 0, [[0, MIB]]))).toBe(0);
  expect(engine.calls.map(({ byWorker }) => byWorker)).toEqual([false, true, false, true]);
  engine.calls.length = 0;
  expect(requester.run(device, engine, requester.make(WRITE, 0, [[0, MIB]]))).toBe(0);
  expect(engine.calls.length).toBe(1);
});

test('EINTR and EAGAIN are tried again, though not for ever', () => {
  const device = deviceWith();
  engine.verdict = (_, number) => (number < 1000 ? -EAGAIN : undefined);
  expect(requester.run(device, engine, requester.make(READ, 0, [[0, 512]]))).toBe(0);
  expect(engine.calls.length).toBe(1001);
  engine.verdict = () => -EINTR;
  expect(requester.run(device, engine, requester.make(READ, 0, [[0, 512]]))).toBe(-EINTR);
  expect(failures).toEqual([-EINTR]);
  for (const op of [FLUSH, DISCARD, WRITE_ZEROES] as const) {
    let calls = 0;
    engine.verdict = () => (calls++ === 0 ? -EINTR : undefined);
    expect(requester.run(device, engine, requester.make(op, 0, [], { length: 512 }))).toBe(0);
  }
});

test('an error is the request result and is told once', () => {
  const device = deviceWith();
  engine.verdict = () => -ENOSPC;
  for (const request of [
    requester.make(WRITE, 0, [[0, 512]]),
    requester.make(FLUSH, 0, []),
    range(DISCARD, 0, 512),
    range(WRITE_ZEROES, 0, 512),
  ]) {
    failures.length = 0;
    expect(requester.run(device, engine, request)).toBe(-ENOSPC);
    expect(failures).toEqual([-ENOSPC]);
  }
});

test('an error after a short transfer is an error', () => {
  const device = deviceWith();
  engine.verdict = (_, number) => (number === 0 ? 100 : -EIO);
  expect(requester.run(device, engine, requester.make(WRITE, 0, [[0, 512]]))).toBe(-EIO);
});

test('the end of a file that was cut is an I/O error, not an endless loop', () => {
  const device = deviceWith();
  for (const parts of [
    [[0, 512]],
    [
      [0, 512],
      [1024, 512],
    ],
  ] as const) {
    let calls = 0;
    engine.verdict = () => (calls++ === 0 ? 100 : 0);
    expect(requester.run(device, engine, requester.make(READ, 0, parts))).toBe(-EIO);
    engine.verdict = () => 0;
    expect(requester.run(device, engine, requester.make(WRITE, 0, parts))).toBe(-EIO);
  }
  engine.verdict = () => 0;
  const zeroing = deviceWith({ canPunch: false, canZeroRange: false });
  expect(requester.run(zeroing, engine, range(WRITE_ZEROES, 0, 512))).toBe(-EIO);
});

test('a transfer of more than the kernel moves at once is done in parts', () => {
  const device = deviceWith({ sizeBytes: 2 ** 33 });
  engine.verdict = (call) => (call.length > 0x7ffff000 ? -EIO : -ENOSPC);
  const request = requester.make(READ, 0, [[0, 0]], { length: 2 ** 32 });
  expect(requester.run(device, engine, request)).toBe(-ENOSPC);
});

test('durable writes say so, reads never do', () => {
  const device = deviceWith();
  const durable = { durable: true };
  requester.run(device, engine, requester.make(WRITE, 0, [[0, 512]], durable));
  requester.run(
    device,
    engine,
    requester.make(
      WRITE,
      0,
      [
        [0, 512],
        [1024, 512],
      ],
      durable,
    ),
  );
  requester.run(device, engine, requester.make(WRITE, 0, [[0, 512]]));
  requester.run(device, engine, requester.make(READ, 0, [[0, 512]], durable));
  expect(engine.calls.map(({ flags }) => flags)).toEqual([DSYNC, DSYNC, 0, 0]);
});

test('every part of a durable write that is short says so', () => {
  const device = deviceWith();
  engine.verdict = (call) => Math.min(call.length, 100);
  requester.run(device, engine, requester.make(WRITE, 0, [[0, 512]], { durable: true }));
  expect(engine.calls.length).toBe(6);
  expect(engine.calls.every(({ flags }) => flags === DSYNC)).toBe(true);
});

test('a durable discard or zeroing is followed by a sync, whose error counts', () => {
  const device = deviceWith();
  for (const op of [DISCARD, WRITE_ZEROES] as const) {
    engine.calls.length = 0;
    engine.verdict = () => undefined;
    expect(requester.run(device, engine, range(op, 0, 512, { durable: true }))).toBe(0);
    expect(engine.calls.map(({ kind }) => kind)).toEqual(['fallocate', 'fdatasync']);
    engine.verdict = (call) => (call.kind === 'fdatasync' ? -EIO : undefined);
    expect(requester.run(device, engine, range(op, 0, 512, { durable: true }))).toBe(-EIO);
  }
});

test('a write-through disk needs no flush, but zeroing of it does', () => {
  const device = deviceWith({ writeThrough: true });
  expect(requester.run(device, engine, requester.make(FLUSH, 0, []))).toBe(0);
  expect(engine.calls).toEqual([]);
  requester.run(device, engine, range(DISCARD, 0, 512));
  expect(engine.calls.map(({ kind }) => kind)).toEqual(['fallocate', 'fdatasync']);
});

test('a flush of a read-only disk is done', () => {
  const device = deviceWith({ readOnly: true });
  expect(requester.run(device, engine, requester.make(FLUSH, 0, []))).toBe(0);
  expect(engine.calls).toEqual([]);
});

// Zeroing

test('space is given back where that is asked for or allowed, else zeroed in place', () => {
  const device = deviceWith();
  requester.run(device, engine, range(DISCARD, 0, 4096));
  requester.run(device, engine, range(WRITE_ZEROES, 0, 4096, { unmap: true }));
  requester.run(device, engine, range(WRITE_ZEROES, 8192, 4096));
  expect(engine.calls.map(({ flags }) => flags)).toEqual([PUNCH_HOLE, PUNCH_HOLE, ZERO_RANGE]);
});

test('a file that refuses to punch or to zero is written, and not asked again', () => {
  const device = deviceWith();
  engine.verdict = (call) => (call.kind === 'fallocate' ? -EOPNOTSUPP : undefined);
  const before = engine.disk.slice();
  before.fill(0, 4096, 4096 + 200 * 512);
  const request = range(WRITE_ZEROES, 4096, 200 * 512, { unmap: true });
  expect(requester.run(device, engine, request)).toBe(0);
  expect(Buffer.compare(engine.disk, before)).toBe(0);
  const refused = engine.calls.filter(({ kind }) => kind === 'fallocate').map(({ flags }) => flags);
  expect(refused).toEqual([PUNCH_HOLE, ZERO_RANGE]);
  engine.calls.length = 0;
  expect(requester.run(device, engine, range(WRITE_ZEROES, 0, 512, { unmap: true }))).toBe(0);
  expect(requester.run(device, engine, range(DISCARD, 0, 512))).toBe(0);
  expect(engine.calls.map(({ kind }) => kind)).toEqual(['write']);
  expect(failures).toEqual([]);
});

test('two requests that learn of a refusal at the same time are both done', () => {
  const device = deviceWith();
  engine.verdict = (call) => (call.flags === PUNCH_HOLE ? -EOPNOTSUPP : undefined);
  const requests = [0, 1, 2].map((i) => range(WRITE_ZEROES, i * 4096, 4096, { unmap: true }));
  for (const request of requests) device.submit(request);
  engine.complete();
  expect(requests.map(({ result }) => result)).toEqual([0, 0, 0]);
  expect(requester.done.length).toBe(3);
  expect(engine.disk.subarray(0, 3 * 4096).every((byte) => byte === 0)).toBe(true);
});

test('a discard of a disk that can not is done without doing anything', () => {
  const device = deviceWith({ canPunch: false });
  expect(requester.run(device, engine, range(DISCARD, 0, 4096))).toBe(0);
  expect(engine.calls).toEqual([]);
});

for (const length of [512, 65536, 65536 + 512, 3 << 20, (3 << 20) - 512]) {
  test(`zeroes are written over exactly ${length} bytes, short writes and all (${seed})`, () => {
    const random = new Random(seed);
    const device = deviceWith({ canPunch: false, canZeroRange: false });
    for (const short of [false, true]) {
      engine.disk.fill(0xdd);
      engine.verdict = (call) => (short ? 1 + random.below(call.length) : undefined);
      const request = range(WRITE_ZEROES, 512, length, { durable: true });
      expect(requester.run(device, engine, request)).toBe(0);
      expect(engine.disk.indexOf(0)).toBe(512);
      expect(engine.disk.lastIndexOf(0)).toBe(512 + length - 1);
      expect(engine.disk.subarray(512, 512 + length).every((byte) => byte === 0)).toBe(true);
      expect(engine.calls.every(({ flags }) => flags === DSYNC)).toBe(true);
    }
  });
}

test('part of a block of a block device is zeroed by writing', () => {
  const device = deviceWith({ isBlockDevice: true, logicalBlock: 4096 });
  requester.run(device, engine, range(WRITE_ZEROES, 512, 4096));
  requester.run(device, engine, range(WRITE_ZEROES, 4096, 512));
  requester.run(device, engine, range(WRITE_ZEROES, 4096, 8192));
  requester.run(device, engine, range(DISCARD, 512, 512));
  expect(engine.calls.map(({ kind }) => kind)).toEqual(['write', 'write', 'fallocate']);
});

test('what is not aligned for direct I/O goes to the file without it', () => {
  const device = deviceWith({ direct: true, directMemoryAlign: 512, directOffsetAlign: 4096 });
  requester.run(device, engine, requester.make(READ, 4096, [[0, 4096]]));
  requester.run(device, engine, requester.make(READ, 512, [[0, 4096]]));
  requester.run(device, engine, requester.make(WRITE, 4096, [[0, 512]]));
  expect(engine.calls.map(({ file }) => file)).toEqual([0, 1, 1]);
});
