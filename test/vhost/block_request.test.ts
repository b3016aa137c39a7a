/** Descriptor chains that no driver should write, and those that any may. */
import { afterEach, expect, test } from 'bun:test';
import { DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES } from '../../src/device/request.ts';
import { MAX_RANGE_SECTORS } from '../../src/frontend/limits.ts';
import { MAX_RANGES } from '../../src/frontend/vhost/block_config.ts';
import {
  ANSWERED,
  MALFORMED,
  MAX_CHAIN,
  PARSED,
  S_IOERR,
  S_OK,
  S_UNSUPP,
} from '../../src/frontend/vhost/block_request.ts';
import {
  DATA,
  FakeGuest,
  GUEST_BASE,
  type GuestOptions,
  partsOf,
  putHeader,
  type TestPart,
} from './fake_guest.ts';

const IN = 0;
const OUT = 1;
const FLUSH_TYPE = 4;
const GET_ID = 8;
const DISCARD_TYPE = 11;
const WRITE_ZEROES_TYPE = 13;

const HEADER = DATA;
const STATUS = DATA + 0x100;
const TABLE = DATA + 0x1000;
const BUFFER = DATA + 0x10000;
const REGION_END = GUEST_BASE + 0x40000;
const DISK_SECTORS = 2048;

let guest: FakeGuest;

function makeGuest(options: GuestOptions = {}): FakeGuest {
  guest = new FakeGuest(options);
  return guest;
}

afterEach(() => {
  expect(guest.memory.canariesStand).toBe(true);
  guest.free();
});

const header: TestPart = { address: HEADER, length: 16 };
const status: TestPart = { address: STATUS, length: 1, writable: true };
const toDevice = (length: number, address: number | bigint = BUFFER): TestPart => ({
  address,
  length,
});
const fromDevice = (length: number, address: number | bigint = BUFFER): TestPart => ({
  address,
  length,
  writable: true,
});

/** Reads a chain after its header has been written. */
function readRequest(type: number, sector: number | bigint, parts: readonly TestPart[]) {
  guest.header(HEADER, type, sector);
  return guest.readChain(parts);
}

function expectAnswer(got: ReturnType<FakeGuest['read']>, expected: number): void {
  expect(got.outcome).toBe(ANSWERED);
  expect(got.request.status).toBe(expected);
}

// What is right

test('a read and a write name the memory, the place and the length', () => {
  makeGuest();
  for (const [type, op, part] of [
    [IN, READ, fromDevice(4096)],
    [OUT, WRITE, toDevice(4096)],
  ] as const) {
    const { outcome, request } = readRequest(type, 24, [header, part, status]);
    expect(outcome).toBe(PARSED);
    expect(request).toMatchObject({ op, offset: 24 * 512, length: 4096, segments: 1 });
    const address = guest.memory.regions[0].address + (BUFFER - GUEST_BASE);
    expect(partsOf(request)).toEqual([{ address, length: 4096 }]);
    expect(request.dataWritten).toBe(op === READ ? 4096 : 0);
    request.statusView.setUint8(request.statusOffset, 0x42);
    expect(guest.memory.at(STATUS, 1)[0]).toBe(0x42);
  }
});

test('where descriptors begin and end means nothing: any split of the same bytes is the same', () => {
  makeGuest({ size: 64 });
  // Header and write data share a descriptor, in every split; data and status of a read as well.
  for (let cut = 1; cut < 16; cut++) {
    guest.header(HEADER, OUT, 5);
    const { outcome, request } = guest.readChain([
      { address: HEADER, length: cut },
      { address: HEADER + cut, length: 16 - cut + 512 },
      status,
    ]);
    expect(outcome).toBe(PARSED);
    expect(request).toMatchObject({ op: WRITE, offset: 5 * 512, length: 512 });
    const address = guest.memory.regions[0].address + (HEADER + 16 - GUEST_BASE);
    expect(partsOf(request)).toEqual([{ address, length: 512 }]);
  }
  const { outcome, request } = readRequest(IN, 1, [header, fromDevice(1025)]);
  expect(outcome).toBe(PARSED);
  expect(request.length).toBe(1024);
  request.statusView.setUint8(request.statusOffset, 0x42);
  expect(guest.memory.at(BUFFER + 1024, 1)[0]).toBe(0x42);
});

