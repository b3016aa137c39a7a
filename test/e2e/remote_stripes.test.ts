/** Disks that fill themselves from a stripe server, between real processes, and peers of another maker. */

import { expect, test } from 'bun:test';
import { once } from 'node:events';
import { readFileSync, statSync } from 'node:fs';
import { type AddressInfo, createServer } from 'node:net';
import { encodeStripeMap, MetadataLayout } from '../../src/stripe/metadata_layout.ts';
import { LyingServer } from '../remote/lying_server.ts';
import { RawClient } from '../remote/support.ts';
import { binary, client, keyValues, within } from './processes.ts';
import { allFetched, emptyDisk, endStripes, MIB, psk, secret, serveStripes } from './remote.ts';
import { Bed, matrix, need, Random, type Settings, seed, testWith } from './support.ts';

const rows = matrix({
  from: ['plain', 'encrypted'],
  to: ['plain', 'encrypted'],
  tls: [true, false],
  autofetch: [true, false],
  odd: [true, false],
} as const);

for (const row of rows) {
  const { from, to, tls, autofetch, odd } = row;
  const name = `${from} to ${to} tls=${tls} autofetch=${autofetch} odd=${odd}`;
  test(`a copy holds what the disk does, and what was written to it: ${name}`, async () => {
    await using bed = new Bed();
    const sizeBytes = 12 * MIB + (odd ? 512 * 77 : 0);
    const image = bed.disk({ sizeBytes });
    bed.fill(image, sizeBytes, seed);
    const source = from === 'plain' ? image : bed.cipher(image);
    const server = await serveStripes(bed, source, { encrypted: from === 'encrypted', tls });
    const options = { encrypted: to === 'encrypted', tls, settings: { autofetch } };
    const copy = await emptyDisk(bed, server, sizeBytes, options);
    const vhost = await bed.serve(copy.disk, { ...copy.settings, num_queues: 2 });
    const state = bed.path('state');
    const span = 12 * MIB;
    const load = { queues: 2, span, state, image, zero: 1, depth: 16, max: 262144 };
    await bed.check(vhost.socket, { ...load, ops: 400, seed: seed % 1e5 });
    if (autofetch) await allFetched(bed, copy.settings.rpc_socket_path);
    await bed.stop(vhost);
    await endStripes(server);
    if (autofetch) await bed.compareFile(copy.disk, state, { span, image });
  }, 90_000);
}

test('guests wait while the server is away, and finish when it is back', async () => {
  await using bed = new Bed();
  const sizeBytes = 16 * MIB;
  const image = bed.disk({ sizeBytes });
  bed.fill(image, sizeBytes, seed);
  let server = await serveStripes(bed, image);
  const port = Number(server.address.split(':')[1]);
  const copy = await emptyDisk(bed, server, sizeBytes);
  const vhost = await bed.serve(copy.disk, { ...copy.settings, num_queues: 2 });
  const state = bed.path('state');
  const load = { queues: 2, span: sizeBytes, state, image, zero: 1, depth: 8, max: 65536 };
  for (let round = 0; round < 3; round++) {
    server.child.signal('SIGKILL');
    await server.child.reaped(10_000);
    const argv = keyValues({ ...load, ops: 60, seed: seed + round, timeout: 90 });
    const user = bed.spawn([client('vhost-check'), vhost.socket, ...argv]);
    await vhost.child.said(/could not be fetched|is away/, 30_000, 0, vhost.child.stderr);
    expect(user.running).toBe(true);
    server = await serveStripes(bed, image, { port });
    expect(await user.exit(90_000)).toBe(0);
  }
  await bed.stop(vhost);
  await endStripes(server);
}, 240_000);

