/** Messages that no frontend should send, and what they may not do. */
import { afterEach, beforeEach, expect, test } from 'bun:test';
import { openSync } from 'node:fs';
import { shim } from '../../ffi/library.ts';
import { inflightBytes } from '../../src/frontend/vhost/inflight.ts';
import { MAX_TABLE_REGIONS, ProtocolError, Request } from '../../src/frontend/vhost/protocol.ts';
import { Waiting } from '../../src/frontend/vhost/queue_link.ts';
import type { Reply } from '../../src/frontend/vhost/session.ts';
import {
  configPayload,
  regionPayload,
  tablePayload,
  u64Payload,
  vringAddresses,
  vringFd,
  vringState,
} from '../../src/probe/frontend_connection.ts';
import { Random, seed, soak } from '../random.ts';
import {
  Frontend,
  type FrontendOptions,
  GUEST,
  held,
  inflightPayload,
  MIB,
  memoryFile,
  NEED_REPLY,
  randomMessage,
  USER,
} from './fake_frontend.ts';

let frontend: Frontend;
let before: ReturnType<typeof held>;

function connect(options: FrontendOptions = {}): Frontend {
  frontend = new Frontend(options);
  return frontend;
}

beforeEach(() => {
  before = held();
  connect();
});

afterEach(() => {
  frontend.session.close();
  expect(frontend.queues.running.size).toBe(0);
  // Nothing that came with a message stays open or mapped, however the session ended.
  expect(held()).toEqual(before);
});

function expectRefused(
  request: number,
  payload: Uint8Array = new Uint8Array(0),
  fds: number[] = [],
): void {
  expect(() => frontend.say(request, payload, fds)).toThrow(ProtocolError);
}

const eventFd = () => shim.ubiblk_eventfd();

/** Bytes that each request needs. */
const NEEDED: [keyof typeof Request, number][] = [
  ['SET_FEATURES', 8],
  ['SET_PROTOCOL_FEATURES', 8],
  ['SET_MEM_TABLE', 8],
  ['ADD_MEM_REG', 40],
  ['REM_MEM_REG', 40],
  ['SET_VRING_NUM', 8],
  ['SET_VRING_ADDR', 40],
  ['SET_VRING_BASE', 8],
  ['GET_VRING_BASE', 8],
  ['SET_VRING_KICK', 8],
  ['SET_VRING_CALL', 8],
  ['SET_VRING_ERR', 8],
  ['SET_VRING_ENABLE', 8],
  ['GET_CONFIG', 12],
  ['SET_CONFIG', 12],
  ['GET_INFLIGHT_FD', 20],
  ['SET_INFLIGHT_FD', 20],
];

test.each(NEEDED)('%s is refused in every length below %i bytes', (name, needed) => {
  for (let length = 0; length < needed; length++) {
    for (const fds of [[], [eventFd()], [memoryFile(4096)], [eventFd(), eventFd()]]) {
      expectRefused(Request[name], new Uint8Array(length), fds);
    }
  }
});

test('requests that are not offered are refused, with whatever comes along', () => {
  const known = new Set<number>(Object.values(Request));
  for (let code = 0; code < 100; code++) {
    if (known.has(code)) continue;
    expectRefused(code);
    expectRefused(code, new Uint8Array(4096), [eventFd(), memoryFile(1), eventFd()]);
  }
  expectRefused(0xffff_ffff);
});

test('descriptors that no message asked for are closed', () => {
  for (const request of [Request.GET_FEATURES, Request.SET_OWNER, Request.GET_QUEUE_NUM]) {
    frontend.say(
      request,
      new Uint8Array(0),
      Array.from({ length: 32 }, () => eventFd()),
    );
  }
});

test('features that were not offered are refused', () => {
  expectRefused(Request.SET_FEATURES, u64Payload(1n << 63n));
  expectRefused(Request.SET_FEATURES, u64Payload((1n << 64n) - 1n));
  expectRefused(Request.SET_FEATURES, u64Payload(1n << 34n));
  expectRefused(Request.SET_PROTOCOL_FEATURES, u64Payload(1n << 5n));
});