test('a header in sixteen descriptors of one byte is read', () => {
  makeGuest({ size: 32 });
  const bytes = Array.from({ length: 16 }, (_, i) => toDevice(1, HEADER + i));
  const { outcome, request } = readRequest(OUT, 0x0102, [...bytes, toDevice(512), status]);
  expect(outcome).toBe(PARSED);
  expect(request).toMatchObject({ op: WRITE, offset: 0x0102 * 512, length: 512 });
});

test('parts that follow each other in memory become one, others stay apart', () => {
  makeGuest();
  const { request } = readRequest(IN, 0, [
    header,
    fromDevice(512),
    fromDevice(512, BUFFER + 512),
    fromDevice(1024, BUFFER + 4096),
    status,
  ]);
  const base = guest.memory.regions[0].address + (BUFFER - GUEST_BASE);
  expect(partsOf(request)).toEqual([
    { address: base, length: 1024 },
    { address: base + 4096, length: 1024 },
  ]);
  expect(request.length).toBe(2048);
});

test('descriptors of no length are passed over', () => {
  makeGuest();
  const { outcome, request } = readRequest(OUT, 0, [
    toDevice(0, 0),
    header,
    toDevice(0, 2n ** 52n),
    toDevice(512),
    { address: 0, length: 0, writable: true },
    status,
  ]);
  expect(outcome).toBe(PARSED);
  expect(request).toMatchObject({ op: WRITE, length: 512, segments: 1 });
});

test('a chain goes through descriptors in any order of their numbers', () => {
  makeGuest();
  guest.header(HEADER, IN, 3);
  guest.driver.writeDescriptor(9, HEADER, 16, 1, 2);
  guest.driver.writeDescriptor(2, BUFFER, 512, 3, 15);
  guest.driver.writeDescriptor(15, STATUS, 1, 2, 99);
  const { outcome, request } = guest.read(9);
  expect(outcome).toBe(PARSED);
  expect(request).toMatchObject({ op: READ, offset: 3 * 512, length: 512 });
});

test('a chain as long as the ring is read', () => {
  makeGuest({ size: 4 });
  const { outcome } = readRequest(IN, 0, [
    header,
    fromDevice(512),
    fromDevice(512, BUFFER + 4096),
    status,
  ]);
  expect(outcome).toBe(PARSED);
});

// Chains that break the rules

test('a chain without any place for a status is malformed', () => {
  makeGuest();
  for (const parts of [
    [header],
    [header, toDevice(512)],
    [toDevice(0)],
    [header, fromDevice(0)],
    [toDevice(1)],
  ]) {
    expect(readRequest(OUT, 0, parts).outcome).toBe(MALFORMED);
  }
});

test('what the device reads must come before what it writes', () => {
  makeGuest();
  for (const parts of [
    [fromDevice(512), header, status],
    [header, status, toDevice(512)],
    [header, fromDevice(512), toDevice(512), status],
    [header, status, toDevice(0)],
  ]) {
    expect(readRequest(IN, 0, parts).outcome).toBe(MALFORMED);
  }
});

test('a header that is missing or short is an I/O error with a status', () => {
  makeGuest();
  expectAnswer(readRequest(IN, 0, [status]), S_IOERR);
  expectAnswer(readRequest(IN, 0, [fromDevice(512), status]), S_IOERR);
  for (const length of [1, 8, 15]) {
    expectAnswer(readRequest(IN, 0, [toDevice(length, HEADER), fromDevice(512), status]), S_IOERR);
  }
});

for (const [name, next] of [
  ['to itself', [0]],
  ['between two', [1, 0]],
  ['at the end of a longer chain', [1, 2, 3, 2]],
] as const) {
  test(`a loop of descriptors ${name} ends, and is malformed`, () => {
    makeGuest();
    for (const writable of [false, true]) {
      for (const length of [0, 1, 16]) {
        next.forEach((to, i) => {
          guest.driver.writeDescriptor(i, HEADER, length, 1 | (writable ? 2 : 0), to);
        });
        expect(guest.read(0).outcome).toBe(MALFORMED);
      }
    }
  });
}

test('a next that is outside the table is malformed', () => {
  makeGuest({ size: 16 });
  for (const next of [16, 17, 0x7fff, 0xffff]) {
    guest.driver.writeDescriptor(0, HEADER, 16, 1, next);
    expect(guest.read(0).outcome).toBe(MALFORMED);
    // Also where the chain has all it needs by then.
    guest.driver.writeDescriptor(0, STATUS, 1, 3, next);
    expect(guest.read(0).outcome).toBe(MALFORMED);
  }
});

