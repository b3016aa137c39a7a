/** The encrypted disk: what reaches the file, what reaches the guest, and nothing else. */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'bun:test';
import { createHash } from 'node:crypto';
import { EAGAIN, EIO } from '../../ffi/errno.ts';
import { shim } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import { Secret } from '../../src/crypto/secret.ts';
import { expandXts, freeXts } from '../../src/crypto/xts.ts';
import { CryptLayer } from '../../src/device/crypt.ts';
import { FileDevice } from '../../src/device/file_device.ts';
import {
  type BlockOp,
  type BlockRequest,
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
const facts = diskFacts({ sizeBytes: DISK_BYTES, canPunch: false });

type Parts = [at: number, length: number][];

let xts: number;
let scratch: NativeBuffer;
let engine: FakeEngine;
let table: RequestTable;
let requester: Requester;
let device: CryptLayer;

beforeAll(() => {
  const key = (from: number) => Secret.taking(Uint8Array.from({ length: 32 }, (_, i) => from + i));
  const keys = [key(0), key(0x80)] as const;
  xts = expandXts(keys);
  for (const part of keys) part.wipe();
  scratch = new NativeBuffer(DISK_BYTES);
});

afterAll(() => {
  freeXts(xts);
  scratch.free();
});

beforeEach(() => {
  engine = new FakeEngine(DISK_BYTES);
  table = new RequestTable();
  requester = new Requester(table);
  device = new CryptLayer(new FileDevice(engine, facts, table, () => {}), xts, table, null);
  const random = new Random(7);
  for (let i = 0; i < DISK_BYTES; i++) engine.disk[i] = random.next();
  for (let i = 0; i < requester.bytes.length; i += 3) requester.bytes[i] = random.next();
});

afterEach(() => requester.free());

/** Bytes of the disk as a guest sees them: each sector decrypted by itself. */
function plainDisk(offset: number, length: number): Uint8Array {
  const bytes = new Uint8Array(scratch.window());
  bytes.set(engine.disk.subarray(offset, offset + length));
  for (let at = 0; at < length; at += 512) {
    const address = scratch.address + at;
    expect(shim.ubiblk_xts_decrypt(xts, (offset + at) / 512, 1, address, address)).toBe(0);
  }
  return bytes.slice(0, length);
}

function run(op: BlockOp, offset: number, parts: Parts, more: Partial<BlockRequest> = {}): number {
  return requester.run(device, engine, requester.make(op, offset, parts, more));
}

test('a sector reaches the file as the format says', () => {
  for (let i = 0; i < 512; i++) requester.bytes[64 + i] = (7 * i + 3) & 0xff;
  expect(run(WRITE, 512, [[64, 512]])).toBe(0);
  const sha256 = createHash('sha256').update(engine.disk.subarray(512, 1024)).digest('hex');
  expect(sha256).toBe('a00b313d739738118c87b5d1dd167d42399e93ca7f6df6f6398a7607885d40c6');
});

const shapes: [string, Parts][] = [
  ['one part', [[4096, 4096]]],
  ['one odd part', [[1, 4096]]],
  [
    'parts that divide sectors',
    [
      [1, 100],
      [3000, 924],
    ],
  ],
  ['parts of a byte', Array.from({ length: 512 }, (_, i) => [i * 3, 1])],
  ['more than a buffer', [[3, 300 * 1024]]],
  [
    'more than a buffer in odd parts',
    [
      [3, 131000],
      [200001, 72],
      [500000, 200 * 1024 + 512],
    ],
  ],
  ['more than all buffers', [[5, 3 << 20]]],
];

for (const [name, parts] of shapes) {
  const length = parts.reduce((sum, [, bytes]) => sum + bytes, 0);

  test(`a read into ${name} decrypts it and changes nothing around it`, () => {
    const whole = requester.bytes.slice();
    expect(run(READ, 1024, parts)).toBe(0);
    const plain = plainDisk(1024, length);
    let from = 0;
    for (const [at, bytes] of parts) {
      whole.set(plain.subarray(from, from + bytes), at);
      from += bytes;
    }
    expect(Buffer.compare(requester.bytes, whole)).toBe(0);
  });

  test(`a write from ${name} encrypts it and leaves the guest's memory alone`, () => {
    const memory = requester.bytes.slice();
    const before = engine.disk.slice();
    expect(run(WRITE, 1024, parts, { durable: true })).toBe(0);
    expect(Buffer.compare(requester.bytes, memory)).toBe(0);
    expect(Buffer.compare(plainDisk(1024, length), requester.gather(parts))).toBe(0);
    before.set(engine.disk.subarray(1024, 1024 + length), 1024);
    expect(Buffer.compare(engine.disk, before)).toBe(0);
    expect(engine.calls.every(({ flags }) => flags === 2)).toBe(true);
  });
}

test('short transfers and retries never encrypt twice', () => {
  const random = new Random(seed);
  engine.verdict = (call) => (random.chance(3) ? -EAGAIN : 1 + random.below(call.length));
  for (const [, parts] of shapes.slice(0, 6)) {
    const length = parts.reduce((sum, [, bytes]) => sum + bytes, 0);
    expect(run(WRITE, 2048, parts)).toBe(0);
    expect(Buffer.compare(plainDisk(2048, length), requester.gather(parts))).toBe(0);
    const plain = requester.gather(parts);
    for (const [at, bytes] of parts) requester.bytes.fill(0, at, at + bytes);
    expect(run(READ, 2048, parts)).toBe(0);
    expect(Buffer.compare(requester.gather(parts), plain)).toBe(0);
  }
});

test('a read that fails brings nothing into the guest', () => {
  engine.verdict = () => -EIO;
  const before = requester.bytes.slice();
  for (const [, parts] of shapes) expect(run(READ, 0, parts)).toBe(-EIO);
  expect(Buffer.compare(requester.bytes, before)).toBe(0);
});

test('after a piece has failed no more are begun, and the buffers are free again', () => {
  engine.verdict = (_, number) => (number === 3 ? -EIO : undefined);
  expect(run(WRITE, 0, [[0, 4 << 20]])).toBe(-EIO);
  expect(engine.calls.length).toBeLessThan(24);
  engine.verdict = () => undefined;
  expect(run(WRITE, 0, [[0, 4 << 20]])).toBe(0);
  expect(Buffer.compare(plainDisk(0, 4 << 20), requester.bytes)).toBe(0);
});

test('zeroes are written as encrypted zeroes, and read back as zeroes', () => {
  const before = engine.disk.slice();
  const request = requester.make(WRITE_ZEROES, 512, [], { length: 1 << 20, unmap: true });
  expect(requester.run(device, engine, request)).toBe(0);
  expect(engine.calls.every(({ kind }) => kind === 'write')).toBe(true);
  expect(plainDisk(512, 1 << 20).every((byte) => byte === 0)).toBe(true);
  expect(engine.disk.subarray(512, 1024).every((byte) => byte === 0)).toBe(false);
  expect(Buffer.compare(engine.disk.subarray(0, 512), before.subarray(0, 512))).toBe(0);
  const end = 512 + (1 << 20);
  expect(Buffer.compare(engine.disk.subarray(end), before.subarray(end))).toBe(0);
  const one = requester.make(WRITE_ZEROES, 0, [], { length: 512, durable: true });
  expect(requester.run(device, engine, one)).toBe(0);
  expect(engine.calls.at(-1)?.flags).toBe(2);
  expect(plainDisk(0, 512).every((byte) => byte === 0)).toBe(true);
});

test('a discard is a hint that is not taken; a flush goes through', () => {
  const before = engine.disk.slice();
  const discard = requester.make(DISCARD, 0, [], { length: 65536 });
  expect(requester.run(device, engine, discard)).toBe(0);
  expect(engine.calls.length).toBe(0);
  expect(Buffer.compare(engine.disk, before)).toBe(0);
  expect(run(FLUSH, 0, [])).toBe(0);
  expect(engine.calls.map(({ kind }) => kind)).toEqual(['fdatasync']);
});

test(`far more requests than buffers are all done once (${seed})`, () => {
  const random = new Random(seed);
  const requests: BlockRequest[] = [];
  const expected = plainDisk(0, DISK_BYTES);
  for (let i = 0; i < 256; i++) {
    const length = 512 * (1 + random.below(32));
    const at = i * 16384;
    const op = random.chance(2) ? READ : WRITE;
    const request = requester.make(op, i * 16384, [[at, length]]);
    requests.push(request);
    if (op === WRITE) expected.set(requester.bytes.subarray(at, at + length), at);
  }
  for (const request of requests) device.submit(request);
  expect(device.inFlight).toBeLessThanOrEqual(80);
  engine.complete();
  expect(requester.done.length).toBe(256);
  expect(new Set(requester.done).size).toBe(256);
  expect(requests.every(({ result }) => result === 0)).toBe(true);
  expect(Buffer.compare(plainDisk(0, DISK_BYTES), expected)).toBe(0);
  for (const { op, offset, length } of requests) {
    if (op !== READ) continue;
    const there = expected.subarray(offset, offset + length);
    expect(Buffer.compare(requester.bytes.subarray(offset, offset + length), there)).toBe(0);
  }
});

test('a large request keeps neither a small one nor the next large one waiting for its end', () => {
  const huge = requester.make(WRITE_ZEROES, 0, [], { length: DISK_BYTES });
  device.submit(huge);
  const large = requester.make(READ, 0, [[0, 65536]]);
  const small = requester.make(READ, 0, [[65536, 4096]]);
  device.submit(large);
  device.submit(small);
  engine.complete();
  expect(requester.done.map((request) => [small, large, huge].indexOf(request))).toEqual([0, 1, 2]);
});
