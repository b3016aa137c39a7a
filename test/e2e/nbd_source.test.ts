/** Disks that fill themselves from NBD servers of others: nbdkit with filters, qemu-nbd. */
import { expect, test } from 'bun:test';
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { statusWhen } from './lazy.ts';
import {
  compareImages,
  endNbd,
  MIB,
  type NbdServer,
  nbdkit,
  nbdPrograms,
  serveNbd,
} from './nbd.ts';
import { binary, type Child } from './processes.ts';
import { type Bed, need, type Settings, Bed as TestBed, testWith } from './support.ts';

const needs = nbdPrograms.map((name) => need.program(name));

/** An empty disk that is to be filled from an NBD server. */
async function diskFrom(
  bed: Bed,
  source: Record<string, unknown>,
  { sizeBytes = 16 * MIB, shift = 11, autofetch = false } = {},
): Promise<{ server: NbdServer; rpc: string }> {
  const disk = bed.disk({ sizeBytes });
  if (sizeBytes < 1 << 30) bed.fill(disk, sizeBytes, 77);
  const rpc = bed.path('rpc.sock');
  const settings: Settings = {
    metadata_path: bed.path('disk.meta'),
    stripe_source: { source: 'nbd', ...source } as unknown as string,
    copy_on_read: true,
    rpc_socket_path: rpc,
    autofetch,
  };
  const config = bed.config({ path: disk, ...settings });
  await bed.run([binary, 'metadata', 'init', '--config', config, '-s', String(shift)]);
  return { server: await serveNbd(bed, disk, settings), rpc };
}

/** An image with data, holes and zeroes that are data. */
async function sparseImage(bed: Bed): Promise<string> {
  const image = bed.disk({ sizeBytes: 16 * MIB });
  const dd = (count: number, seek: number, input = '/dev/urandom') =>
    bed.run([
      'dd',
      `if=${input}`,
      `of=${image}`,
      'bs=64k',
      'conv=notrunc',
      `count=${count}`,
      `seek=${seek}`,
    ]);
  await dd(20, 0);
  await dd(1, 100);
  await dd(16, 128, '/dev/zero');
  await dd(3, 253);
  return image;
}

function asServer({ server }: { server: NbdServer }) {
  return { child: server.child, socket: '', config: '' };
}

for (const [what, argv, more] of [
  ['a file', (image: string) => ['file', image], {}],
  ['a file, without structured replies', (image: string) => ['--no-sr', 'file', image], {}],
  ['a file, without extents', (image: string) => ['--filter=noextents', 'file', image], {}],
  [
    'a file, over one connection',
    (image: string) => ['--filter=multi-conn', 'file', image, 'multi-conn-mode=disable'],
    {},
  ],
  ['a slow server', (image: string) => ['--filter=delay', 'file', image, 'rdelay=20ms'], {}],
  ['a copy-on-write overlay', (image: string) => ['--filter=cow', 'file', image], {}],
  [
    'blocks of 4 KiB',
    (image: string) => ['--filter=blocksize-policy', 'file', image, 'blocksize-minimum=4096'],
    {},
  ],
  [
    'small blocks',
    (image: string) => [
      '--filter=blocksize-policy',
      'file',
      image,
      'blocksize-maximum=64k',
      'blocksize-error-policy=error',
    ],
    {},
  ],
] as const) {
  testWith(
    `a disk is filled from nbdkit: ${what}`,
    needs,
    async () => {
      await using bed = new TestBed();
      const image = await sparseImage(bed);
      const source = await nbdkit(bed, argv(image) as string[]);
      const { server } = await diskFrom(bed, { uri: source.uri, ...more });
      await compareImages(bed, server.uri, image);
      await endNbd(server);
    },
    60_000,
  );
}