test('a disk that is itself not filled yet is served through its own source', async () => {
  await using bed = new Bed();
  const sizeBytes = 6 * MIB + 512;
  const image = bed.disk({ sizeBytes });
  bed.fill(image, sizeBytes, seed);
  const first = await serveStripes(bed, image);
  const middle = await emptyDisk(bed, first, sizeBytes);
  const { rpc_socket_path: _, ...more } = middle.settings;
  const second = await serveStripes(bed, middle.disk, { more: more as unknown as Settings });
  const copy = bed.disk({ sizeBytes });
  const settings = {
    metadata_path: bed.path('third.meta'),
    stripe_source: { source: 'remote', address: second.address, ...psk } as unknown as string,
    copy_on_read: true,
    autofetch: true,
    rpc_socket_path: bed.path('third.sock'),
  };
  await bed.run([binary, 'metadata', 'init', '--config', bed.config({ path: copy, ...settings })]);
  const vhost = await bed.serve(copy, settings);
  await allFetched(bed, settings.rpc_socket_path);
  await bed.stop(vhost);
  expect(Buffer.compare(readFileSync(copy), readFileSync(image))).toBe(0);
  await endStripes(second);
  await endStripes(first);
}, 90_000);

test('both ends warn once where the keys of connections may not be locked, and go on', async () => {
  await using bed = new Bed();
  const sizeBytes = 2 * MIB;
  const image = bed.disk({ sizeBytes });
  bed.fill(image, sizeBytes, seed);
  const mayNot = ['setpriv', '--bounding-set=-ipc_lock', '--inh-caps=-ipc_lock'];
  // Enough for rings, and less than keys take at once.
  const under = [...mayNot, 'prlimit', `--memlock=${MIB}:${MIB}`];
  const server = await serveStripes(bed, image, { under });
  const { settings, disk } = await emptyDisk(bed, server, sizeBytes, {
    settings: { autofetch: true },
  });
  const socket = bed.path('unlocked.sock');
  const config = bed.config({ ...settings, path: disk, socket });
  const child = bed.spawn([...under, binary, 'serve', 'vhost', '--config', config]);
  await bed.listening(child, 10_000);
  await allFetched(bed, settings.rpc_socket_path);
  child.signal('SIGTERM');
  expect(await child.exit(10_000)).toBe(0);
  const warnings = ({ stderr }: typeof child) =>
    stderr.text.match(/raise the memlock limit/g)?.length;
  expect(warnings(child)).toBe(1);
  expect(warnings(server.child)).toBe(1);
  expect(Buffer.compare(readFileSync(disk), readFileSync(image))).toBe(0);
  await endStripes(server);
}, 60_000);

const openssl = ['-psk', secret.toString('hex'), '-psk_identity', 'hosts', '-tls1_2'];
const suite = ['-cipher', 'PSK-AES256-GCM-SHA384'];

testWith(
  'openssl s_client fetches stripes from the server',
  [need.program('openssl')],
  async () => {
    await using bed = new Bed();
    const image = bed.disk({ sizeBytes: 2 * MIB });
    bed.fill(image, 2 * MIB, seed);
    const server = await serveStripes(bed, image);
    await using peer = Bun.spawn(
      ['openssl', 's_client', '-connect', server.address, ...openssl, ...suite, '-quiet'],
      { stdin: 'pipe', stdout: 'pipe', stderr: 'ignore' },
    );
    peer.stdin.write(Uint8Array.of(2, 1, 1, 0, 0, 0, 0, 0, 0, 0));
    peer.stdin.flush();
    const wanted = 5 + 9 + MIB;
    let got = Buffer.alloc(0);
    for await (const part of peer.stdout) {
      got = Buffer.concat([got, part]);
      if (got.length >= wanted) break;
    }
    peer.kill();
    expect([...got.subarray(0, 5)]).toEqual([0, 1, 0, 0, 0]);
    expect([...got.subarray(5, 14)]).toEqual([0, 0, 0, 16, 0, 0, 0, 0, 0]);
    expect(Buffer.compare(got.subarray(14), readFileSync(image).subarray(MIB))).toBe(0);
    await endStripes(server);
  },
  30_000,
);

