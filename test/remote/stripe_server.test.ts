/** The protocol's bytes, as a client of any generation sees them. */
import { expect, test } from 'bun:test';
import { nativeMemory } from '../../src/remote/channel.ts';
import { StripeConnection } from '../../src/remote/connection.ts';
import { parseStripeMap } from '../../src/stripe/metadata_layout.ts';
import { FETCHED, HAS_SOURCE, WRITTEN } from '../../src/stripe/shared_state.ts';
import { contents, MemoryDisk, psk, RawClient, STRIPE, serve, u64 } from './support.ts';

async function raw(address: string): Promise<RawClient & AsyncDisposable> {
  const client = await RawClient.connect(address);
  return Object.assign(client, { [Symbol.asyncDispose]: async () => client.close() });
}

test('says HELLO', async () => {
  const { server, address } = await serve();
  await using client = await raw(address);
  client.send(2);
  expect([...(await client.receive(5))]).toEqual([0, 1, 0, 0, 0]);
  await server.drain(1000);
});

test('gives metadata of version 1.0 to who has not said HELLO, and of 2.0 to who has', async () => {
  const headers = [7, 3, 0, 4 | 1, 2];
  const { server, address } = await serve({ headers });
  await using client = await raw(address);
  client.send(0);
  expect([...(await client.receive(9))]).toEqual([0, ...u64(512 + 5)]);
  const old = await client.receive(512 + 5);
  expect([...old.subarray(0, 14)]).toEqual([...Buffer.from('BDEV_UBI\0'), ...[1, 0, 0, 0], 6]);
  expect([...old.subarray(512)]).toEqual(headers);
  client.send(2);
  await client.receive(5);
  client.send(0);
  expect([...(await client.receive(9))]).toEqual([0, ...u64(1024)]);
  const blob = await client.receive(1024);
  expect(parseStripeMap(blob)).toEqual({
    version: 2,
    stripeBytes: STRIPE,
    headers: Uint8Array.from(headers),
  });
  await server.drain(1000);
});

test('gives whole stripes, and zeroes behind the end of the disk', async () => {
  const { server, address, disk } = await serve();
  await using client = await raw(address);
  client.send(1, u64(1));
  expect([...(await client.receive(9))]).toEqual([0, ...u64(STRIPE)]);
  expect(await client.receive(STRIPE)).toEqual(disk.bytes.slice(STRIPE, 2 * STRIPE));
  client.send(1, u64(4));
  expect([...(await client.receive(9))]).toEqual([0, ...u64(STRIPE)]);
  const last = await client.receive(STRIPE);
  expect(last.subarray(0, 1024)).toEqual(disk.bytes.slice(4 * STRIPE));
  expect(last.subarray(1024).every((byte) => byte === 0)).toBe(true);
  expect(server.counts).toEqual({ stripes: 2, bytes: 2 * STRIPE });
  await server.drain(1000);
});

test('says what it does not have', async () => {
  const { server, address, disk } = await serve({
    headers: [HAS_SOURCE, FETCHED, HAS_SOURCE | FETCHED, WRITTEN, 0],
  });
  disk.broken.add(3);
  await using client = await raw(address);
  const status = async (...request: (number | Uint8Array)[]) => {
    client.send(...request);
    return (await client.receive(1))[0];
  };
  expect(await status(1, u64(5))).toBe(0x01);
  expect(await status(1, u64(2 ** 53 - 1))).toBe(0x01);
  expect(await status(1, new Uint8Array(8).fill(255))).toBe(0x01);
  expect(await status(1, u64(0))).toBe(0x03);
  expect(await status(1, u64(1))).toBe(0x02);
  expect(await status(1, u64(4))).toBe(0x02);
  expect(await status(1, u64(3))).toBe(0xff);
  expect(await status(0x55)).toBe(0xfe);
  expect(await status(1, u64(2))).toBe(0x00);
  await server.drain(1000);
});

test('fetches from its own source what is not on the disk', async () => {
  const bytes = contents(STRIPE, 99);
  const source = {
    description: 'made up',
    sizeBytes: STRIPE,
    has: () => true,
    async read(stripe: number, buffer: { bytes: Uint8Array }) {
      if (stripe === 1) return false;
      if (stripe === 2) throw new Error('away');
      buffer.bytes.set(bytes.subarray(0, buffer.bytes.length));
      return true;
    },
    async close() {},
  };
  const { server, address } = await serve({ headers: [4, 4, 4, 7, 4], source });
  await using client = await raw(address);
  const read = async (stripe: number) => {
    client.send(1, u64(stripe));
    const status = (await client.receive(1))[0];
    if (status !== 0) return status;
    await client.receive(8);
    return await client.receive(STRIPE);
  };
  expect(await read(0)).toEqual(bytes);
  expect(await read(1)).toEqual(new Uint8Array(STRIPE));
  expect(await read(2)).toBe(0xff);
  const last = (await read(4)) as Uint8Array;
  expect(last.subarray(0, 1024)).toEqual(bytes.subarray(0, 1024));
  expect(last.subarray(1024).every((byte) => byte === 0)).toBe(true);
  await server.drain(1000);
});