testWith(
  'what is zeroes is not transferred',
  needs,
  async () => {
    await using bed = new TestBed();
    const image = await sparseImage(bed);
    const logged = bed.path('requests.log');
    const source = await nbdkit(bed, ['--filter=log', 'file', image, `logfile=${logged}`]);
    const { server, rpc } = await diskFrom(bed, { uri: source.uri }, { autofetch: true });
    const done = await statusWhen(
      asServer({ server }),
      rpc,
      (s) => s.stripes.fetched === s.stripes.source,
    );
    // Of 16 stripes the data is in the first two, the seventh, one of written zeroes and the last.
    expect(done.source?.bytes_zero).toBe(11 * MIB);
    expect(done.source?.bytes_read).toBe(5 * MIB);
    await endNbd(server);
    const reads = readFileSync(logged, 'utf8').match(/ Read id=\d+ offset=0x[0-9a-f]+/g) ?? [];
    expect(reads.length).toBe(5);
  },
  60_000,
);

testWith(
  'a disk is filled from what other tools make: xz, LUKS, a partition',
  [...needs, need.program('xz'), need.program('qemu-img'), need.program('sfdisk')],
  async () => {
    await using bed = new TestBed();
    const image = await sparseImage(bed);
    const xz = bed.path('image.xz');
    await bed.run(['bash', '-c', `xz -1 --block-size=1048576 < '${image}' > '${xz}'`]);
    const luks = bed.path('image.luks');
    const secret = '--object secret,id=s,data=password';
    const convert = `qemu-img convert ${secret} -O luks -o key-secret=s,iter-time=10 '${image}' '${luks}'`;
    // It gives up where a moment's work took no time by the kernel's count.
    await bed.run(['bash', '-c', `for try in {1..20}; do ${convert} && exit; done; exit 1`]);
    const parted = bed.path('parted.raw');
    await bed.run([
      'bash',
      '-c',
      `truncate -s 18M '${parted}' && echo 2048,32768 | sfdisk -q '${parted}' && dd if='${image}' of='${parted}' bs=1M seek=1 conv=notrunc`,
    ]);
    for (const [name, argv] of [
      ['xz', ['--filter=xz', 'file', xz]],
      ['luks', ['--filter=luks', 'file', luks, 'passphrase=password']],
      ['partition', ['--filter=partition', 'file', parted, 'partition=1']],
    ] as const) {
      const source = await nbdkit(bed, argv as unknown as string[], `${name}.sock`);
      const { server } = await diskFrom(bed, { uri: source.uri });
      await compareImages(bed, server.uri, image);
      await endNbd(server);
      for (const file of ['disk.meta', 'rpc.sock']) rmSync(bed.path(file), { force: true });
    }
  },
  90_000,
);

testWith(
  'a server that goes away is waited for, and asked again when it is back',
  needs,
  async () => {
    await using bed = new TestBed();
    const image = await sparseImage(bed);
    const source = await nbdkit(bed, ['file', image]);
    const { server, rpc } = await diskFrom(bed, {
      uri: source.uri,
      connections: 1,
      operation_attempt_timeout_ms: 2000,
    });
    await bed.run(['qemu-io', '-r', '-f', 'raw', '-c', 'read 0 64k', server.uri]);
    source.child.signal('SIGKILL');
    await source.child.reaped(10_000);
    rmSync(source.socket);
    const waiting = bed.spawn(['qemu-io', '-r', '-f', 'raw', '-c', 'read 6M 64k', server.uri]);
    const away = await statusWhen(asServer({ server }), rpc, (s) =>
      Boolean(s.source?.connections?.problem),
    );
    expect(away.source?.connections?.open).toBe(0);
    expect(waiting.running).toBe(true);
    rmSync(bed.path('nbdkit.sock.pid'), { force: true });
    await nbdkit(bed, ['file', image]);
    expect(await waiting.exit(40_000)).toBe(0);
    await compareImages(bed, server.uri, image);
    expect(server.child.stderr.text).toContain('is away');
    expect(server.child.stderr.text).toContain('is back');
    await endNbd(server);
  },
  90_000,
);