testWith(
  'a stripe comes from a server behind openssl s_server',
  [need.program('openssl')],
  async () => {
    await using bed = new Bed();
    const port = 20_000 + (seed % 20_000);
    await using peer = Bun.spawn(
      [
        'openssl',
        's_server',
        '-accept',
        `127.0.0.1:${port}`,
        '-nocert',
        ...openssl,
        ...suite,
      ].concat('-quiet', '-naccept', '1'),
      { stdin: 'pipe', stdout: 'pipe', stderr: 'ignore' },
    );
    const config = bed.config({ address: `127.0.0.1:${port}`, ...psk });
    const commands = Buffer.from('fetch_stripe 0\ndump_stripe 0 0 4\n');
    const ask = () =>
      Bun.spawn([binary, 'shell', '--server-config', config], {
        stdin: commands,
        stdout: 'pipe',
        stderr: 'pipe',
      });
    // One stripe of 32 KiB, and metadata of the older generation.
    const map = Buffer.alloc(513);
    map.write('BDEV_UBI\0');
    map[9] = 1;
    map[13] = 6;
    map[512] = 7;
    const length = (bytes: number) => {
      const field = Buffer.alloc(9);
      field.writeBigUInt64LE(BigInt(bytes), 1);
      return field;
    };
    let shell = ask();
    // Until openssl listens.
    for (let i = 0; i < 100; i++) {
      const refused = await Promise.race([shell.exited, Bun.sleep(300).then(() => null)]);
      if (refused === null) break;
      shell = ask();
    }
    for await (const part of peer.stdout) {
      const [op] = part;
      if (op === 2) peer.stdin.write(Uint8Array.of(0xfe));
      else if (op === 0) peer.stdin.write(Buffer.concat([length(513), map]));
      else if (op === 1)
        peer.stdin.write(Buffer.concat([length(32768), Buffer.alloc(32768, 0x5a)]));
      peer.stdin.flush();
      if (op === 1) break;
    }
    expect(await new Response(shell.stdout).text()).toBe('FETCHED\n5a5a5a5a\n');
    expect(await shell.exited).toBe(0);
    peer.kill();
  },
  60_000,
);

test('metadata init asks for the server’s stripe size, and a disk that is large enough', async () => {
  await using bed = new Bed();
  const image = bed.disk({ sizeBytes: 3 * MIB + 512 });
  const server = await serveStripes(bed, image);
  const source = { source: 'remote', address: server.address, ...psk } as unknown as string;
  const small = bed.disk({ sizeBytes: 3 * MIB });
  const settings = { metadata_path: bed.path('m'), stripe_source: source, copy_on_read: true };
  const init = (path: string, ...more: string[]) => [
    ...[binary, 'metadata', 'init', '--config', bed.config({ path, ...settings }), ...more],
  ];
  const refused = await bed.run(init(small), { expect: 1 });
  expect(refused.stderr.text).toContain('grow the disk');
  const same = bed.disk({ sizeBytes: 3 * MIB + 512 });
  const other = await bed.run(init(same, '-s', '8'), { expect: 1 });
  expect(other.stderr.text).toContain('serves stripes of 1048576 bytes');
  await endStripes(server);
  const away = await bed.run(init(same), { expect: 1 });
  expect(away.stderr.text).toMatch(
    /^\[ERROR metadata-init\] the stripe server can't be used: 127\S+ can't be connected to/,
  );
  expect(() => statSync(bed.path('m'))).toThrow();
});

test('metadata dump needs no server to name it', async () => {
  await using bed = new Bed();
  const server = await serveStripes(bed, bed.disk({ sizeBytes: MIB }));
  const { config } = await emptyDisk(bed, server, MIB);
  await endStripes(server);
  const { stdout } = await bed.run([binary, 'metadata', 'dump', '--config', config]);
  expect(stdout.text).toContain(
    `source: remote (address: ${server.address}, psk_identity: hosts)\n`,
  );
  const json = await bed.run([binary, 'metadata', 'dump', '--config', config, '--json']);
  expect(JSON.parse(json.stdout.text).source.bytes).toBeNull();
});

