/** The layer that has an export instead of a file, on a real ring, against a server in this process. */
import { expect, test } from 'bun:test';
import { closeSync, readSync, writeSync } from 'node:fs';
import { openLibrary, shim } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import { IovecTable, Ring } from '../../ffi/ring.ts';
import { parseNbdUri } from '../../src/config/nbd_uri.ts';
import { NbdDevice, type NbdStart } from '../../src/device/nbd/nbd_device.ts';
import { QueueLine, queueLineBytes } from '../../src/device/nbd/queue_line.ts';
import { BlockRequest, READ, WRITE } from '../../src/device/request.ts';
import { openNbdChannel } from '../../src/nbd/connection.ts';
import { Random, seed } from '../random.ts';
import { bytesOf, FakeServer, type Lie, someExport } from './support.ts';

console.log(`seed ${seed} (UBIBLK_TEST_SEED=${seed} repeats this run)`);

/** Memory with gaps, as a guest's. */
const PARTS = [
  [64, 512],
  [4096, 3584],
  [20_000, 9000],
  [40_000, 3292],
] as const;
const LENGTH = PARTS.reduce((sum, [, length]) => sum + length, 0);

/** Cuts the data of a reply into chunks, in any order. */
function inChunks(random: Random): Lie {
  return (bytes, phase) => {
    const reply = Buffer.from(bytes);
    if (phase === 'talk' || reply.readUInt16BE(6) !== 1) return bytes;
    const offset = Number(reply.readBigUInt64BE(20));
    const data = reply.subarray(28);
    const chunks: Buffer[] = [];
    for (let at = 0; at < data.length; ) {
      const length = Math.min(1 + random.below(6000), data.length - at);
      const head = Buffer.from(reply.subarray(0, 28));
      head.writeUInt16BE(0, 4);
      head.writeUInt32BE(8 + length, 16);
      head.writeBigUInt64BE(BigInt(offset + at), 20);
      chunks.splice(
        random.below(chunks.length + 1),
        0,
        Buffer.concat([head, data.subarray(at, at + length)]),
      );
      at += length;
    }
    chunks.at(-1)?.writeUInt16BE(1, 4);
    return Buffer.concat(chunks);
  };
}

async function readThrough(
  server: FakeServer,
  offset: number,
): Promise<{ result: number; bytes: Buffer }> {
  openLibrary();
  const place = parseNbdUri(server.uri);
  const { channel, facts } = await openNbdChannel({ place, connectMs: 1000, operationMs: 1000 });
  const ring = new Ring(64, 128);
  const lines = new SharedArrayBuffer(queueLineBytes(1));
  const start = { facts, lines, eventFds: [shim.ubiblk_eventfd()], lostFd: shim.ubiblk_eventfd() };
  new QueueLine(lines, 0).give(channel.detach());
  const device = new NbdDevice(ring, start, 0, () => {});
  const memory = new NativeBuffer(65536);
  const window = Buffer.from(memory.window());
  window.fill(0xee);
  const iovecs = new IovecTable(PARTS.length);
  for (const [i, [at, length]] of PARTS.entries()) iovecs.set(i, memory.address + at, length);
  let done = false;
  const owner = {
    completed: () => {
      done = true;
    },
  };
  const request = new BlockRequest(0, owner, iovecs);
  Object.assign(request, { op: READ, offset, length: LENGTH, segments: PARTS.length });
  device.submit(request);
  const deadline = Date.now() + 5000;
  while (!done && Date.now() < deadline) {
    device.receive();
    ring.enter(0, 0);
    ring.reap();
    // The server has its turn.
    await new Promise(setImmediate);
    if (device.inFlight === 0 && !done) device.failWaiting();
  }
  const parts = PARTS.map(([at, length]) => window.subarray(at, at + length));
  const bytes = Buffer.concat(parts);
  // What lies between the parts is nobody's to write.
  let at = 0;
  for (const [from, length] of PARTS) {
    expect(window.subarray(at, from).every((byte) => byte === 0xee)).toBe(true);
    at = from + length;
  }
  channel.close();
  return { result: done ? request.result : -1000, bytes };
}

test('data in chunks of any order goes where it belongs', async () => {
  const random = new Random(seed);
  for (let round = 0; round < 20; round++) {
    using server = new FakeServer(someExport, inChunks(random));
    const offset = 512 * random.below(100);
    const { result, bytes } = await readThrough(server, offset);
    expect(result).toBe(0);
    expect(Buffer.compare(bytes, bytesOf(offset, LENGTH))).toBe(0);
  }
}, 30_000);

