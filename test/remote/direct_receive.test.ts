/** What is long is received by threads: what arrives, and whose memory it is until then. */
import { afterEach, expect, spyOn, test } from 'bun:test';
import { once } from 'node:events';
import { readdirSync } from 'node:fs';
import { type AddressInfo, createServer, type Socket } from 'node:net';
import { Lane } from '../../ffi/lane.ts';
import { parseNbdUri } from '../../src/config/nbd_uri.ts';
import { NbdConnection } from '../../src/nbd/connection.ts';
import { type Channel, DIRECT_BYTES, nativeMemory } from '../../src/remote/channel.ts';
import { dialTcp } from '../../src/remote/dial.ts';
import { RECEIVERS } from '../../src/remote/socket_threads.ts';
import { FakeServer, someExport } from '../nbd/support.ts';
import { Random, seed } from '../random.ts';

console.log(`seed ${seed} (UBIBLK_TEST_SEED=${seed} repeats this run)`);

const ended: (() => void)[] = [];
afterEach(() => {
  for (const end of ended.splice(0)) end();
});

/** A channel, and the peer's end of it. */
async function connected(idleMs = 10_000): Promise<{ channel: Channel; peer: Socket }> {
  const server = createServer().listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;
  const peer = once(server, 'connection') as Promise<[Socket]>;
  const options = { role: 'client' as const, idleMs };
  const channel = await dialTcp({ host: '127.0.0.1', port }, options, new AbortController().signal);
  const [socket] = await peer;
  server.close();
  ended.push(
    () => channel.close(),
    () => socket.destroy(),
  );
  return { channel, peer: socket };
}

/** Has threads wait when they are done. */
function gate() {
  const open = Promise.withResolvers<void>();
  const reached = Promise.withResolvers<void>();
  const { receive } = Lane.prototype;
  const spy = spyOn(Lane.prototype, 'receive').mockImplementation(async function (
    this: Lane,
    ...args
  ) {
    const count = await receive.apply(this, args);
    reached.resolve();
    await open.promise;
    return count;
  });
  ended.push(() => spy.mockRestore());
  return { reached: reached.promise, open: open.resolve };
}

/** Whether a promise is settled after all that can go on has gone on. */
async function isSettled(promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  const note = () => {
    settled = true;
  };
  promise.then(note, note);
  for (let i = 0; i < 20; i++) await new Promise(setImmediate);
  return settled;
}

test('long and short, in pieces of any size, arrive as they were sent', async () => {
  const random = new Random(seed);
  const lengths = Array.from({ length: 60 }, () =>
    random.chance(2) ? 1 + random.below(100) : random.below(20 * DIRECT_BYTES),
  );
  const all = Buffer.alloc(lengths.reduce((sum, length) => sum + length, 0));
  for (let at = 0; at < all.length; at += 97) all[at] = 1 + random.below(255);
  const { receive } = Lane.prototype;
  let direct = 0;
  const spy = spyOn(Lane.prototype, 'receive').mockImplementation(async function (
    this: Lane,
    ...args
  ) {
    const count = await receive.apply(this, args);
    direct += count;
    return count;
  });
  ended.push(() => spy.mockRestore());
  const { channel, peer } = await connected();
  const send = async () => {
    for (let at = 0; at < all.length; ) {
      const count = random.chance(3) ? 1 + random.below(3000) : 1 + random.below(10 * DIRECT_BYTES);
      if (!peer.write(all.subarray(at, at + count))) await once(peer, 'drain');
      if (random.chance(3)) await new Promise(setImmediate);
      at += count;
    }
  };
  const sending = send();
  const memory = nativeMemory(20 * DIRECT_BYTES);
  let at = 0;
  for (const length of lengths) {
    memory.bytes.fill(0);
    await channel.receive(memory, 0, length);
    expect(Buffer.compare(memory.bytes.subarray(0, length), all.subarray(at, at + length))).toBe(0);
    expect(memory.bytes.subarray(length, length + 64).every((byte) => byte === 0)).toBe(true);
    at += length;
  }
  await sending;
  expect(direct).toBeGreaterThan(all.length / 10);
  memory.free();
}, 60_000);

test('more connections than there are threads', async () => {
  const count = 3 * RECEIVERS;
  const length = 8 * DIRECT_BYTES;
  const ends = [];
  for (let i = 0; i < count; i++) {
    ends.push(await connected());
  }
  // Threads wait for what these have begun.
  for (const [i, { peer }] of ends.entries()) peer.write(Buffer.alloc(1000, i));
  const memories = ends.map(() => nativeMemory(length));
  const received = ends.map(({ channel }, i) => channel.receive(memories[i], 0, length));
  await new Promise(setImmediate);
  for (const [i, { peer }] of ends.entries()) peer.write(Buffer.alloc(length - 1000, i));
  await Promise.all(received);
  for (const [i, { bytes, free }] of memories.entries()) {
    expect(bytes.every((byte) => byte === i)).toBe(true);
    free();
  }
}, 30_000);

