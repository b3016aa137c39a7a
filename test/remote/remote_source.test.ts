/** A source that fetches from servers that come and go, and from some that are none. */
import { expect, test } from 'bun:test';
import { nativeMemory } from '../../src/remote/channel.ts';
import { StripeConnection } from '../../src/remote/connection.ts';
import { RemoteSource } from '../../src/remote/remote_source.ts';
import { Fetcher } from '../../src/stripe/fetcher.ts';
import { encodeStripeMap, MetadataLayout } from '../../src/stripe/metadata_layout.ts';
import { FakeClock } from '../stripe/fake_clock.ts';
import { joined } from './lying_server.ts';
import { contents, MemoryDisk, psk, quiet, SHIFT, STRIPE, serve, u64 } from './support.ts';

const never = new AbortController().signal;

function options(address: string, more = {}) {
  return {
    address,
    connectMs: 2000,
    operationMs: 2000,
    connections: 4,
    stripeBytes: STRIPE,
    ...more,
  };
}

async function fetch(source: RemoteSource, stripe: number, length = STRIPE): Promise<Uint8Array> {
  const memory = nativeMemory(length);
  try {
    await source.read(stripe, memory, never);
    return memory.bytes.slice();
  } finally {
    memory.free();
  }
}

for (const key of [undefined, 'secret']) {
  test(`fetches every stripe, several at a time, ${key ? 'over TLS' : 'in the clear'}`, async () => {
    const mine = key && { psk: psk() };
    const { server, address, disk } = await serve({ ...(key && { psk: psk() }) });
    const source = await RemoteSource.open(options(address, mine), quiet);
    expect(source.description).toBe(
      `remote (address: ${address}, psk_identity: ${key ? 'me' : 'None'})`,
    );
    expect(source.sizeBytes).toBe(5 * STRIPE);
    expect(source.leastDiskBytes).toBe(4 * STRIPE + 512);
    expect([source.has(0), source.has(4), source.has(5)]).toEqual([true, true, false]);
    const rounds = Array.from({ length: 40 }, (_, i) => i % 4);
    const got = await Promise.all(rounds.map((stripe) => fetch(source, stripe)));
    got.forEach((bytes, i) => {
      const at = rounds[i] * STRIPE;
      expect(bytes).toEqual(disk.bytes.slice(at, at + STRIPE));
    });
    // Of the last stripe a disk may hold a part alone.
    expect(await fetch(source, 4, 1024)).toEqual(disk.bytes.slice(4 * STRIPE));
    expect(await fetch(source, 0)).toEqual(disk.bytes.slice(0, STRIPE));
    await source.close();
    await server.drain(1000);
  });
}

test('is refused with another identity or secret, and says which', async () => {
  const { server, address } = await serve({ psk: psk() });
  const open = (key: ReturnType<typeof psk> | undefined) =>
    RemoteSource.open(options(address, key && { psk: key }), quiet);
  await expect(open(psk('you'))).rejects.toThrow('the server knows no such PSK identity');
  await expect(open(psk('me', 8))).rejects.toThrow('the server has another PSK secret');
  await expect(open(undefined)).rejects.toThrow('if it wants TLS, give psk_identity');
  const plain = await serve();
  await expect(RemoteSource.open(options(plain.address, { psk: psk() }), quiet)).rejects.toThrow(
    "the stripe server can't be used",
  );
  await server.drain(1000);
  await plain.server.drain(1000);
});

test('says what is wrong with an address', async () => {
  await expect(RemoteSource.open(options('127.0.0.1:1'), quiet)).rejects.toThrow(
    "127.0.0.1:1 can't be connected to",
  );
  await expect(RemoteSource.open(options('no.such.host.invalid:1'), quiet)).rejects.toThrow(
    "'no.such.host.invalid' can't be resolved",
  );
});

test('a server of other stripes is refused', async () => {
  const { server, address } = await serve();
  await expect(
    RemoteSource.open(options(address, { stripeBytes: 2 * STRIPE }), quiet),
  ).rejects.toThrow(`serves stripes of ${STRIPE} bytes`);
  await server.drain(1000);
});

/** Something that listens and answers each connection as it is told to. */
function listen(
  answer: (bytes: Uint8Array, write: (bytes: Uint8Array) => void, end: () => void) => void,
  opened: () => void = () => {},
) {
  const listener = Bun.listen({
    hostname: '127.0.0.1',
    port: 0,
    socket: {
      open: () => opened(),
      data(socket, bytes) {
        answer(
          bytes,
          (reply) => socket.write(reply),
          () => socket.end(),
        );
      },
    },
  });
  return { address: `127.0.0.1:${listener.port}`, stop: () => listener.stop(true) };
}

test.each([
  ['that says nothing', () => {}, 'has not answered in 0.2 s'],
  [
    'that says HTTP',
    (_: Uint8Array, write: (b: Uint8Array) => void) => write(Buffer.from('HTTP/1.1 400')),
    'is it a stripe server?',
  ],
  [
    'with endless metadata',
    (bytes: Uint8Array, write: (b: Uint8Array) => void) =>
      write(bytes[0] === 2 ? Uint8Array.of(0xfe) : new Uint8Array(9).fill(255, 1)),
    'bytes of metadata',
  ],
  [
    'with metadata that is none',
    (bytes: Uint8Array, write: (b: Uint8Array) => void) =>
      write(
        bytes[0] === 2
          ? Uint8Array.of(0xfe)
          : Buffer.concat([Uint8Array.of(0, 0, 4, 0, 0, 0, 0, 0, 0), new Uint8Array(1024)]),
      ),
    'is no metadata file',
  ],
])('a server %s is refused', async (_, answer, reason) => {
  const { address, stop } = listen(answer);
  await expect(RemoteSource.open(options(address, { connectMs: 200 }), quiet)).rejects.toThrow(
    reason,
  );
  stop();
});

