/** Clients that break the rules of NBD: their own loss, nobody else's. By seeds. */
import { expect, test } from 'bun:test';
import { option, RawClient, request } from '../nbd/support.ts';
import { endNbd, errorOf, greeted, MIB, serveNbd } from './nbd.ts';
import { within } from './processes.ts';
import { Bed, Random, seed, soak } from './support.ts';

const SIZE = 4 * MIB;

test('requests that cannot be done get their errors, and the connection goes on', async () => {
  await using bed = new Bed();
  const server = await serveNbd(bed, bed.disk({ sizeBytes: SIZE }));
  const client = await greeted(server);
  const size = BigInt(SIZE);
  for (const [what, bytes, error] of [
    ['a read out of range', request(0, { offset: size, length: 512 }), 22],
    ['one whose end overflows', request(0, { offset: 2n ** 64n - 512n, length: 1024 }), 22],
    ['one that is not aligned', request(0, { offset: 1n, length: 512 }), 22],
    ['one of a part of a sector', request(0, { length: 100 }), 22],
    ['one of nothing', request(0, { length: 0 }), 22],
    ['one that is too large', request(0, { length: 33 * MIB }), 22],
    ['a write out of range', request(1, { offset: size, length: 512 }, Buffer.alloc(512)), 28],
    ['a write that is not aligned', request(1, { length: 513 }, Buffer.alloc(513)), 22],
    ['a write that is too large', request(1, { length: 33 * MIB }, Buffer.alloc(33 * MIB)), 22],
    ['a trim out of range', request(4, { offset: size, length: 512 }), 28],
    ['a zeroing out of range', request(6, { offset: 512n, length: SIZE }), 28],
    ['a look without a context', request(7, { length: 512 }), 22],
    ['an unknown command', request(99, { length: 512 }), 22],
    ['an unknown flag', request(0, { flags: 0x8000, length: 512 }), 22],
    ['a write that is right', request(1, { length: 512 }, Buffer.alloc(512, 7)), 0],
    ['a flush', request(3, {}), 0],
  ] as const) {
    client.send(bytes);
    const found = await within(errorOf(client), 10_000, () => `the answer to ${what}`);
    expect(`${what}: ${found}`).toBe(`${what}: ${error}`);
  }
  client.send(request(0, { length: 512 }));
  expect(await errorOf(client)).toBe(0);
  expect(await client.receive(512)).toEqual(Buffer.alloc(512, 7));
  client.close();
  await endNbd(server);
});

test('what is no request, or no option, ends its connection alone', async () => {
  await using bed = new Bed();
  const server = await serveNbd(bed, bed.disk({ sizeBytes: SIZE }));
  const other = await greeted(server);
  const noRequest = await greeted(server);
  noRequest.send(Buffer.alloc(28, 1));
  await within(noRequest.closed(), 10_000, () => 'the end of a client without requests');
  const noOption = await RawClient.open(server.socket);
  await noOption.receive(18);
  noOption.send(Buffer.concat([Buffer.from([0, 0, 0, 3]), Buffer.alloc(16, 5)]));
  await within(noOption.closed(), 10_000, () => 'the end of a client without options');
  other.send(request(0, { length: 512 }));
  expect(await errorOf(other)).toBe(0);
  other.close();
  await endNbd(server);
});

test('clients that never say what they want make room for others', async () => {
  await using bed = new Bed();
  const server = await serveNbd(bed, bed.disk({ sizeBytes: SIZE }), { num_queues: 2 });
  // Queues take turns: one has those that are served, the other one those to which nothing happens.
  const active: RawClient[] = [];
  const silent: RawClient[] = [];
  for (let i = 0; i < 64; i++) {
    active.push(await greeted(server));
    const client = await RawClient.open(server.socket);
    await client.receive(18);
    silent.push(client);
  }
  const deadline = Date.now() + 30_000;
  let refused = 0;
  for (;;) {
    // One that finds no room is cut, perhaps before it notices that it was connected.
    const client = await RawClient.open(server.socket).catch(() => null);
    const greeting = client && (await within(client.receive(18), 10_000, () => bed.report()));
    client?.close();
    if (greeting) break;
    refused++;
    if (Date.now() > deadline) throw new Error(`no room was made: ${bed.report()}`);
    await Bun.sleep(50);
  }
  expect(refused).toBeGreaterThan(0);
  // Those that have been silent for long enough by then: the first of them at least.
  await within(silent[0].closed(), 10_000, () => bed.report());
  for (const client of active) {
    await answered(client);
    client.close();
  }
  await endNbd(server);
}, 60_000);

test('clients that send anything at all keep nobody from being served', async () => {
  await using bed = new Bed();
  const server = await serveNbd(bed, bed.disk({ sizeBytes: SIZE }), { num_queues: 2 });
  const random = new Random(seed);
  const honest = await greeted(server);
  for (let round = 0; round < (soak ? 5000 : 400); round++) {
    const client = random.chance(3)
      ? await RawClient.open(server.socket)
      : await greeted(server).catch((error) => {
          throw new Error(`round ${round}: ${error} ${server.child.report()}`);
        });
    for (let n = 1 + random.below(6); n > 0; n--) client.send(noise(random));
    if (random.chance(2)) client.close();
    else await Promise.race([client.closed(), answered(honest)]);
    client.close();
    await answered(honest);
  }
  honest.close();
  await endNbd(server);
}, 120_000);

async function answered(honest: RawClient): Promise<void> {
  honest.send(request(0, { offset: 0n, length: 512 }));
  const read = errorOf(honest).then(() => honest.receive(512));
  expect(await within(read, 10_000, () => 'the answer to an honest client')).not.toBeNull();
}

/** Requests and options that are right but for some bits, or cut short, or nothing of the kind. */
function noise(random: Random): Buffer {
  const length = random.pick([0, 512, 1024, 4096, 65536, 1 << 20, 0xfffffe00, random.next()]);
  const offset = BigInt(random.pick([0, 512, SIZE - 512, SIZE, random.next()]));
  const flags = random.chance(3) ? random.below(32) : 0;
  const data = Buffer.alloc(random.pick([0, 512, 4096]), 3);
  let bytes = random.chance(4)
    ? option(random.below(14), Buffer.alloc(random.below(40), random.below(256)))
    : request(random.below(10), { flags, cookie: BigInt(random.next()), offset, length }, data);
  if (random.chance(3)) bytes[random.below(bytes.length)] ^= 1 << random.below(8);
  if (random.chance(4)) bytes = bytes.subarray(0, random.below(bytes.length));
  // A disk that isn't the honest client's would be another test.
  return bytes;
}