test('what comes slowly, but on and on, keeps no thread, and is progress', async () => {
  const { receive } = Lane.prototype;
  const returned = Promise.withResolvers<void>();
  // More patient than usual: it isn't this peer's pauses on a busy machine that end it.
  const spy = spyOn(Lane.prototype, 'receive').mockImplementation(async function (
    this: Lane,
    socket,
    to,
  ) {
    const count = await receive.call(this, socket, to, 100);
    returned.resolve();
    return count;
  });
  ended.push(() => spy.mockRestore());
  const { channel, peer } = await connected(4000);
  const memory = nativeMemory(2 * DIRECT_BYTES);
  const receiving = channel.receive(memory, 0, 2 * DIRECT_BYTES);
  const dripping = setInterval(() => peer.write('1'), 1);
  ended.push(() => clearInterval(dripping));
  await returned.promise;
  clearInterval(dripping);
  peer.write(Buffer.alloc(2 * DIRECT_BYTES, '1'));
  await receiving;
  expect(channel.failure).toBeNull();
  expect(memory.bytes.every((byte) => byte === 0x31)).toBe(true);
  memory.free();
}, 10_000);

test('as long as a thread may write into it, memory is not given back', async () => {
  const { reached, open } = gate();
  const { channel, peer } = await connected();
  const memory = nativeMemory(2 * DIRECT_BYTES);
  const receiving = channel.receive(memory, 0, 2 * DIRECT_BYTES);
  peer.write(Buffer.alloc(1000));
  await reached;
  channel.close('enough');
  expect(await isSettled(receiving)).toBe(false);
  open();
  await expect(receiving).rejects.toThrow('enough');
  await once(peer, 'close');
  memory.free();
});

test('nor is that of a read from an NBD server', async () => {
  const { reached, open } = gate();
  using server = new FakeServer(someExport);
  const place = parseNbdUri(server.uri);
  const connection = await NbdConnection.open({ place, connectMs: 5000, operationMs: 5000 });
  const memory = nativeMemory(someExport.sizeBytes);
  const reading = connection.read(0, memory, someExport.sizeBytes);
  const asking = connection.extents(0, 4096);
  await reached;
  connection.close('enough');
  await expect(asking).rejects.toThrow('enough');
  expect(await isSettled(reading)).toBe(false);
  open();
  await expect(reading).rejects.toThrow('enough');
  memory.free();
});

test('a read whose data is complete when its connection was closed fails, too', async () => {
  const reached = Promise.withResolvers<void>();
  const open = Promise.withResolvers<void>();
  const spy = spyOn(Lane.prototype, 'receive').mockImplementation(async (_, { length }) => {
    reached.resolve();
    await open.promise;
    return length;
  });
  ended.push(() => spy.mockRestore());
  // More chunks of this read are to come.
  const notDone = (bytes: Uint8Array, phase: 'talk' | 'reply') => {
    if (phase === 'reply') bytes[5] = 0;
    return bytes;
  };
  using server = new FakeServer(someExport, notDone);
  const place = parseNbdUri(server.uri);
  const connection = await NbdConnection.open({ place, connectMs: 5000, operationMs: 5000 });
  const memory = nativeMemory(someExport.sizeBytes);
  const reading = connection.read(0, memory, someExport.sizeBytes);
  await reached.promise;
  connection.close('enough');
  open.resolve();
  await expect(reading).rejects.toThrow('enough');
  memory.free();
});

test('a peer that ends in the middle is noticed, and no descriptor is left', async () => {
  const memory = nativeMemory(4 * DIRECT_BYTES);
  const descriptors = () => readdirSync('/proc/self/fd').length;
  const attempt = async () => {
    const { channel, peer } = await connected();
    const receiving = channel.receive(memory, 0, 4 * DIRECT_BYTES);
    peer.end(Buffer.alloc(3 * DIRECT_BYTES));
    await expect(receiving).rejects.toThrow('the peer has closed');
    const closed = once(peer, 'close');
    peer.destroy();
    await closed;
  };
  await attempt();
  const before = descriptors();
  for (let i = 0; i < 20; i++) await attempt();
  expect(descriptors()).toBeLessThan(before + 10);
  memory.free();
});