test('an acknowledgement is given where it was asked for, and negotiated', () => {
  const ack = (reply: Reply | null) => {
    return reply && new DataView(reply.bytes.buffer).getBigUint64(12, true);
  };
  const num = vringState(0, 16);
  expect(ack(frontend.say(Request.SET_VRING_NUM, num, [], NEED_REPLY))).toBe(0n);
  expect(frontend.say(Request.SET_VRING_NUM, num)).toBe(null);
  const wrong = { request: Request.SET_VRING_NUM, flags: NEED_REPLY, fds: [] };
  const refusal = frontend.session.refusal({ ...wrong, payload: new DataView(num.buffer) });
  expect(ack(refusal)).toBe(1n);
  frontend.say(Request.SET_PROTOCOL_FEATURES, u64Payload(0x201));
  expect(frontend.say(Request.SET_VRING_NUM, num, [], NEED_REPLY)).toBe(null);
});

// Memory

test('a region is refused that overlaps, is empty, or is too large for its file or for anything', () => {
  frontend.addMemory();
  for (const [region, fileBytes] of [
    [{}, MIB],
    [{ guestAddress: GUEST + MIB - 1 }, MIB],
    [{ guestAddress: GUEST - MIB + 1 }, MIB],
    [{ guestAddress: GUEST + 4096, length: 4096 }, MIB],
    [{ guestAddress: 0, length: 0 }, MIB],
    [{ guestAddress: 0, length: MIB + 1 }, MIB],
    [{ guestAddress: 0, length: 2 ** 40 }, MIB],
    [{ guestAddress: 0, length: 2n ** 53n }, MIB],
    [{ guestAddress: 0, length: 2n ** 64n - 1n }, MIB],
    [{ guestAddress: 0, length: MIB, fileOffset: 1 }, MIB],
    [{ guestAddress: 0, length: MIB, fileOffset: 2n ** 63n }, MIB],
    [{ guestAddress: 0, length: 4096, fileOffset: 2n ** 64n - 4096n }, MIB],
    [{ guestAddress: 0, length: 4096, fileOffset: MIB }, MIB],
    [{ guestAddress: 2n ** 53n - 1n, length: 4096 }, MIB],
    [{ guestAddress: 2n ** 64n - 4096n, length: 4096 }, MIB],
    [{ guestAddress: 2n ** 63n }, MIB],
    [{ guestAddress: 0, userAddress: 2n ** 63n }, MIB],
    [{ guestAddress: 0 }, 0],
  ] as const) {
    expect(() => frontend.addMemory(region, fileBytes)).toThrow(ProtocolError);
    expect(frontend.queues.regions.length).toBe(1);
  }
  frontend.addMemory({ guestAddress: GUEST + MIB });
  frontend.addMemory({ guestAddress: GUEST - MIB, fileOffset: 0 });
  expect(frontend.queues.regions.length).toBe(3);
});

test('memory is what a file of memory holds, and nothing else', () => {
  const region = regionPayload({ guestAddress: 0, length: 4096, userAddress: 0, fileOffset: 0 });
  expectRefused(Request.ADD_MEM_REG, region, [eventFd()]);
  expectRefused(Request.ADD_MEM_REG, region, [openSync('/dev/zero', 'r+')]);
  expectRefused(Request.ADD_MEM_REG, region, [openSync('/', 'r')]);
  expectRefused(Request.ADD_MEM_REG, region, []);
  expectRefused(Request.ADD_MEM_REG, region, [memoryFile(MIB), memoryFile(MIB)]);
  // Memory that can't be written is no memory for a guest.
  expectRefused(Request.ADD_MEM_REG, region, [openSync(import.meta.path, 'r')]);
});