test('a server that lies is not believed, and requests fail when they are given up', async () => {
  const random = new Random(seed);
  let failures = 0;
  for (let round = 0; round < 60; round++) {
    const lie: Lie = (bytes, phase) => {
      if (phase === 'talk') return bytes;
      const copy = Buffer.from(bytes);
      // Magic, type, cookie, length or offset.
      copy[random.pick([0, 7, 9, 15, 18, 24, 27])] ^= 1 << random.below(8);
      return copy;
    };
    using server = new FakeServer(someExport, lie);
    const { result, bytes } = await readThrough(server, 4096);
    if (result === 0) expect(Buffer.compare(bytes, bytesOf(4096, LENGTH))).toBe(0);
    else failures++;
  }
  expect(failures).toBeGreaterThan(30);
}, 60_000);

/** A device on one end of a socket, with one write, and its server's end in this process's hands. */
class Pair {
  peer: number;
  result: number | undefined;
  readonly memory: NativeBuffer;
  private readonly ring = new Ring(64, 128);
  private readonly line: QueueLine;
  private readonly device: NbdDevice;
  private readonly start: NbdStart;

  constructor(
    readonly length: number,
    flags: number,
  ) {
    const lines = new SharedArrayBuffer(queueLineBytes(1));
    this.line = new QueueLine(lines, 0);
    const facts = {
      sizeBytes: length,
      flags,
      minBlock: 512,
      preferredBlock: 4096,
      maxPayload: length,
      structured: false,
      allocationId: -1,
    };
    const eventFds = [shim.ubiblk_eventfd()];
    this.start = { facts, lines, eventFds, lostFd: shim.ubiblk_eventfd() };
    this.memory = new NativeBuffer(length);
    this.peer = this.connect();
    this.device = new NbdDevice(this.ring, this.start, 0, () => {});
  }

  /** Gives the device a socket. @returns the other end */
  connect(): number {
    const fds = new Int32Array(2);
    shim.ubiblk_socket_pair(fds);
    shim.ubiblk_set_blocking(fds[1], 0);
    this.line.give(fds[0]);
    shim.ubiblk_eventfd_signal(this.start.eventFds[0]);
    return fds[1];
  }

  write(durable: boolean): void {
    const owner = {
      completed: ({ result }: BlockRequest) => {
        this.result = result;
      },
    };
    const { length } = this;
    const { address } = this.memory;
    const request = new BlockRequest(0, owner, new IovecTable(1));
    Object.assign(request, { op: WRITE, offset: 0, length, segments: 1, address, durable });
    this.device.submit(request);
  }

  turn(): void {
    this.device.receive();
    this.ring.enter(0, 0);
    this.ring.reap();
  }

  /** Up to a hundred turns, or until something is so. */
  turns(until: () => boolean = () => false): void {
    for (let i = 0; i < 100 && !until(); i++) this.turn();
  }

  /** What the server is sent next. */
  receive(bytes: number): Buffer {
    const got = Buffer.alloc(bytes);
    this.turns();
    expect(readSync(this.peer, got)).toBe(bytes);
    return got;
  }

  /** The server's answer to a request: all is well. */
  answer(head: Buffer): void {
    const reply = Buffer.alloc(16);
    reply.writeUInt32BE(0x67446698, 0);
    head.copy(reply, 8, 8, 16);
    writeSync(this.peer, reply);
  }
}

test('a write that is answered before it is sent is not done before: its memory is still read', () => {
  openLibrary();
  const pair = new Pair(8 << 20, 1);
  pair.write(false);
  pair.turn();
  const head = Buffer.alloc(28);
  expect(readSync(pair.peer, head)).toBe(28);
  pair.answer(head);
  pair.turns();
  expect(pair.result).toBeUndefined();
  const piece = Buffer.alloc(1 << 20);
  for (let left = pair.length; left > 0; pair.turn()) left -= readSync(pair.peer, piece);
  pair.turns(() => pair.result !== undefined);
  expect(pair.result).toBe(0);
  closeSync(pair.peer);
  pair.memory.free();
});

test('a durable write whose flush has no answer is made again, data and all', () => {
  openLibrary();
  const type = (head: Buffer) => head.readUInt16BE(6);
  // Without FUA.
  const pair = new Pair(512, 1 | 4);
  Buffer.from(pair.memory.window()).fill(7);
  pair.write(true);
  const write = () => {
    const bytes = pair.receive(28 + 512);
    expect(type(bytes)).toBe(1);
    expect(bytes.subarray(28).equals(Buffer.alloc(512, 7))).toBe(true);
    pair.answer(bytes);
    return pair.receive(28);
  };
  expect(type(write())).toBe(3);
  closeSync(pair.peer);
  pair.turns();
  pair.peer = pair.connect();
  const flush = write();
  expect(type(flush)).toBe(3);
  expect(pair.result).toBeUndefined();
  pair.answer(flush);
  pair.turns(() => pair.result !== undefined);
  expect(pair.result).toBe(0);
  closeSync(pair.peer);
  pair.memory.free();
});