const BAD_ADDRESSES: (number | bigint)[] = [
  0,
  GUEST_BASE - 1,
  GUEST_BASE - 512,
  REGION_END,
  REGION_END - 511,
  2n ** 52n,
  2n ** 53n - 1n,
  2n ** 53n,
  2n ** 53n + BigInt(BUFFER),
  2n ** 63n,
  2n ** 64n - 512n,
  2n ** 64n - 1n,
];

for (const address of BAD_ADDRESSES) {
  test(`data at 0x${address.toString(16)} is malformed, read or written`, () => {
    makeGuest();
    expect(readRequest(IN, 0, [header, fromDevice(512, address), status]).outcome).toBe(MALFORMED);
    expect(readRequest(OUT, 0, [header, toDevice(512, address), status]).outcome).toBe(MALFORMED);
    expect(readRequest(IN, 0, [toDevice(16, address), status]).outcome).toBe(
      address === REGION_END - 511 ? ANSWERED : MALFORMED,
    );
  });
}

test('a status outside memory is malformed, at its last byte too', () => {
  makeGuest();
  for (const address of BAD_ADDRESSES.filter((a) => a !== REGION_END - 511)) {
    const parts = [header, fromDevice(512), fromDevice(1, address)];
    expect(readRequest(IN, 0, parts).outcome).toBe(MALFORMED);
  }
  expect(readRequest(IN, 0, [header, fromDevice(513, REGION_END - 512)]).outcome).toBe(MALFORMED);
  expect(readRequest(IN, 0, [header, fromDevice(513, REGION_END - 513)]).outcome).toBe(PARSED);
});

test('lengths up to 2^32 - 1 are held against the region', () => {
  makeGuest();
  for (const length of [0xffff_ffff, 0xffff_fe00, 0x8000_0000, 0x7fff_ffff, 0x40000]) {
    for (const address of [BUFFER, GUEST_BASE + 1, REGION_END - 1]) {
      const data = [header, fromDevice(length, address), status];
      expect(readRequest(IN, 0, data).outcome).toBe(MALFORMED);
      expect(readRequest(OUT, 0, [header, toDevice(length, address), status]).outcome).toBe(
        MALFORMED,
      );
      expect(readRequest(IN, 0, [toDevice(length, address), status]).outcome).toBe(MALFORMED);
    }
  }
});

test('a descriptor over the border of two regions is in two parts; over a gap it is malformed', () => {
  const size = 0x40000;
  makeGuest({
    regions: [
      { guestAddress: GUEST_BASE, size },
      { guestAddress: GUEST_BASE + size, size },
      { guestAddress: GUEST_BASE + 3 * size, size },
    ],
  });
  const border = GUEST_BASE + size;
  const { outcome, request } = readRequest(IN, 0, [header, fromDevice(1024, border - 512), status]);
  expect(outcome).toBe(PARSED);
  const [first, second] = guest.memory.regions;
  expect(partsOf(request)).toEqual([
    { address: first.address + size - 512, length: 512 },
    { address: second.address, length: 512 },
  ]);
  // Header and status over it as well.
  const bytes = new DataView(new ArrayBuffer(16));
  putHeader(bytes, 0, OUT, 7);
  for (let i = 0; i < 16; i++) guest.memory.at(border - 5 + i, 1)[0] = bytes.getUint8(i);
  const split = guest.readChain([toDevice(16, border - 5), toDevice(512), status]);
  expect(split.outcome).toBe(PARSED);
  expect(split.request).toMatchObject({ op: WRITE, offset: 7 * 512 });
  const last = readRequest(IN, 0, [header, fromDevice(513, border - 512)]);
  expect(last.outcome).toBe(PARSED);
  last.request.statusView.setUint8(last.request.statusOffset, 0x42);
  expect(guest.memory.at(border, 1)[0]).toBe(0x42);

  const gap = GUEST_BASE + 2 * size;
  for (const parts of [
    [header, fromDevice(1024, gap - 512), status],
    [header, fromDevice(3 * size, border), status],
    [toDevice(16, gap - 1), status],
  ]) {
    expect(readRequest(IN, 0, parts).outcome).toBe(MALFORMED);
  }
});

// Indirect descriptors