test('a memory table is refused whose count, length and descriptors disagree', () => {
  const region = (i: number) => ({
    guestAddress: i * MIB,
    length: MIB,
    userAddress: USER + i * MIB,
    fileOffset: 0,
  });
  const table = (count: number) => tablePayload(Array.from({ length: count }, (_, i) => region(i)));
  const files = (count: number) => Array.from({ length: count }, () => memoryFile(MIB));
  frontend.say(Request.SET_MEM_TABLE, table(3), files(3));
  expect(frontend.queues.regions.length).toBe(3);
  expectRefused(Request.SET_MEM_TABLE, table(0), []);
  expectRefused(Request.SET_MEM_TABLE, table(2), files(1));
  expectRefused(Request.SET_MEM_TABLE, table(2), files(3));
  expectRefused(Request.SET_MEM_TABLE, table(3).subarray(0, 8 + 3 * 32 - 1), files(3));
  expectRefused(Request.SET_MEM_TABLE, table(MAX_TABLE_REGIONS + 1), files(MAX_TABLE_REGIONS));
  expectRefused(Request.SET_MEM_TABLE, u64Payload(0xffff_ffff), files(1));
  expectRefused(Request.SET_MEM_TABLE, tablePayload([region(0), region(0)]), files(2));
});

test('a new table replaces the old one, and rings go on in it', () => {
  frontend.addMemory();
  frontend.startRing(0);
  const region = { guestAddress: 0, length: 2 * MIB, userAddress: USER, fileOffset: 0 };
  frontend.say(Request.SET_MEM_TABLE, tablePayload([region]), [memoryFile(2 * MIB)]);
  expect(frontend.queues.regions.map(({ size }) => size)).toEqual([2 * MIB]);
  expect(frontend.queues.said).toEqual(['start 0', 'stop 0', 'start 0']);
});

test('a table without a running ring memory is refused, and the ring is at rest', () => {
  frontend.addMemory();
  frontend.startRing(0);
  const region = { guestAddress: 0, length: MIB, userAddress: USER + MIB, fileOffset: 0 };
  expectRefused(Request.SET_MEM_TABLE, tablePayload([region]), [memoryFile(MIB)]);
  expect(frontend.queues.running.size).toBe(0);
});

test('a region is removed that was added, and only with what it was added with', () => {
  const region = { guestAddress: GUEST, length: MIB, userAddress: USER, fileOffset: 0 };
  expectRefused(Request.REM_MEM_REG, regionPayload(region));
  frontend.addMemory();
  expectRefused(Request.REM_MEM_REG, regionPayload({ ...region, length: MIB - 1 }));
  expectRefused(Request.REM_MEM_REG, regionPayload({ ...region, userAddress: 0 }));
  frontend.say(Request.REM_MEM_REG, regionPayload(region));
  expect(frontend.queues.regions).toEqual([]);
  expectRefused(Request.REM_MEM_REG, regionPayload(region));
});

test('more regions than there are slots are refused', () => {
  for (let i = 0; i < 509; i++) frontend.addMemory({ guestAddress: i * MIB, length: 4096 }, 4096);
  expect(() => frontend.addMemory({ guestAddress: 600 * MIB })).toThrow('too many');
  expect(frontend.queues.regions.length).toBe(509);
});

// Rings

test('rings that are not there are refused by every message', () => {
  for (const index of [2, 3, 255, 256 + 2, 0xffff_ffff]) {
    for (const request of [
      Request.SET_VRING_NUM,
      Request.SET_VRING_BASE,
      Request.GET_VRING_BASE,
      Request.SET_VRING_ENABLE,
    ]) {
      expectRefused(request, vringState(index, 1));
    }
    expectRefused(Request.SET_VRING_ADDR, vringAddresses(index, USER, USER, USER));
  }
  for (const index of [2, 255]) {
    for (const request of [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR]) {
      expectRefused(request, vringFd(index), [eventFd()]);
      expectRefused(request, vringFd(index, false));
    }
  }
});

test('a ring has a power of two of entries, as many as are allowed', () => {
  for (const size of [0, 3, 5, 255, 257, 512, 0x8000_0000, 0xffff_ffff]) {
    expectRefused(Request.SET_VRING_NUM, vringState(0, size));
  }
  for (const size of [1, 2, 256]) frontend.say(Request.SET_VRING_NUM, vringState(0, size));
});

