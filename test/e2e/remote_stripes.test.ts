/** Disks that fill themselves from a stripe server, between real processes, and peers of another maker. */

import { expect, test } from 'bun:test';
import { readFileSync, statSync } from 'node:fs';
import { binary, type Child, client, keyValues } from './processes.ts';
import { Bed, matrix, need, type Settings, seed, testKeys, testWith } from './support.ts';

const MIB = 1 << 20;
const secret = Buffer.alloc(32, 9);
const psk: Settings = { psk_identity: 'hosts', psk_secret: secret.toString('base64') };

interface StripeServer {
  child: Child;
  address: string;
  /** Of `--server-config`. */
  config: string;
}

/** Starts `ubiblk serve stripes` of a disk; port 0 is any that is free. */
async function serveStripes(
  bed: Bed,
  disk: string,
  { encrypted = false, tls = true, port = 0, more = {} as Settings } = {},
): Promise<StripeServer> {
  const keys: Settings = encrypted ? { encryption_key: testKeys } : {};
  const config = bed.config({ path: disk, ...keys, ...more });
  const key = tls ? psk : {};
  const listen = bed.config({ address: `127.0.0.1:${port}`, ...key });
  const argv = [binary, 'serve', 'stripes', '--config', config, '--listen-config', listen];
  const child = bed.spawn(argv);
  const [, address] = await child.said(/ at (127\S+)/, 10_000, 0, child.stderr);
  return { child, address, config: bed.config({ address, ...key }) };
}

/** An empty disk with metadata that says that all of it is to come from a server. */
async function emptyDisk(
  bed: Bed,
  { address }: StripeServer,
  sizeBytes: number,
  { encrypted = false, tls = true, settings = {} as Settings } = {},
) {
  const disk = bed.disk({ sizeBytes, encrypted });
  const keys: Settings = encrypted ? { encryption_key: testKeys } : {};
  const source = { source: 'remote', address, ...(tls ? psk : {}) };
  const all = {
    metadata_path: bed.path('copy.meta'),
    stripe_source: source as unknown as string,
    copy_on_read: true,
    rpc_socket_path: bed.path('rpc.sock'),
    ...settings,
  };
  const config = bed.config({ path: disk, ...keys, ...all });
  await bed.run([binary, 'metadata', 'init', '--config', config]);
  return { disk, settings: all, config };
}

async function end(server: StripeServer): Promise<void> {
  server.child.signal('SIGTERM');
  expect(await server.child.exit(10_000)).toBe(0);
}

/** Waits until `ubiblk rpc SOCKET status` has said that everything is fetched. */
async function allFetched(bed: Bed, rpc: string): Promise<void> {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const { stdout } = await bed.run([binary, 'rpc', rpc, 'status', '--json']);
    const { stripes } = JSON.parse(stdout.text).status;
    if (stripes.fetched === stripes.source) return;
    if (Date.now() > deadline) throw new Error(`${stdout.text}\n${bed.report()}`);
  }
}

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
    await end(server);
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
  await end(server);
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
  await end(second);
  await end(first);
}, 90_000);

test('the shell answers from a pipe as specified', async () => {
  await using bed = new Bed();
  const image = bed.disk({ sizeBytes: 2 * MIB + 512 });
  bed.fill(image, 2 * MIB + 512, seed);
  const server = await serveStripes(bed, image);
  const commands = [
    'stripe_header 0',
    'stripe_header 3',
    'dump_stripe 1 0 4',
    'fetch_stripe 1',
    'dump_stripe 1 16 8',
    'dump_stripe 1 1048575 2',
    'fetch_stripe 2 more words',
    'dump_stripe 2 510 4',
    'fetch_stripe',
    'fetch_stripe x',
    'bogus',
    'exit',
    'stripe_header 0',
  ].join('\n');
  const argv = [binary, 'shell', '--server-config', server.config];
  await using shell = Bun.spawn(argv, {
    stdin: Buffer.from(commands),
    stdout: 'pipe',
    stderr: 'pipe',
  });
  const text = await new Response(shell.stdout).text();
  expect(await shell.exited).toBe(0);
  const bytes = readFileSync(image);
  const hex = (from: number, length: number) => bytes.subarray(from, from + length).toString('hex');
  expect(text.trimEnd().split('\n')).toEqual([
    '0x07 WRITTEN',
    'INVALID_STRIPE',
    'NOT_FETCHED_FROM_REMOTE',
    'FETCHED',
    hex(MIB + 16, 8),
    'INVALID_RANGE',
    'FETCHED',
    `${hex(2 * MIB + 510, 2)}0000`,
    'error: MISSING_ARGUMENT: N',
    'error: INVALID_NUMBER: x',
    'UNKNOWN_COMMAND: bogus',
    "type 'help' for a list of commands",
  ]);
  await end(server);
  const dead = await bed.run(argv, { expect: 1 });
  expect(dead.stderr.text).toMatch(
    /^\[ERROR shell\] the stripe server can't be used: 127\S+ can't/,
  );
});

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
    await end(server);
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
  await end(server);
  const away = await bed.run(init(same), { expect: 1 });
  expect(away.stderr.text).toMatch(
    /^\[ERROR metadata-init\] the stripe server can't be used: 127\S+ can't be connected to/,
  );
  expect(() => statSync(bed.path('m'))).toThrow();
});
