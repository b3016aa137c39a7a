/** Requests whose memory isn't aligned, more of them than there are buffers. */
import { afterEach, beforeEach, expect, test } from 'bun:test';
import { EIO } from '../../ffi/errno.ts';
import { BounceLayer } from '../../src/device/bounce.ts';
import { FileDevice } from '../../src/device/file_device.ts';
import {
  type BlockDevice,
  type BlockRequest,
  FLUSH,
  READ,
  RequestTable,
  WRITE,
} from '../../src/device/request.ts';
import { Random, seed } from '../random.ts';
import { diskFacts } from '../vhost/fake_guest.ts';
import { FakeEngine, Requester } from './fake_engine.ts';

const DISK_BYTES = 1 << 22;
const facts = diskFacts({
  sizeBytes: DISK_BYTES,
  direct: true,
  directMemoryAlign: 512,
  directOffsetAlign: 512,
});

let engine: FakeEngine;
let table: RequestTable;
let requester: Requester;
let device: BlockDevice;

beforeEach(() => {
  engine = new FakeEngine(DISK_BYTES);
  table = new RequestTable();
  requester = new Requester(table);
  const file = new FileDevice(engine, facts, table, () => {});
  device = new BounceLayer(file, facts, table);
  const random = new Random(7);
  for (let i = 0; i < DISK_BYTES; i++) engine.disk[i] = random.next();
});

afterEach(() => requester.free());

test('aligned requests and flushes go straight through', () => {
  requester.run(device, engine, requester.make(READ, 512, [[512, 1024]]));
  requester.run(
    device,
    engine,
    requester.make(WRITE, 512, [
      [512, 512],
      [4096, 512],
    ]),
  );
  requester.run(device, engine, requester.make(FLUSH, 0, []));
  expect(engine.calls.map(({ kind, length }) => [kind, length])).toEqual([
    ['read', 1024],
    ['write', 1024],
    ['fdatasync', 0],
  ]);
});

for (const [name, parts] of [
  ['one odd part', [[1, 4096]]],
  [
    'odd parts',
    [
      [1, 100],
      [3000, 924],
    ],
  ],
  [
    'odd lengths at even addresses',
    [
      [0, 100],
      [4096, 412],
    ],
  ],
  ['more than a buffer', [[3, 300 * 1024]]],
  [
    'more than a buffer in odd parts',
    [
      [3, 131000],
      [200001, 72],
      [500000, 200 * 1024 + 512],
    ],
  ],
] as [string, [number, number][]][]) {
  const length = parts.reduce((sum, [, bytes]) => sum + bytes, 0);

  test(`a read into ${name} fills it and nothing around it`, () => {
    requester.bytes.fill(0xee);
    const whole = requester.bytes.slice();
    expect(requester.run(device, engine, requester.make(READ, 1024, parts))).toBe(0);
    let from = 1024;
    for (const [at, bytes] of parts) {
      whole.set(engine.disk.subarray(from, from + bytes), at);
      from += bytes;
    }
    expect(Buffer.compare(requester.bytes, whole)).toBe(0);
  });

  test(`a write from ${name} writes it and nothing around it`, () => {
    const random = new Random(9);
    for (let i = 0; i < 1 << 20; i++) requester.bytes[i] = random.next();
    const whole = engine.disk.slice();
    whole.set(requester.gather(parts), 1024);
    const request = requester.make(WRITE, 1024, parts, { durable: true });
    expect(requester.run(device, engine, request)).toBe(0);
    expect(Buffer.compare(engine.disk, whole)).toBe(0);
    expect(engine.calls.every(({ flags }) => flags === 2)).toBe(true);
    expect(engine.calls.reduce((sum, call) => sum + call.length, 0)).toBe(length);
  });
}

test('an error in the middle ends the request with it', () => {
  engine.verdict = (_, number) => (number === 1 ? -EIO : undefined);
  const request = requester.make(READ, 0, [[1, 400 * 1024]]);
  expect(requester.run(device, engine, request)).toBe(-EIO);
  engine.verdict = () => undefined;
  expect(requester.run(device, engine, requester.make(READ, 0, [[1, 400 * 1024]]))).toBe(0);
});

test(`more requests than buffers wait for their turn, and all are done once (${seed})`, () => {
  const random = new Random(seed);
  const expected = engine.disk.slice();
  const requests: BlockRequest[] = [];
  for (let i = 0; i < 64; i++) {
    const at = i * 49152 + 1 + random.below(500);
    const length = 512 * (1 + random.below(64));
    const parts: [number, number][] = [[at, length]];
    const request = requester.make(random.chance(2) ? READ : WRITE, i * 65536, parts);
    requests.push(request);
    for (let j = 0; j < length; j++) requester.bytes[at + j] = random.next();
    if (request.op === WRITE) expected.set(requester.bytes.subarray(at, at + length), i * 65536);
  }
  engine.verdict = (call) => 1 + random.below(call.length);
  for (const request of requests) device.submit(request);
  engine.complete();
  expect(requester.done.length).toBe(64);
  expect(new Set(requester.done).size).toBe(64);
  expect(requests.every(({ result }) => result === 0)).toBe(true);
  expect(Buffer.compare(engine.disk, expected)).toBe(0);
  for (const request of requests.filter(({ op }) => op === READ)) {
    const at = request.address - requester.memory.address;
    const read = requester.bytes.subarray(at, at + request.length);
    const there = expected.subarray(request.offset, request.offset + request.length);
    expect(Buffer.compare(read, there)).toBe(0);
  }
});

test('a request of gigabytes over a device that completes at once needs no deep stack', () => {
  let pieces = 0;
  const instant: BlockDevice = {
    inFlight: 0,
    submit(request) {
      pieces++;
      request.result = 0;
      request.owner.completed(request);
    },
  };
  const layer = new BounceLayer(instant, facts, table);
  // The same megabyte again and again: 4 GiB in all.
  const parts = Array.from({ length: 4096 }, () => [1, 1 << 20] as const);
  const request = requester.make(WRITE, 0, parts);
  layer.submit(request);
  expect(requester.done).toEqual([request]);
  expect(pieces).toBe(2 ** 32 / (128 * 1024));
}, 60_000);

test('after an error of our own, what was kept is forgotten, and all buffers are there', () => {
  let failing = true;
  let most = 0;
  const open: BlockRequest[] = [];
  const below: BlockDevice = {
    inFlight: 0,
    submit(request) {
      if (failing) throw new Error('made to fail');
      most = Math.max(most, open.push(request));
    },
  };
  const finishAll = () => {
    for (let request = open.shift(); request; request = open.shift()) {
      request.result = 0;
      request.owner.completed(request);
    }
  };
  const layer = new BounceLayer(below, facts, table);
  const large = () => requester.make(READ, 0, [[1, 1 << 21]]);
  const before = large();
  expect(() => layer.submit(before)).toThrow('made to fail');
  failing = false;
  layer.reset();
  const first = large();
  layer.submit(first);
  const buffers = most;
  finishAll();
  expect(requester.done).toEqual([first]);
  expect(buffers).toBeGreaterThan(1);
  // As many as a layer has that never failed.
  most = 0;
  const other = new BounceLayer(below, facts, table);
  other.submit(large());
  expect(most).toBe(buffers);
});