test('a ring that is unaligned, outside, or over the end of memory does not start', () => {
  frontend.addMemory();
  frontend.describeRing(0, 256);
  frontend.say(Request.SET_VRING_ENABLE, vringState(0, 1));
  const good = [USER, USER + 0x8000, USER + 0x4000] as const;
  const wrong: [number, number, number][] = [
    [USER + 8, good[1], good[2]],
    [USER + 1, good[1], good[2]],
    [good[0], good[1] + 2, good[2]],
    [good[0], good[1], good[2] + 1],
    [USER - 16, good[1], good[2]],
    [USER + MIB - 256 * 16 + 16, good[1], good[2]],
    [good[0], USER + MIB - (6 + 8 * 256) + 2, good[2]],
    [good[0], good[1], USER + MIB - (6 + 2 * 256) + 2],
    [0, 0, 0],
    [USER + MIB, good[1], good[2]],
    // Guest physical addresses are none of the frontend's.
    [GUEST, GUEST + 0x8000, GUEST + 0x4000],
  ];
  for (const addresses of wrong) {
    frontend.say(Request.SET_VRING_ADDR, vringAddresses(0, ...addresses));
    expectRefused(Request.SET_VRING_KICK, vringFd(0), [eventFd()]);
    expect(frontend.queues.running.size).toBe(0);
  }
  expectRefused(Request.SET_VRING_ADDR, u64Payload(0, 2n ** 64n - 16n, 0, 0, 0));
  const last = [USER + MIB - 4096, USER + 0x8000, USER + 0x4000] as const;
  frontend.say(Request.SET_VRING_ADDR, vringAddresses(0, ...last));
  frontend.say(Request.SET_VRING_KICK, vringFd(0), [eventFd()]);
  expect(frontend.queues.running.size).toBe(1);
  expectRefused(Request.SET_VRING_ADDR, vringAddresses(0, USER + 8, good[1], good[2]));
  expect(frontend.queues.running.size).toBe(0);
});

test('a kick before size, addresses or memory is refused', () => {
  frontend.say(Request.SET_VRING_ENABLE, vringState(0, 1));
  expectRefused(Request.SET_VRING_KICK, vringFd(0), [eventFd()]);
  frontend.say(Request.SET_VRING_NUM, vringState(0, 16));
  expectRefused(Request.SET_VRING_KICK, vringFd(0), [eventFd()]);
  frontend.say(Request.SET_VRING_ADDR, vringAddresses(0, USER, USER + 0x8000, USER + 0x4000));
  expectRefused(Request.SET_VRING_KICK, vringFd(0), [eventFd()]);
  expect(frontend.queues.said).toEqual([]);
});

test('a logged ring is refused: migration was not offered', () => {
  const payload = vringAddresses(0, USER, USER, USER);
  payload[4] = 1;
  expectRefused(Request.SET_VRING_ADDR, payload);
});

test('a ring descriptor is one event descriptor, or none that is said to be none', () => {
  frontend.addMemory();
  for (const request of [Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR]) {
    expectRefused(request, vringFd(0), []);
    expectRefused(request, vringFd(0), [eventFd(), eventFd()]);
    frontend.describeRing(0);
    frontend.say(request, vringFd(0, false), []);
    // What comes along with the word that there is none is closed.
    frontend.say(request, vringFd(0, false), [eventFd()]);
  }
});

test('a kick descriptor of a file or of memory is refused', () => {
  for (const open of [
    () => memoryFile(4096),
    () => openSync('/dev/zero', 'r+'),
    () => openSync('/', 'r'),
  ]) {
    expectRefused(Request.SET_VRING_KICK, vringFd(0), [open()]);
  }
});