/** Answers nobody until so many stripes are asked for at once, each on a connection of its own. */
function patientServer(image: Buffer, together: number) {
  const [stripes, stripeBytes] = [image.length / MIB, MIB];
  const blob = encodeStripeMap(new MetadataLayout(2, 11, stripes), new Uint8Array(stripes).fill(7));
  const waiting: (() => void)[] = [];
  const most = Promise.withResolvers<void>();
  const status = (length: number) => {
    const bytes = Buffer.alloc(9);
    bytes.writeBigUInt64LE(BigInt(length), 1);
    return bytes;
  };
  const listener = createServer((socket) => {
    socket.on('error', () => {});
    socket.on('data', (request: Buffer) => {
      if (request[0] === 2) {
        socket.write(Uint8Array.of(0, 1, 0, 0, 0));
      } else if (request[0] === 0) {
        socket.write(Buffer.concat([status(blob.length), blob]));
      } else {
        const at = Number(request.readBigUInt64LE(1)) * stripeBytes;
        waiting.push(() => {
          socket.write(status(stripeBytes));
          socket.write(image.subarray(at, at + stripeBytes));
        });
        if (waiting.length < together) return;
        most.resolve();
        for (const answer of waiting.splice(0)) answer();
      }
    });
  });
  return { listener, most: most.promise };
}

test('autofetch has as many stripes in flight as there are connections', async () => {
  await using bed = new Bed();
  const sizeBytes = 64 * MIB;
  const image = bed.disk({ sizeBytes });
  bed.fill(image, sizeBytes, seed);
  const { listener, most } = patientServer(readFileSync(image), 16);
  listener.listen(0, '127.0.0.1');
  await once(listener, 'listening');
  try {
    const { port } = listener.address() as AddressInfo;
    const server = { address: `127.0.0.1:${port}` };
    const copy = await emptyDisk(bed, server, sizeBytes, {
      tls: false,
      settings: { autofetch: true },
    });
    const vhost = await bed.serve(copy.disk, copy.settings);
    await within(most, 20_000, () => bed.report());
    // All four times sixteen, or nothing is answered.
    await allFetched(bed, copy.settings.rpc_socket_path);
    await bed.stop(vhost);
    expect(Buffer.compare(readFileSync(copy.disk), readFileSync(image))).toBe(0);
  } finally {
    listener.close();
  }
}, 60_000);

test('a server that lies fills a disk with nothing wrong', async () => {
  await using bed = new Bed();
  const random = new Random(seed);
  const stripes = 150;
  const sizeBytes = stripes * 32768;
  const image = bed.disk({ sizeBytes });
  bed.fill(image, sizeBytes, seed);
  const liar = new LyingServer(random, readFileSync(image), new Uint8Array(stripes).fill(7));
  const copy = await emptyDisk(bed, liar, sizeBytes, {
    tls: false,
    shift: 6,
    settings: { autofetch: true, autofetch_max_mib_per_s: 1 },
    source: { connect_timeout_ms: 500, operation_attempt_timeout_ms: 200 },
  });
  const vhost = await bed.serve(copy.disk, copy.settings);
  liar.oneIn = 10;
  await allFetched(bed, copy.settings.rpc_socket_path);
  await bed.stop(vhost);
  liar.stop();
  expect(liar.told.size).toBeGreaterThan(1);
  expect(Buffer.compare(readFileSync(copy.disk), readFileSync(image))).toBe(0);
}, 90_000);

testWith(
  'a server that may open few files refuses clients, and serves those that it has',
  [need.program('prlimit')],
  async () => {
    await using bed = new Bed();
    const image = bed.disk({ sizeBytes: MIB });
    const config = bed.config({ path: image });
    const listen = bed.config({ address: '127.0.0.1:0' });
    const argv = [binary, 'serve', 'stripes', '--config', config, '--listen-config', listen];
    const child = bed.spawn(['prlimit', '--nofile=60:60', ...argv]);
    const [, address] = await child.said(/ at (127\S+)/, 10_000, 0, child.stderr);
    expect(child.stderr.text).toMatch(/max_clients is taken as \d+ instead of 1024/);
    const clients: RawClient[] = [];
    for (let i = 0; i < 80; i++) clients.push(await RawClient.connect(address));
    // Accepted in their order, and so refused in it.
    await within(clients[79].end(), 20_000, () => child.report());
    clients[0].send(2);
    expect([...(await clients[0].receive(5))]).toEqual([0, 1, 0, 0, 0]);
    for (const client of clients) client.close();
    child.signal('SIGTERM');
    expect(await child.exit(10_000)).toBe(0);
  },
  40_000,
);