test('an indirect table is read like the ring own one', () => {
  makeGuest();
  guest.header(HEADER, IN, 9);
  guest.writeIndirect(3, TABLE, [header, fromDevice(512), fromDevice(512, BUFFER + 8192), status]);
  const { outcome, request } = guest.read(3);
  expect(outcome).toBe(PARSED);
  expect(request).toMatchObject({ op: READ, offset: 9 * 512, length: 1024, segments: 2 });
});

test('an indirect table at any address, aligned or not', () => {
  makeGuest();
  guest.header(HEADER, IN, 9);
  for (let shift = 0; shift < 16; shift++) {
    guest.writeIndirect(3, TABLE + shift, [header, fromDevice(512), status]);
    expect(guest.read(3).outcome).toBe(PARSED);
  }
});

test('a table may follow descriptors of the ring, as the last of them', () => {
  makeGuest();
  guest.header(HEADER, OUT, 9);
  guest.driver.writeDescriptor(0, HEADER, 16, 1, 5);
  guest.writeIndirect(5, TABLE, [toDevice(512), status]);
  const { outcome, request } = guest.read(0);
  expect(outcome).toBe(PARSED);
  expect(request).toMatchObject({ op: WRITE, offset: 9 * 512, length: 512 });
});

test('a table without the feature, with NEXT, or in a table is malformed', () => {
  makeGuest({ indirect: false });
  guest.writeIndirect(0, TABLE, [header, fromDevice(512), status]);
  expect(guest.read(0).outcome).toBe(MALFORMED);
  guest.free();
  makeGuest();
  guest.writeIndirect(0, TABLE, [header, fromDevice(512), status]);
  guest.driver.writeDescriptor(0, TABLE, 48, 4 | 1, 1);
  guest.writeChain(1, [status]);
  expect(guest.read(0).outcome).toBe(MALFORMED);
  guest.writeIndirect(0, TABLE, [header, fromDevice(512), status]);
  expect(guest.read(0).outcome).toBe(PARSED);
  for (const i of [0, 1, 2]) {
    guest.writeIndirect(0, TABLE, [header, fromDevice(512), status]);
    const view = guest.memory.view(TABLE + i * 16, 16);
    view.setUint16(12, view.getUint16(12, true) | 4, true);
    expect(guest.read(0).outcome).toBe(MALFORMED);
  }
});

test('a table of no, of broken, and of too great length is malformed', () => {
  makeGuest();
  guest.header(HEADER, IN, 0);
  guest.writeIndirect(0, TABLE, [header, fromDevice(512), status]);
  for (const length of [0, 1, 15, 17, 47, 49, 0xffff_fff0, 0xffff_ffff, (MAX_CHAIN + 1) * 16]) {
    guest.driver.writeDescriptor(0, TABLE, length, 4, 0);
    expect(guest.read(0).outcome).toBe(MALFORMED);
  }
  for (const address of [0, REGION_END - 47, REGION_END, 2n ** 53n, 2n ** 64n - 16n]) {
    const at = address as number;
    guest.driver.writeDescriptor(0, at, 48, 4, 0);
    expect(guest.read(0).outcome).toBe(MALFORMED);
  }
});

test('loops in a table, and ways out of it, are malformed', () => {
  makeGuest();
  guest.header(HEADER, IN, 0);
  for (const next of [0, 1, 3, 4, 0xffff]) {
    // Behind the table stands what would end the chain well.
    guest.writeIndirect(0, TABLE, [header, fromDevice(512), status, status]);
    guest.driver.writeDescriptor(0, TABLE, 48, 4, 0);
    guest.memory.view(TABLE + 16, 16).setUint16(14, next, true);
    expect(guest.read(0).outcome).toBe(MALFORMED);
  }
});

test('a table of 1024 descriptors is read, and one part more is not', () => {
  makeGuest();
  guest.header(HEADER, IN, 0);
  const many = (count: number) =>
    Array.from({ length: count }, (_, i) => fromDevice(16, BUFFER + 32 * i));
  guest.writeIndirect(0, TABLE, [header, ...many(MAX_CHAIN - 2), status]);
  // 1022 parts of 16 bytes are 31 sectors and a bit: refused as data, not as a chain.
  expectAnswer(guest.read(0), S_IOERR);
  guest.writeIndirect(0, TABLE, [header, ...many(992), status]);
  const { outcome, request } = guest.read(0);
  expect(outcome).toBe(PARSED);
  expect(request).toMatchObject({ length: 992 * 16, segments: 992 });
  guest.driver.writeDescriptor(1, HEADER, 16, 1, 2);
  guest.writeIndirect(2, TABLE, many(MAX_CHAIN));
  expect(guest.read(1).outcome).toBe(MALFORMED);
});

