/**
 * Ciphering data where it is, held against the copying layer: the same requests on two disks of the same
 * noise must leave the same disks, answers and data.
 */
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from 'bun:test';
import { EAGAIN, EIO } from '../../ffi/errno.ts';
import { Secret } from '../../src/crypto/secret.ts';
import { expandXts, freeXts } from '../../src/crypto/xts.ts';
import { CryptLayer, InPlaceCryptLayer } from '../../src/device/crypt.ts';
import type { DiskFacts } from '../../src/device/disk.ts';
import { FileDevice } from '../../src/device/file_device.ts';
import {
  type BlockDevice,
  type BlockOp,
  type BlockRequest,
  DISCARD,
  FLUSH,
  READ,
  RequestTable,
  WRITE,
  WRITE_ZEROES,
} from '../../src/device/request.ts';
import { Random, seed, soak } from '../random.ts';
import { diskFacts } from '../vhost/fake_guest.ts';
import { FakeEngine, Requester } from './fake_engine.ts';

const DISK_BYTES = 1 << 21;
/** Of one request, as a ublk tag has them. */
const SLOT_BYTES = 1 << 18;

let xts: number;

beforeAll(() => {
  const key = (from: number) => Secret.taking(Uint8Array.from({ length: 32 }, (_, i) => from + i));
  const keys = [key(0), key(0x80)] as const;
  xts = expandXts(keys);
  for (const part of keys) part.wipe();
});
afterAll(() => freeXts(xts));

/** A disk with a stack on it. */
class Side {
  readonly engine = new FakeEngine(DISK_BYTES);
  readonly table = new RequestTable();
  readonly requester = new Requester(this.table);
  readonly failures: number[] = [];
  readonly device: BlockDevice;

  constructor(inPlace: boolean, noise: Uint8Array, more: Partial<DiskFacts> = {}) {
    const facts = diskFacts({ sizeBytes: DISK_BYTES, canPunch: false, ...more });
    const { engine, table } = this;
    engine.disk.set(noise);
    const file = new FileDevice(engine, facts, table, (_, result) => this.failures.push(result));
    const copying = new CryptLayer(file, xts, table, null);
    this.device = inPlace ? new InPlaceCryptLayer(file, copying, xts, table) : copying;
  }

  run(op: BlockOp, offset: number, slot: number, length: number, more: object = {}): number {
    return this.requester.run(this.device, this.engine, this.make(op, offset, slot, length, more));
  }

  make(op: BlockOp, offset: number, slot: number, length: number, more: object = {}): BlockRequest {
    const moves = op === READ || op === WRITE;
    const parts = moves ? [[slot * SLOT_BYTES, length] as const] : [];
    return this.requester.make(op, offset, parts, { length, ...more });
  }

  slot(slot: number, length: number): Uint8Array {
    return this.requester.bytes.subarray(slot * SLOT_BYTES, slot * SLOT_BYTES + length);
  }
}

let copying: Side;
let inPlace: Side;
let sides: Side[];

beforeEach(() => {
  const random = new Random(7);
  const noise = Uint8Array.from({ length: DISK_BYTES }, () => random.next());
  copying = new Side(false, noise);
  inPlace = new Side(true, noise);
  sides = [copying, inPlace];
});

afterEach(() => {
  for (const { requester } of sides) requester.free();
});

function expectSame(what: (side: Side) => Uint8Array, name: string): void {
  if (Buffer.compare(what(copying), what(inPlace)) !== 0) throw new Error(`${name} differ`);
}

function expectSameDisks(): void {
  expectSame(({ engine }) => engine.disk, 'the disks');
}

test(`random requests, several at a time (${seed})`, () => {
  const random = new Random(seed);
  const rounds = soak ? 3000 : 100;
  for (let round = 0; round < rounds; round++) {
    const chosen = Array.from({ length: 1 + random.below(16) }, (_, slot) => {
      const op = random.pick<BlockOp>([READ, READ, WRITE, WRITE, WRITE_ZEROES, DISCARD, FLUSH]);
      // Each has a part of the disk to itself: what overlaps has no order.
      const length = 512 * (1 + random.below((DISK_BYTES >> 4) / 512));
      const offset = slot * (DISK_BYTES >> 4) + ((DISK_BYTES >> 4) - length);
      const fill = random.next();
      return { op, offset, length, slot, fill, durable: random.chance(2) };
    });
    const answers = sides.map((side) => {
      const requests = chosen.map(({ op, offset, length, slot, fill, durable }) => {
        const data = side.slot(slot, length);
        if (op === WRITE) for (let at = 0; at < length; at++) data[at] = fill + at * 7;
        return side.make(op, offset, slot, length, { durable, unmap: durable });
      });
      for (const request of requests) side.device.submit(request);
      side.engine.complete();
      expect(side.requester.done.splice(0).length).toBe(requests.length);
      expect(side.device.inFlight).toBe(0);
      return requests.map(({ result }) => result);
    });
    expect(answers[1]).toEqual(answers[0]);
    expect(answers[1].every((result) => result === 0)).toBe(true);
    for (const { op, slot, length } of chosen) {
      if (op === READ) expectSame((side) => side.slot(slot, length), 'what was read');
    }
  }
  expectSameDisks();
});