test('descriptors that are replaced are closed, running or not', () => {
  frontend.addMemory();
  frontend.startRing(0);
  const descriptors = held().descriptors;
  for (let i = 0; i < 10; i++) {
    frontend.say(Request.SET_VRING_CALL, vringFd(0), [eventFd()]);
    frontend.say(Request.SET_VRING_KICK, vringFd(0), [eventFd()]);
  }
  expect(held().descriptors).toBe(descriptors);
  for (let i = 0; i < 10; i++) frontend.say(Request.SET_VRING_ERR, vringFd(0), [eventFd()]);
  expect(held().descriptors).toBe(descriptors + 1);
});

test('a ring runs when it is enabled and kicked, in either order, and says where it stopped', () => {
  frontend.addMemory();
  frontend.describeRing(0);
  frontend.say(Request.SET_VRING_KICK, vringFd(0), [eventFd()]);
  expect(frontend.queues.said).toEqual([]);
  frontend.say(Request.SET_VRING_ENABLE, vringState(0, 1));
  frontend.say(Request.SET_VRING_ENABLE, vringState(0, 1));
  expect(frontend.queues.said).toEqual(['start 0']);
  frontend.queues.base = 0x1234;
  frontend.say(Request.SET_VRING_ENABLE, vringState(0, 0));
  const answer = frontend.ask(Request.GET_VRING_BASE, vringState(0, 0));
  expect([answer.getUint32(0, true), answer.getUint32(4, true)]).toEqual([0, 0x1234]);
  // It needs a new kick after that.
  frontend.say(Request.SET_VRING_ENABLE, vringState(0, 1));
  expect(frontend.queues.said).toEqual(['start 0', 'stop 0']);
  frontend.say(Request.SET_VRING_KICK, vringFd(0), [eventFd()]);
  expect(frontend.queues.running.get(0)?.nextAvailable).toBe(0x1234);
});

test('a base is 16 bits; a running ring is stopped by a new one', () => {
  frontend.addMemory();
  frontend.startRing(0);
  frontend.say(Request.SET_VRING_BASE, vringState(0, 0x7_0005));
  expect(frontend.queues.running.size).toBe(0);
  frontend.say(Request.SET_VRING_KICK, vringFd(0), [eventFd()]);
  expect(frontend.queues.running.get(0)?.nextAvailable).toBe(5);
});

test('without protocol features rings need not be enabled', () => {
  frontend.session.close();
  connect({ raw: true });
  frontend.say(Request.SET_FEATURES, u64Payload(1n << 32n));
  frontend.addMemory();
  frontend.describeRing(1);
  frontend.say(Request.SET_VRING_KICK, vringFd(1), [eventFd()]);
  expect(frontend.queues.running.get(1)).toMatchObject({ eventIdx: false, indirect: false });
});

// Configuration space

test('any part of the configuration is given in the length that was asked for', () => {
  for (const [offset, size] of [
    [0, 16],
    [0, 60],
    [0, 76],
    [0, 256],
    [0x100, 60],
    [0x100, 16],
    [8, 8],
    [59, 1],
    [60, 4],
    [1000, 100],
  ]) {
    const answer = frontend.ask(Request.GET_CONFIG, configPayload(offset, size));
    expect(answer.byteLength).toBe(12 + size);
    expect([answer.getUint32(0, true), answer.getUint32(4, true)]).toEqual([offset, size]);
    const whole = frontend.config.read(0, 2048);
    const from = offset === 0x100 ? 0 : offset;
    const part = [...whole.subarray(from, from + size)];
    expect([...new Uint8Array(answer.buffer, 24, size)]).toEqual(part);
  }
  const capacity = frontend.ask(Request.GET_CONFIG, configPayload(0, 8));
  expect(capacity.getBigUint64(12, true)).toBe(2048n);
});

test('a part of no length, or beyond every configuration, is refused', () => {
  for (const [offset, size] of [
    [0, 0],
    [0, 4085],
    [4084, 1],
    [0xffff_ffff, 1],
    [1, 0xffff_ffff],
    [0xffff_ffff, 0xffff_ffff],
  ]) {
    const payload = configPayload(0, 60);
    new DataView(payload.buffer).setUint32(0, offset, true);
    new DataView(payload.buffer).setUint32(4, size, true);
    expectRefused(Request.GET_CONFIG, payload);
    expectRefused(Request.SET_CONFIG, payload);
  }
  expectRefused(Request.SET_CONFIG, configPayload(0, 60).subarray(0, 71));
});