// What a request may not ask

test('sectors that overflow or lie beyond the end are I/O errors', () => {
  makeGuest();
  for (const sector of [
    DISK_SECTORS,
    DISK_SECTORS - 7,
    2n ** 32n,
    2n ** 44n,
    2n ** 53n,
    2n ** 55n,
    2n ** 55n + 8n,
    2n ** 63n,
    2n ** 64n - 8n,
    2n ** 64n - 1n,
  ]) {
    expectAnswer(readRequest(IN, sector, [header, fromDevice(4096), status]), S_IOERR);
    expectAnswer(readRequest(OUT, sector, [header, toDevice(4096), status]), S_IOERR);
  }
  expect(readRequest(IN, DISK_SECTORS - 8, [header, fromDevice(4096), status]).outcome).toBe(
    PARSED,
  );
});

test('data of no length, and of no whole sectors, is an I/O error', () => {
  makeGuest();
  expectAnswer(readRequest(IN, 0, [header, status]), S_IOERR);
  expectAnswer(readRequest(OUT, 0, [header, status]), S_IOERR);
  for (const length of [1, 511, 513, 4095, 0x30001]) {
    const address = GUEST_BASE;
    expectAnswer(readRequest(OUT, 0, [header, toDevice(length, address), status]), S_IOERR);
    expectAnswer(readRequest(IN, 0, [header, fromDevice(length, address), status]), S_IOERR);
  }
  const odd = [header, fromDevice(100), fromDevice(412, BUFFER + 512), status];
  expect(readRequest(IN, 0, odd).outcome).toBe(PARSED);
});

test('types that nobody offered are unsupported', () => {
  makeGuest();
  for (const type of [2, 3, 5, 7, 9, 10, 12, 14, 16, 0x8000_0000, 0xffff_ffff]) {
    expectAnswer(readRequest(type, 0, [header, fromDevice(512), status]), S_UNSUPP);
  }
});

test('a flush is a flush, whatever sector and data come with it', () => {
  makeGuest();
  for (const [sector, parts] of [
    [0, [header, status]],
    [5, [header, status]],
    [2n ** 64n - 1n, [header, toDevice(100), fromDevice(100), status]],
  ] as const) {
    const { outcome, request } = readRequest(FLUSH_TYPE, sector, parts);
    expect(outcome).toBe(PARSED);
    expect(request.op).toBe(FLUSH);
    expect(request.dataWritten).toBe(0);
  }
});

test('the id is twenty bytes with zeroes behind it, in any number of descriptors', () => {
  makeGuest({ deviceId: 'abc' });
  guest.memory.at(BUFFER, 64).fill(0xee);
  expectAnswer(readRequest(GET_ID, 0, [header, fromDevice(20), status]), S_OK);
  const id = [0x61, 0x62, 0x63, ...Array(17).fill(0), 0xee];
  expect([...guest.memory.at(BUFFER, 21)]).toEqual(id);
  guest.memory.at(BUFFER, 64).fill(0xee);
  const pieces = [fromDevice(1), fromDevice(2, BUFFER + 1), fromDevice(40, BUFFER + 3)];
  const { request } = readRequest(GET_ID, 0, [header, ...pieces, status]);
  expect(request.dataWritten).toBe(20);
  expect([...guest.memory.at(BUFFER, 21)]).toEqual(id);
});

test('an id of twenty characters and more is cut at twenty', () => {
  makeGuest({ deviceId: 'abcdefghijklmnopqrstuvwxyz' });
  readRequest(GET_ID, 0, [header, fromDevice(64), status]);
  const text = new TextDecoder().decode(guest.memory.at(BUFFER, 21));
  expect(text).toBe('abcdefghijklmnopqrst\0');
});

test('an id without room for it is an I/O error and writes nothing', () => {
  makeGuest();
  for (const length of [0, 1, 19]) {
    expectAnswer(readRequest(GET_ID, 0, [header, fromDevice(length), status]), S_IOERR);
  }
  // Data that the device may only read is no room.
  expectAnswer(readRequest(GET_ID, 0, [header, toDevice(64), status]), S_IOERR);
  expect(guest.memory.at(BUFFER, 64).every((byte) => byte === 0)).toBe(true);
});