testWith(
  'errors of a server are tried again',
  needs,
  async () => {
    await using bed = new TestBed();
    const image = await sparseImage(bed);
    const broken = bed.path('broken');
    writeFileSync(broken, '');
    const source = await nbdkit(bed, [
      '--filter=error',
      'file',
      image,
      'error-pread-rate=100%',
      `error-file=${broken}`,
    ]);
    const { server, rpc } = await diskFrom(bed, { uri: source.uri });
    const waiting = bed.spawn(['qemu-io', '-r', '-f', 'raw', '-c', 'read 0 64k', server.uri]);
    const failing = await statusWhen(asServer({ server }), rpc, (s) => s.failing_count > 0);
    expect(failing.failing[0].message).toContain('EIO');
    rmSync(broken);
    expect(await waiting.exit(20_000)).toBe(0);
    await compareImages(bed, server.uri, image);
    await endNbd(server);
  },
  60_000,
);

testWith(
  'a terabyte that is nearly all holes is the same through us: lazily, as it is, and copied',
  needs,
  async () => {
    await using bed = new TestBed();
    // The plugin compares what is written to it with what it has.
    const source = await nbdkit(bed, ['sparse-random', '1T', 'percent=0.002', 'seed=7']);
    const { server } = await diskFrom(bed, { uri: source.uri }, { sizeBytes: 2 ** 40, shift: 13 });
    await bed.run(['nbdcopy', server.uri, source.uri], { deadlineMs: 60_000 });
    await endNbd(server);
    const passed = await serveNbd(bed, null, {}, { args: ['--nbd', source.uri] });
    await bed.run(['nbdcopy', passed.uri, source.uri], { deadlineMs: 60_000 });
    const map = ['nbdinfo', '--map', '--totals', '--json'];
    const totals = async (uri: string) => JSON.parse((await bed.run([...map, uri])).stdout.text);
    expect(await totals(passed.uri)).toEqual(await totals(source.uri));
    await endNbd(passed);
    const copied = await bed.run([binary, 'copy', '--json', source.uri, source.uri]);
    expect(JSON.parse(copied.stdout.text).sizeBytes).toBe(2 ** 40);
  },
  120_000,
);

testWith(
  'a server that is started for the disk ends with it',
  needs,
  async () => {
    await using bed = new TestBed();
    const image = await sparseImage(bed);
    const pid = bed.path('captive.pid');
    const command = ['[', 'nbdkit', '-f', '-P', pid, 'file', image, ']'];
    const { server } = await diskFrom(bed, { command });
    await compareImages(bed, server.uri, image);
    const captive = Number(readFileSync(pid, 'utf8'));
    expect(existsSync(`/proc/${captive}`)).toBe(true);
    await endNbd(server);
    expect(existsSync(`/proc/${captive}`)).toBe(false);
    const left = readdirSync('/tmp').filter((name) => name.startsWith('ubiblk-nbd-'));
    expect(left.filter((name) => server.child.report().includes(name))).toEqual([]);
  },
  60_000,
);

test('sources that can not be are refused in a sentence', async () => {
  await using bed = new TestBed();
  const refused = async (source: Record<string, unknown>): Promise<Child> => {
    const config = bed.config({
      path: bed.disk({ sizeBytes: MIB }),
      metadata_path: bed.path('refused.meta'),
      copy_on_read: true,
      stripe_source: { source: 'nbd', ...source } as unknown as string,
    });
    return await bed.run([binary, 'metadata', 'init', '--config', config], { expect: 1 });
  };
  const said = async (source: Record<string, unknown>) => (await refused(source)).stderr.text;
  expect(await said({})).toContain("needs either 'uri' or 'command'");
  expect(await said({ uri: 'nbd://h', command: ['x'] })).toContain(
    "needs either 'uri' or 'command'",
  );
  expect(await said({ uri: 'http://h' })).toContain('is no NBD URI');
  expect(await said({ uri: 'nbd+unix:///?socket=/no/such' })).toContain(
    "'/no/such' can't be connected to",
  );
  expect(await said({ command: ['no-such-program'] })).toContain(
    "'no-such-program' is not to be found",
  );
  expect(await said({ command: ['false'] })).toContain("'false' has ended with 1");
  const texts = await said({ uri: 'nbds://h/?tls-psk-file=/no/such.psk' });
  expect(texts).toContain("'/no/such.psk' can't be read: ENOENT");
  expect(texts).not.toContain('    at ');
});