test('a request goes down in one piece, from where it is, as durable as it is', () => {
  for (let at = 0; at < SLOT_BYTES; at++) inPlace.slot(0, SLOT_BYTES)[at] = at % 251;
  const request = inPlace.make(WRITE, 4096, 0, SLOT_BYTES, { durable: true, buffer: -1 });
  expect(inPlace.requester.run(inPlace.device, inPlace.engine, request)).toBe(0);
  expect(inPlace.engine.calls.map(({ offset, length, flags }) => [offset, length, flags])).toEqual([
    [4096, SLOT_BYTES, 2],
  ]);
  // What is written is what stands in its memory now: the memory is given up with the request.
  const there = inPlace.engine.disk.subarray(4096, 4096 + SLOT_BYTES);
  expect(Buffer.compare(inPlace.slot(0, SLOT_BYTES), there)).toBe(0);
});

test('nothing is allocated for a request after the first one', () => {
  const request = inPlace.make(READ, 0, 0, 4096);
  inPlace.requester.run(inPlace.device, inPlace.engine, request);
  const made = inPlace.table.nextIndex;
  for (let i = 0; i < 10; i++) inPlace.requester.run(inPlace.device, inPlace.engine, request);
  expect(inPlace.table.nextIndex).toBe(made);
});

test('short transfers and retries cipher nothing twice', () => {
  const random = new Random(seed);
  for (const { engine } of sides) {
    engine.verdict = (call) => (random.chance(3) ? -EAGAIN : 1 + random.below(call.length));
  }
  for (const side of sides) {
    for (let at = 0; at < 65536; at++) side.slot(0, 65536)[at] = at % 253;
    expect(side.run(WRITE, 512, 0, 65536)).toBe(0);
    expect(side.run(READ, 0, 1, 131072)).toBe(0);
    expect(side.slot(1, 131072)[512 + 1000]).toBe(1000 % 253);
  }
  expectSame((side) => side.slot(1, 131072), 'what was read');
  expectSameDisks();
});

test('a read that fails is not deciphered, and fails', () => {
  for (const side of sides) {
    side.slot(0, 8192).fill(0x55);
    side.engine.verdict = () => -EIO;
    expect(side.run(READ, 0, 0, 8192)).toBe(-EIO);
    expect(side.slot(0, 8192).every((byte) => byte === 0x55)).toBe(true);
    expect(side.failures).toEqual([-EIO]);
    // The next one is served again.
    side.engine.verdict = () => undefined;
    expect(side.run(READ, 0, 0, 8192)).toBe(0);
  }
  expectSame((side) => side.slot(0, 8192), 'what was read');
});

test('a write that fails tells so, and the next one of the same memory is ciphered anew', () => {
  for (const side of sides) {
    side.engine.verdict = () => -EIO;
    side.slot(0, 4096).fill(1);
    expect(side.run(WRITE, 0, 0, 4096)).toBe(-EIO);
    side.engine.verdict = () => undefined;
    side.slot(0, 4096).fill(2);
    expect(side.run(WRITE, 0, 0, 4096)).toBe(0);
    expect(side.run(READ, 0, 1, 4096)).toBe(0);
    expect(side.slot(1, 4096).every((byte) => byte === 2)).toBe(true);
  }
  expectSameDisks();
});

test('a flush goes through, a discard is not taken, zeroes are written', () => {
  for (const side of sides) {
    expect(side.run(FLUSH, 0, 0, 0)).toBe(0);
    expect(side.run(DISCARD, 0, 0, 65536)).toBe(0);
    expect(side.engine.calls.map(({ kind }) => kind)).toEqual(['fdatasync']);
    expect(side.run(WRITE_ZEROES, 512, 0, 65536, { unmap: true })).toBe(0);
    expect(side.run(READ, 512, 0, 65536)).toBe(0);
    expect(side.slot(0, 65536).every((byte) => byte === 0)).toBe(true);
    expect(side.engine.disk.subarray(512, 66048).every((byte) => byte === 0)).toBe(false);
  }
  expectSameDisks();
});