test('writes of a read-only disk are I/O errors, reads are not', () => {
  makeGuest({ facts: { readOnly: true } });
  expectAnswer(readRequest(OUT, 0, [header, toDevice(512), status]), S_IOERR);
  expectAnswer(readRequest(WRITE_ZEROES_TYPE, 0, [header, ranges([0, 8, 0]), status]), S_IOERR);
  expectAnswer(readRequest(DISCARD_TYPE, 0, [header, ranges([0, 8, 0]), status]), S_IOERR);
  expect(readRequest(IN, 0, [header, fromDevice(512), status]).outcome).toBe(PARSED);
  expect(readRequest(FLUSH_TYPE, 0, [header, status]).outcome).toBe(PARSED);
});

// Discard and write-zeroes

/** Writes ranges of [sector, sectors, flags] to the buffer and returns the part that holds them. */
function ranges(...list: readonly (readonly [number | bigint, number, number])[]): TestPart {
  const view = guest.memory.view(BUFFER, list.length * 16);
  list.forEach(([sector, sectors, flags], i) => {
    view.setBigUint64(i * 16, BigInt(sector), true);
    view.setUint32(i * 16 + 8, sectors, true);
    view.setUint32(i * 16 + 12, flags, true);
  });
  return toDevice(list.length * 16);
}

test('ranges are done one after the other', () => {
  makeGuest();
  for (const [type, op] of [
    [DISCARD_TYPE, DISCARD],
    [WRITE_ZEROES_TYPE, WRITE_ZEROES],
  ] as const) {
    const list = ranges([8, 16, 0], [0, 1, 0], [DISK_SECTORS - 1, 1, 0]);
    const { outcome, request } = readRequest(type, 0, [header, list, status]);
    expect(outcome).toBe(PARSED);
    const done = [[request.op, request.offset, request.length, request.unmap]];
    while (guest.reader.nextRange(request)) {
      done.push([request.op, request.offset, request.length, request.unmap]);
    }
    expect(done).toEqual([
      [op, 8 * 512, 16 * 512, false],
      [op, 0, 512, false],
      [op, (DISK_SECTORS - 1) * 512, 512, false],
    ]);
  }
});

test('space is given back only where every range allows it', () => {
  makeGuest();
  const unmap = (...list: [number, number, number][]) =>
    readRequest(WRITE_ZEROES_TYPE, 0, [header, ranges(...list), status]).request.unmap;
  expect(unmap([0, 1, 1])).toBe(true);
  expect(unmap([0, 1, 1], [8, 1, 1])).toBe(true);
  expect(unmap([0, 1, 1], [8, 1, 0])).toBe(false);
  expect(unmap([0, 1, 0], [8, 1, 1])).toBe(false);
});

test('a range beyond the end, too long, empty or overflowing is an I/O error, and nothing is done', () => {
  makeGuest();
  for (const type of [DISCARD_TYPE, WRITE_ZEROES_TYPE]) {
    for (const [sector, sectors] of [
      [0, 0],
      [DISK_SECTORS, 1],
      [DISK_SECTORS - 1, 2],
      [0, DISK_SECTORS + 1],
      [0, MAX_RANGE_SECTORS + 1],
      [0, 0xffff_ffff],
      [2n ** 55n, 1],
      [2n ** 64n - 1n, 1],
      [2n ** 64n - 1n, 0xffff_ffff],
    ] as const) {
      const bad = [sector, sectors, 0] as const;
      for (const list of [[bad], [[0, 1, 0] as const, bad], [bad, [0, 1, 0] as const]]) {
        const got = readRequest(type, 0, [header, ranges(...list), status]);
        expectAnswer(got, S_IOERR);
      }
    }
  }
});

test('a range as long as was offered is done, and one sector more is not', () => {
  makeGuest({ facts: { sizeBytes: 2 ** 40 } });
  for (const type of [DISCARD_TYPE, WRITE_ZEROES_TYPE]) {
    const read = (sectors: number) => {
      return readRequest(type, 0, [header, ranges([8, sectors, 0]), status]);
    };
    expect(read(MAX_RANGE_SECTORS).outcome).toBe(PARSED);
    expectAnswer(read(MAX_RANGE_SECTORS + 1), S_IOERR);
    expectAnswer(read(0xffff_ffff), S_IOERR);
  }
});

