/** Servers that lie and networks that change what is sent: no wrong byte, no crash, no end of waiting. */
import { afterAll, expect, test } from 'bun:test';
import { nativeMemory } from '../../src/remote/channel.ts';
import { StripeConnection } from '../../src/remote/connection.ts';
import { RemoteSource } from '../../src/remote/remote_source.ts';
import { Random, seed, soak } from '../random.ts';
import { BadNetwork, LyingServer } from './lying_server.ts';
import { contents, psk, quiet, RawClient, STRIPE, serve } from './support.ts';

console.log(`seed ${seed} (UBIBLK_TEST_SEED=${seed} repeats this run)`);

const STRIPES = 8;
const bytes = contents(STRIPES * STRIPE, seed);
const never = new AbortController().signal;
const rounds = soak ? 3000 : 200;
const megabyte = 1 << 20;

function options(address: string, more = {}) {
  const times = { connectMs: 300, operationMs: 100, reconnectMs: [0, 1, 2, 5] };
  return { address, connections: 6, stripeBytes: STRIPE, ...times, ...more };
}

/** Reads random stripes, several at a time, each until it is had. */
async function readAll(source: RemoteSource, random: Random, count: number): Promise<number> {
  let left = count;
  let failures = 0;
  const reader = async () => {
    const memory = nativeMemory(STRIPE);
    while (left-- > 0) {
      const stripe = random.below(STRIPES);
      const length = random.chance(2) ? STRIPE : 512 * (1 + random.below(63));
      const part = { address: memory.address, bytes: memory.bytes.subarray(0, length) };
      for (;;) {
        memory.bytes.fill(0xee);
        const read = source.read(stripe, part, never);
        if (await read.catch(() => false)) break;
        failures++;
        await Bun.sleep(1);
      }
      const at = stripe * STRIPE;
      if (Buffer.compare(part.bytes, bytes.subarray(at, at + length)) !== 0) {
        throw new Error(`stripe ${stripe} has wrong bytes`);
      }
      // What is behind the part belongs to others.
      expect(memory.bytes.subarray(length).every((byte) => byte === 0xee)).toBe(true);
    }
    memory.free();
  };
  await Promise.all(Array.from({ length: 8 }, reader));
  return failures;
}

const rssBefore = process.memoryUsage().rss;
afterAll(() => {
  Bun.gc(true);
  // Metadata of 64 MiB is promised again and again.
  expect(process.memoryUsage().rss - rssBefore).toBeLessThan(200 * megabyte);
});

test('what a server that lies has sent wrongly is never taken for a stripe', async () => {
  const random = new Random(seed);
  const server = new LyingServer(random, bytes, new Uint8Array(STRIPES).fill(7));
  const source = await RemoteSource.open(options(server.address), quiet);
  server.oneIn = 4;
  expect(await readAll(source, random, rounds)).toBeGreaterThan(0);
  expect(server.told.size).toBeGreaterThan(soak ? 16 : 8);
  server.oneIn = 0;
  await readAll(source, random, 20);
  await source.close();
  server.stop();
}, 120_000);

test('with TLS no change on the way goes unnoticed, and the server lives on', async () => {
  const random = new Random(seed);
  const disk = { sizeBytes: bytes.length, psk: psk(), operationMs: 200, handshakeMs: 300 };
  const { server, address, disk: served } = await serve(disk);
  served.bytes.set(bytes);
  const network = new BadNetwork(random, address);
  const mine = { psk: psk(), connectMs: 1000 };
  const source = await RemoteSource.open(options(network.address, mine), quiet);
  network.oneIn = 12;
  await readAll(source, random, rounds);
  expect(network.harm).toBeGreaterThan(0);
  network.oneIn = 0;
  await readAll(source, random, 20);
  await source.close();
  network.stop();
  const other = await RemoteSource.open(options(address, mine), quiet);
  await readAll(other, random, 20);
  await other.close();
  await server.drain(2000);
  expect(server.clientCount).toBe(0);
}, 120_000);

test('a server of random bytes is refused, in the clear and over TLS, whatever it says', async () => {
  const random = new Random(seed);
  const listener = Bun.listen({
    hostname: '127.0.0.1',
    port: 0,
    socket: {
      data(socket) {
        const noise = Uint8Array.from({ length: random.below(600) }, () => random.below(256));
        const beginning = random.pick([[], [22, 3, 3, 0], [0, 1, 0, 0, 0, 0]]);
        noise.set(beginning.slice(0, noise.length));
        socket.write(noise);
        if (random.chance(4)) socket.end();
      },
      error() {},
    },
  });
  const address = `127.0.0.1:${listener.port}`;
  const key = psk();
  const times = { address, connectMs: 100, operationMs: 50 };
  const tries = Array.from({ length: rounds }, async (_, i) => {
    const open = StripeConnection.open({ ...times, ...(i % 2 && { psk: key }) });
    expect(await open.then(() => 'taken').catch(({ message }) => message)).not.toBe('taken');
  });
  await Promise.all(tries);
  listener.stop(true);
}, 60_000);

/** Requests that are right, one by one or together, as clients send them. */
function requests(random: Random): Uint8Array {
  const all: number[] = [];
  for (let i = random.below(4); i >= 0; i--) {
    const op = random.below(3);
    all.push(op);
    if (op === 1) all.push(random.below(STRIPES + 1), 0, 0, 0, 0, 0, 0, 0);
  }
  return Uint8Array.from(all);
}

test('a server that gets changed and random requests answers the next client', async () => {
  const random = new Random(seed);
  for (const key of [undefined, 'tls']) {
    const { server, address } = await serve({
      operationMs: 100,
      handshakeMs: 200,
      maxClients: 1000,
      ...(key && { psk: psk() }),
    });
    for (let i = 0; i < rounds; i++) {
      const client = await RawClient.connect(address);
      const sent = random.chance(3)
        ? Uint8Array.from({ length: random.below(300) + 1 }, () => random.below(256))
        : requests(random);
      if (random.chance(2)) sent[random.below(sent.length)] ^= 1 << random.below(8);
      // What begins like a record of TLS gets further.
      if (key && random.chance(2)) sent.set([22, 3, 3, 0].slice(0, sent.length));
      client.send(sent);
      // Some take what they are answered, some never read, some go at once.
      if (random.chance(3)) await client.receive(1);
      if (!random.chance(4)) client.close();
    }
    const last = await StripeConnection.open({
      address,
      connectMs: 5000,
      operationMs: 5000,
      ...(key && { psk: psk() }),
    });
    const memory = nativeMemory(STRIPE);
    await last.readStripe(1, memory, STRIPE);
    expect(memory.bytes).toEqual(contents(4 * STRIPE + 1024).slice(STRIPE, 2 * STRIPE));
    last.close();
    memory.free();
    await server.drain(2000);
    expect(server.clientCount).toBe(0);
  }
}, 120_000);