test('goes on with other connections when one breaks, and waits for nothing when all have', async () => {
  const first = await serve();
  const source = await RemoteSource.open(options(first.address), quiet);
  await Promise.all([0, 1, 2, 3].map((stripe) => fetch(source, stripe)));
  await first.server.drain(1000);
  await expect(fetch(source, 0)).rejects.toThrow();
  // The same disk at the same place: whoever asks later gets it.
  const returned = Promise.withResolvers<void>();
  source.whenBack(returned.resolve);
  const again = await serve({ address: first.address, disk: first.disk });
  await returned.promise;
  expect(await fetch(source, 1)).toEqual(first.disk.bytes.slice(STRIPE, 2 * STRIPE));
  await source.close();
  await again.server.drain(1000);
});

test('a stripe that rests is had when the server is back, however long it was to rest', async () => {
  const first = await serve();
  const source = await RemoteSource.open(options(first.address), quiet);
  await first.server.drain(1000);
  // Of this clock no time passes: rests would not end.
  const failed = Promise.withResolvers<void>();
  const had = Promise.withResolvers<number>();
  const memory = nativeMemory(STRIPE);
  const write = async () => {};
  const stripes = new Fetcher(
    { stripeBytes: STRIPE, diskBytes: 5 * STRIPE, autofetchBytesPerSecond: 0 },
    source,
    { write, zero: write, sync: write },
    new FakeClock(),
    [memory],
    {
      nextIdle: () => -1,
      wishBegun: () => {},
      written: had.resolve,
      failed: () => failed.resolve(),
      fate: () => 'awaited',
    },
  );
  stripes.request(3);
  await failed.promise;
  const again = await serve({ address: first.address, disk: first.disk });
  expect(await had.promise).toBe(3);
  expect(memory.bytes).toEqual(first.disk.bytes.slice(3 * STRIPE, 4 * STRIPE));
  await source.close();
  await again.server.drain(1000);
});

test('all connections are made at once when one of them shows that the server is back', async () => {
  const first = await serve();
  // One of the four tries again and again, the others would in an hour.
  let rests = 0;
  const get = () => (rests++ > 0 && rests <= 4 ? 3_600_000 : 10);
  const reconnectMs = Object.defineProperty([0, 0], 1, { get });
  const source = await RemoteSource.open(options(first.address, { reconnectMs }), quiet);
  await Promise.all([0, 1, 2, 3].map((stripe) => fetch(source, stripe)));
  await first.server.drain(1000);
  await expect(Promise.all([0, 1, 2, 3].map((stripe) => fetch(source, stripe)))).rejects.toThrow();
  const back = Promise.withResolvers<void>();
  source.whenBack(back.resolve);
  const again = await serve({ address: first.address, disk: first.disk });
  await back.promise;
  while (again.server.clientCount < 4) await Bun.sleep(1);
  await source.close();
  await again.server.drain(1000);
});

test('a server that takes connections and gives no stripe is asked later and later', async () => {
  const blob = encodeStripeMap(new MetadataLayout(2, SHIFT, 5), new Uint8Array(5).fill(7));
  const metadata = joined(Uint8Array.of(0), u64(blob.length), blob);
  let connections = 0;
  const { address, stop } = listen(
    (bytes, write, end) => {
      if (bytes[0] === 1) end();
      else write(bytes[0] === 2 ? Uint8Array.of(0, 1, 0, 0, 0) : metadata);
    },
    () => connections++,
  );
  const more = { connections: 1, reconnectMs: [0, 1, 1, 3_600_000] };
  const source = await RemoteSource.open(options(address, more), quiet);
  while (connections < 4) await fetch(source, 0).catch(() => Bun.sleep(1));
  // It is left alone for an hour.
  for (let i = 0; i < 10; i++) await expect(fetch(source, 0)).rejects.toThrow();
  expect(connections).toBe(4);
  await source.close();
  stop();
});

test('refuses a server that has come back with another disk', async () => {
  const first = await serve();
  const source = await RemoteSource.open(options(first.address, { connections: 1 }), quiet);
  await first.server.drain(1000);
  const other = await serve({ address: first.address, headers: [7, 7, 0, 7, 7] });
  await expect(async () => {
    for (;;) {
      try {
        await fetch(source, 0);
      } catch (error) {
        if (/another disk/.test((error as Error).message)) throw error;
        await Bun.sleep(10);
      }
    }
  }).toThrow('now serves another disk');
  await source.close();
  await other.server.drain(1000);
});

test('a stripe that the server cannot read fails, and the connection lives on', async () => {
  const disk = new MemoryDisk(contents(4 * STRIPE + 1024));
  const { server, address } = await serve({ disk });
  disk.broken.add(2);
  const connection = await StripeConnection.open(options(address));
  const memory = nativeMemory(STRIPE);
  await expect(connection.readStripe(2, memory, STRIPE)).rejects.toThrow('SERVER_ERROR');
  await connection.readStripe(1, memory, STRIPE);
  expect(memory.bytes).toEqual(disk.bytes.slice(STRIPE, 2 * STRIPE));
  connection.close();
  memory.free();
  await server.drain(1000);
});