test('a guest sets the write-back cache, and nothing else of the configuration', () => {
  const space = () => [...frontend.config.read(0, 60)];
  const initial = space();
  frontend.say(Request.SET_CONFIG, configPayload(0, 60, new Uint8Array(60).fill(0xff)));
  expect(space()).toEqual(initial);
  expect(frontend.queues.flushes).toBe(0);
  frontend.say(Request.SET_CONFIG, configPayload(32, 1, Uint8Array.of(0)));
  expect(frontend.queues.writeback).toBe(false);
  // What was acknowledged from the cache is flushed first.
  expect(frontend.queues.flushes).toBe(1);
  expect(space()[32]).toBe(0);
  frontend.say(Request.SET_CONFIG, configPayload(32, 1, Uint8Array.of(1)));
  expect(frontend.queues.writeback).toBe(true);
  frontend.say(Request.SET_CONFIG, configPayload(33, 27, new Uint8Array(27).fill(0xff)));
  frontend.say(Request.SET_CONFIG, configPayload(0, 32, new Uint8Array(32).fill(0xff)));
  expect(space()).toEqual(initial);
});

// Stops

const { FINISH, LEAVE, RECORD } = Waiting;

const end = (goingOn: boolean) => {
  frontend.session.close(goingOn);
  connect();
};

/** What happens to a session whose ring runs, and what becomes of requests that wait. */
const stops: [string, number, () => void][] = [
  ['a ring taken back', FINISH, () => frontend.ask(Request.GET_VRING_BASE, vringState(0, 0))],
  ['a ring disabled', FINISH, () => frontend.say(Request.SET_VRING_ENABLE, vringState(0, 0))],
  ['another place', FINISH, () => frontend.say(Request.SET_VRING_BASE, vringState(0, 7))],
  ['more memory', RECORD, () => frontend.addMemory({ guestAddress: 0, userAddress: USER + MIB })],
  ['another kick', RECORD, () => frontend.say(Request.SET_VRING_KICK, vringFd(0), [eventFd()])],
  ['another error', RECORD, () => frontend.say(Request.SET_VRING_ERR, vringFd(0), [eventFd()])],
  ['other addresses', RECORD, () => frontend.say(Request.SET_VRING_ADDR, addresses())],
  ['the end of the server', RECORD, () => end(true)],
  ['the end of the frontend', LEAVE, () => end(false)],
];

const addresses = () => vringAddresses(0, USER, USER + 0x8000, USER + 0x4000);

for (const [name, waiting, stop] of stops) {
  test(`what waits at a stop is ${waiting === FINISH ? 'waited for' : 'left'}: ${name}`, () => {
    const { queues } = frontend;
    frontend.addMemory();
    frontend.startRing(0);
    stop();
    expect(queues.waiting).toEqual([waiting]);
  });
}

// In-flight tracking

test('an in-flight record has room for every queue, and begins empty', () => {
  const reply = frontend.say(Request.GET_INFLIGHT_FD, inflightPayload(0, 0, 2, 128)) as Reply;
  const answer = new DataView(reply.bytes.buffer, 12);
  const size = Number(answer.getBigUint64(0, true));
  expect(size).toBeGreaterThanOrEqual(2 * inflightBytes(128));
  expect([answer.getUint16(16, true), answer.getUint16(18, true)]).toEqual([2, 128]);
  frontend.addMemory();
  frontend.say(Request.SET_INFLIGHT_FD, inflightPayload(size, 0, 2, 128), [reply.fd]);
  frontend.startRing(0, 128);
  frontend.startRing(1, 128);
  const records = [0, 1].map((queue) => frontend.queues.running.get(queue)?.inflight as number);
  expect(records[0] % 8).toBe(0);
  expect(records[1] - records[0]).toBeGreaterThanOrEqual(inflightBytes(128));
});