test('zeroes of an encrypted disk, which are all written, come in small ranges', () => {
  makeGuest({ facts: { sizeBytes: 2 ** 40, xts: 1, canPunch: false } });
  const read = (sectors: number) => {
    return readRequest(WRITE_ZEROES_TYPE, 0, [header, ranges([8, sectors, 0]), status]);
  };
  expect(read(8192).outcome).toBe(PARSED);
  expectAnswer(read(8193), S_IOERR);
});

test('unknown flags are unsupported, and unmap with discard is unknown', () => {
  makeGuest();
  for (const flags of [2, 3, 0x8000_0000, 0xffff_ffff]) {
    const list = ranges([0, 1, 0], [8, 1, flags]);
    expectAnswer(readRequest(WRITE_ZEROES_TYPE, 0, [header, list, status]), S_UNSUPP);
    expectAnswer(readRequest(DISCARD_TYPE, 0, [header, list, status]), S_UNSUPP);
  }
  const unmap = ranges([0, 1, 1]);
  expectAnswer(readRequest(DISCARD_TYPE, 0, [header, unmap, status]), S_UNSUPP);
});

test('no range, too many ranges, and a part of a range are I/O errors', () => {
  makeGuest();
  const many = (count: number) =>
    ranges(...Array.from({ length: count }, (_, i) => [i, 1, 0] as const));
  for (const type of [DISCARD_TYPE, WRITE_ZEROES_TYPE]) {
    expectAnswer(readRequest(type, 0, [header, status]), S_IOERR);
    for (const length of [1, 15, 17, 31]) {
      expectAnswer(readRequest(type, 0, [header, toDevice(length), status]), S_IOERR);
    }
    expect(readRequest(type, 0, [header, many(MAX_RANGES), status]).outcome).toBe(PARSED);
    expectAnswer(readRequest(type, 0, [header, many(MAX_RANGES + 1), status]), S_IOERR);
    const huge = { address: GUEST_BASE, length: 0x30000 };
    expectAnswer(readRequest(type, 0, [header, huge, status]), S_IOERR);
  }
});

test('ranges split at every byte are the same ranges', () => {
  makeGuest({ size: 64 });
  for (let cut = 1; cut < 32; cut++) {
    ranges([1, 2, 1], [3, 4, 1]);
    const { outcome, request } = readRequest(WRITE_ZEROES_TYPE, 0, [
      header,
      toDevice(cut),
      toDevice(32 - cut, BUFFER + cut),
      status,
    ]);
    expect(outcome).toBe(PARSED);
    expect([request.offset, request.length]).toEqual([512, 1024]);
    expect(guest.reader.nextRange(request)).toBe(true);
    expect([request.offset, request.length, request.unmap]).toEqual([3 * 512, 4 * 512, true]);
    expect(guest.reader.nextRange(request)).toBe(false);
  }
});

test('discard of a disk that can not is unsupported; zeroes are written all the same', () => {
  makeGuest({ facts: { canPunch: false } });
  const list = ranges([0, 1, 0]);
  expectAnswer(readRequest(DISCARD_TYPE, 0, [header, list, status]), S_UNSUPP);
  expect(readRequest(WRITE_ZEROES_TYPE, 0, [header, list, status]).outcome).toBe(PARSED);
});

test('what the guest changes after a chain was read changes nothing of the request', () => {
  makeGuest();
  ranges([8, 16, 0], [24, 8, 0]);
  guest.header(HEADER, WRITE_ZEROES_TYPE, 0);
  guest.writeIndirect(0, TABLE, [header, toDevice(32), status]);
  const { outcome, request } = guest.read(0);
  expect(outcome).toBe(PARSED);
  guest.memory.at(GUEST_BASE, 0x8000).fill(0xff);
  guest.memory.at(HEADER, 16).fill(0xff);
  guest.memory.at(TABLE, 48).fill(0xff);
  guest.memory.at(BUFFER, 32).fill(0xff);
  expect([request.offset, request.length]).toEqual([8 * 512, 16 * 512]);
  expect(guest.reader.nextRange(request)).toBe(true);
  expect([request.offset, request.length]).toEqual([24 * 512, 8 * 512]);
  expect(guest.reader.nextRange(request)).toBe(false);
  request.statusView.setUint8(request.statusOffset, 0x42);
  expect(guest.memory.at(STATUS, 1)[0]).toBe(0x42);
});
