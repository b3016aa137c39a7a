/** Stripes that go from a file to a socket without a copy: what clients get, whatever they and the file do. */
import { afterAll, beforeAll, expect, spyOn, test } from 'bun:test';
import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Lane } from '../../ffi/lane.ts';
import type { DiskFacts } from '../../src/device/disk.ts';
import { DiskReader } from '../../src/remote/plain_reader.ts';
import { ServedStripes } from '../../src/remote/served_disk.ts';
import { PIECE_BYTES } from '../../src/remote/session.ts';
import { SENDERS } from '../../src/remote/socket_threads.ts';
import { StripeServer } from '../../src/remote/stripe_server.ts';
import { FETCHED, HAS_SOURCE, WRITTEN } from '../../src/stripe/shared_state.ts';
import { contents, quiet, RawClient, u64 } from './support.ts';

const SHIFT = 14;
const STRIPE = 512 << SHIFT;
/** Ends within the third stripe, and within a piece. */
const SIZE = 2 * STRIPE + 512 * 4321;
const bytes = contents(SIZE);
let folder = '';
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), 'send-file-'));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** Serves a file of its own; counts what goes past Bun. */
async function serveFile() {
  const fd = openSync(join(folder, 'disk'), 'w+', 0o600);
  writeSync(fd, bytes);
  const facts = { fd, bufferedFd: -1, directOffsetAlign: 1, direct: false, xts: 0 };
  const reader = new DiskReader(facts as DiskFacts);
  const headers = new Uint8Array(3).fill(FETCHED | WRITTEN | HAS_SOURCE);
  const served = new ServedStripes(SHIFT, SIZE, headers, reader, null);
  const options = { address: '127.0.0.1:0', operationMs: 5000, maxClients: 100 };
  const server = await StripeServer.start(served, options, quiet);
  return {
    fd,
    server,
    address: server.localAddress,
    async [Symbol.asyncDispose]() {
      await server.drain(1000);
      closeSync(fd);
    },
  };
}

/** Adds up what threads have sent as long as `of` takes. @param before is called before each of them */
async function sentByThreads(of: () => Promise<void>, before = () => {}): Promise<number> {
  const send = Lane.prototype.sendFile;
  let sum = 0;
  const spy = spyOn(Lane.prototype, 'sendFile').mockImplementation(async function (
    this: Lane,
    ...args
  ) {
    before();
    const count = await send.apply(this, args);
    sum += Math.max(0, count);
    return count;
  });
  try {
    await of();
  } finally {
    spy.mockRestore();
  }
  return sum;
}

async function readStripe(client: RawClient, stripe: number): Promise<void> {
  client.send(1, u64(stripe));
  expect([...(await client.receive(9))]).toEqual([0, ...u64(STRIPE)]);
  const got = await client.receive(STRIPE);
  const wanted = new Uint8Array(STRIPE);
  wanted.set(bytes.subarray(stripe * STRIPE, (stripe + 1) * STRIPE));
  expect(Buffer.compare(got, wanted)).toBe(0);
}

test('clients get the bytes of the file, and zeroes behind its end', async () => {
  await using served = await serveFile();
  const sent = await sentByThreads(async () => {
    const client = await RawClient.connect(served.address);
    for (const stripe of [0, 2, 1, 2]) await readStripe(client, stripe);
    client.close();
  });
  expect(sent).toBeGreaterThan(0);
});

test('more clients than threads get them at once', async () => {
  await using served = await serveFile();
  const clients = Array.from({ length: 2 * SENDERS + 1 }, async (_, i) => {
    const client = await RawClient.connect(served.address);
    await readStripe(client, i % 3);
    client.close();
  });
  await Promise.all(clients);
});

test('clients that take nothing of a stripe hold up nobody, and leave no descriptor', async () => {
  await using served = await serveFile();
  const open = () => readdirSync('/proc/self/fd').length;
  const before = open();
  const stalled = await Promise.all(
    Array.from({ length: 4 * SENDERS }, () => RawClient.connect(served.address)),
  );
  for (const client of stalled) {
    client.pause();
    client.send(1, u64(0));
  }
  const last = await RawClient.connect(served.address);
  for (const stripe of [0, 1, 2]) await readStripe(last, stripe);
  last.close();
  for (const client of stalled) client.reset();
  while (served.server.clientCount > 0) await Bun.sleep(1);
  expect(open()).toBeLessThanOrEqual(before);
});

test('a file that is cut while a stripe is sent ends the connection', async () => {
  await using served = await serveFile();
  const cut = () => ftruncateSync(served.fd, STRIPE + PIECE_BYTES + 512);
  const sent = await sentByThreads(async () => {
    const client = await RawClient.connect(served.address);
    client.send(1, u64(1));
    await client.end();
    expect((await client.receive(9 + STRIPE)).length).toBeLessThan(9 + STRIPE);
  }, cut);
  expect(sent).toBe(512);
  const other = await RawClient.connect(served.address);
  await readStripe(other, 0);
  other.close();
});