test('in-flight records of wrong shapes are refused', () => {
  for (const [queues, entries] of [
    [0, 128],
    [3, 128],
    [0xffff, 128],
    [2, 0],
    [2, 257],
    [2, 0xffff],
  ]) {
    expectRefused(Request.GET_INFLIGHT_FD, inflightPayload(0, 0, queues, entries));
    const payload = inflightPayload(MIB, 0, queues, entries);
    expectRefused(Request.SET_INFLIGHT_FD, payload, [memoryFile(MIB)]);
  }
  const enough = 2 * inflightBytes(128);
  for (const [size, offset, fileBytes] of [
    [0, 0, MIB],
    [enough - 1, 0, MIB],
    [enough, 1, MIB],
    [enough, 4, MIB],
    [enough, MIB, MIB],
    [enough, MIB - 8, MIB],
    [enough, 2n ** 63n, MIB],
    [enough, 2n ** 64n - 64n, MIB],
    [2 * MIB, 0, MIB],
    [2n ** 64n - 1n, 0, MIB],
    [enough, 0, 0],
  ] as const) {
    const payload = inflightPayload(size, offset, 2, 128);
    expectRefused(Request.SET_INFLIGHT_FD, payload, [memoryFile(fileBytes)]);
  }
  const good = inflightPayload(enough, 0, 2, 128);
  expectRefused(Request.SET_INFLIGHT_FD, good, []);
  expectRefused(Request.SET_INFLIGHT_FD, good, [eventFd()]);
  expectRefused(Request.SET_INFLIGHT_FD, good, [memoryFile(MIB), memoryFile(MIB)]);
});

test('a record that is given while rings run is taken at once, and the one before is unmapped', () => {
  frontend.addMemory();
  frontend.startRing(0);
  for (let i = 0; i < 5; i++) {
    const payload = inflightPayload(MIB, 0, 2, 128);
    frontend.say(Request.SET_INFLIGHT_FD, payload, [memoryFile(MIB)]);
    expect(frontend.queues.running.get(0)?.inflight).toBeGreaterThan(0);
  }
  expect(held().mappings).toBe(before.mappings + 2);
});

test('a ring larger than the shape of its record is not given what is another queue part of it', () => {
  frontend.addMemory();
  const enough = 2 * inflightBytes(16);
  const payload = inflightPayload(enough, 0, 2, 16);
  frontend.say(Request.SET_INFLIGHT_FD, payload, [memoryFile(enough)]);
  frontend.startRing(0, 16);
  frontend.startRing(1, 256);
  expect(frontend.queues.running.get(0)?.inflight).toBeGreaterThan(0);
  expect(frontend.queues.running.get(1)?.inflight).toBe(0);
});

// All of it at once

test(`random messages: errors are ProtocolErrors, nothing leaks (UBIBLK_TEST_SEED=${seed})`, () => {
  const random = new Random(seed);
  let starts = 0;
  let refused = 0;
  for (let round = 0; round < (soak ? 3000 : 150); round++) {
    frontend.session.close();
    expect(held()).toEqual(before);
    connect({ raw: random.chance(3) });
    // Most rounds begin with something that works, so that there is something to break.
    if (!random.chance(3)) {
      frontend.addMemory();
      frontend.startRing(0);
    }
    for (let i = 0; i < 40; i++) {
      const [request, payload, fds] = randomMessage(random);
      try {
        const reply = frontend.say(request, payload, fds, random.chance(2) ? 1 : NEED_REPLY);
        if (reply && reply.fd >= 0) shim.ubiblk_close(reply.fd);
      } catch (error) {
        if (!(error instanceof ProtocolError)) throw error;
        refused++;
        // The control thread closes the connection here; a session must bear more all the same.
        if (random.chance(2)) break;
      }
    }
    starts += frontend.queues.said.filter((word) => word.startsWith('start')).length;
  }
  expect(starts).toBeGreaterThan(50);
  expect(refused).toBeGreaterThan(50);
});