test('reads ahead for who goes from stripe to stripe', async () => {
  const { server, address, disk } = await serve();
  await using client = await raw(address);
  for (const stripe of [3, 0, 1, 2]) {
    client.send(1, u64(stripe));
    await client.receive(9 + STRIPE);
  }
  expect(disk.expected).toEqual([2 * STRIPE, 3 * STRIPE]);
  await server.drain(1000);
});

test('answers one request after the other, however they come', async () => {
  const { server, address, disk } = await serve();
  await using client = await raw(address);
  const requests = new Uint8Array(2 + 9 * 3);
  requests.set([2, 0]);
  for (let i = 0; i < 3; i++) requests.set([1, ...u64(i)], 2 + 9 * i);
  for (const byte of requests) client.send(byte);
  await client.receive(5);
  await client.receive(9 + 1024);
  for (let i = 0; i < 3; i++) {
    await client.receive(9);
    expect(await client.receive(STRIPE)).toEqual(disk.bytes.slice(i * STRIPE, (i + 1) * STRIPE));
  }
  await server.drain(1000);
});

test('refuses more clients than it may have, and takes others when they have gone', async () => {
  const { server, address } = await serve({ maxClients: 2 });
  const [a, b] = [await RawClient.connect(address), await RawClient.connect(address)];
  a.send(2);
  b.send(2);
  await a.receive(5);
  await b.receive(5);
  const refused = await RawClient.connect(address);
  await refused.end();
  a.close();
  for (let got = 0; got === 0; ) {
    const next = await RawClient.connect(address);
    next.send(2);
    got = (await next.receive(5)).length;
    next.close();
  }
  b.close();
  await server.drain(1000);
});

test('ends a connection that is silent within a request, and keeps one that is idle', async () => {
  const { server, address } = await serve({ operationMs: 50 });
  await using idle = await raw(address);
  const silent = await RawClient.connect(address);
  silent.send(1, 5, 5);
  await silent.end();
  idle.send(2);
  expect(await idle.receive(5)).toHaveLength(5);
  await server.drain(1000);
});

test('ends connections that do not shake hands in time, and goes on with others', async () => {
  const { server, address } = await serve({ psk: psk(), handshakeMs: 50 });
  const [silent, begun] = [await RawClient.connect(address), await RawClient.connect(address)];
  begun.send(22, 3, 3, 0, 200, 1);
  await Promise.all([silent.end(), begun.end()]);
  const connection = await StripeConnection.open({
    address,
    psk: psk(),
    connectMs: 5000,
    operationMs: 5000,
  });
  connection.close();
  await server.drain(1000);
});

test('has room for hundreds of clients with TLS at once', async () => {
  const { server, address } = await serve({ psk: psk(), maxClients: 1000 });
  const open = { address, psk: psk(), connectMs: 5000, operationMs: 5000 };
  const clients: StripeConnection[] = [];
  while (clients.length < 300) clients.push(await StripeConnection.open(open));
  expect(server.clientCount).toBe(300);
  const memory = nativeMemory(STRIPE);
  await Promise.all([clients[0], clients[299]].map((each) => each.readStripe(0, memory, STRIPE)));
  memory.free();
  for (const client of clients) client.close();
  await server.drain(2000);
});

test('whatever goes wrong with one client, others are served', async () => {
  const disk = new MemoryDisk(contents(4 * STRIPE + 1024));
  const { server, address } = await serve({ disk });
  const read = disk.read.bind(disk);
  disk.read = async (offset, ...more) => {
    if (offset === 0) throw new TypeError('a mistake of ours');
    await read(offset, ...more);
  };
  const unlucky = await RawClient.connect(address);
  unlucky.send(1, u64(0));
  await unlucky.end();
  await using client = await raw(address);
  client.send(1, u64(1));
  expect(await client.receive(9 + STRIPE)).toHaveLength(9 + STRIPE);
  await server.drain(1000);
});

test('finishes an answer that was begun when it is to end, and closes idle connections', async () => {
  const disk = new MemoryDisk(contents(4 * STRIPE + 1024));
  const reading = Promise.withResolvers<void>();
  const goOn = Promise.withResolvers<void>();
  const read = disk.read.bind(disk);
  disk.read = async (...args) => {
    reading.resolve();
    await goOn.promise;
    await read(...args);
  };
  const { server, address } = await serve({ disk });
  const idle = await RawClient.connect(address);
  idle.send(2);
  await idle.receive(5);
  await using client = await raw(address);
  client.send(1, u64(0));
  await reading.promise;
  const drained = server.drain(5000);
  await idle.end();
  goOn.resolve();
  expect(await client.receive(9 + STRIPE)).toHaveLength(9 + STRIPE);
  await drained;
  await expect(RawClient.connect(address)).rejects.toThrow();
});
