/** Disks served over NBD to clients that are not ours: libnbd's tools, QEMU's, fio. */
import { expect, test } from 'bun:test';
import { writeFileSync } from 'node:fs';
import { dump, lazyDisk } from './lazy.ts';
import { compareImages, endNbd, MIB, nbdPrograms, serveNbd } from './nbd.ts';
import { binary, hostProgram } from './processes.ts';
import { Bed, matrix, need, seed, soak, testWith } from './support.ts';

const needs = nbdPrograms.map((name) => need.program(name));

const rows = matrix({
  io_engine: ['io_uring', 'sync'],
  direct_io: [true, false],
  write_through: [false, true],
  kind: ['plain', 'encrypted', 'lazy'],
  num_queues: [1, 3],
} as const);

for (const row of rows) {
  const { kind, ...settings } = row;
  const name = Object.entries(row).map(([key, value]) => `${key}=${value}`);
  testWith(
    `NBD clients agree with the disk: ${name.join(' ')}`,
    [...needs, need.program('fio')],
    async () => {
      await using bed = new Bed();
      const encrypted = kind === 'encrypted';
      let disk = bed.disk({ sizeBytes: 32 * MIB, encrypted });
      let more = {};
      const reference = bed.path('plain.raw');
      writeFileSync(reference, '');
      if (kind === 'lazy') {
        const lazy = await lazyDisk(bed, { sizeBytes: 32 * MIB, imageBytes: 32 * MIB, shift: 9 });
        disk = lazy.disk;
        more = lazy.settings;
        await bed.run(['cp', lazy.reference, reference]);
      } else {
        await bed.run(['truncate', '-s', '32M', reference]);
      }
      const server = await serveNbd(bed, disk, { ...more, ...settings }, { encrypted });
      const { uri } = server;
      await compareImages(bed, uri, reference);
      const copied = bed.path('copied.raw');
      await bed.run(['nbdcopy', uri, copied]);
      await bed.run(['cmp', copied, reference]);
      const commands = [
        ...['write -P 1 1M 3M', 'write -f -P 2 5k 1k', 'write -z 2M 300k', 'write -z -u 20M 2M'],
        ...['discard 8M 1M', 'flush', 'read -P 1 1M 1M', 'read -P 2 5k 1k', 'read -P 0 2M 300k'],
        'read -P 0 20M 2M',
      ].flatMap((command) => ['-c', command]);
      for (const image of [uri, reference]) {
        const { stdout } = await bed.run(['qemu-io', '-f', 'raw', ...commands, image]);
        expect(stdout.text).not.toContain('failed');
      }
      // What was discarded need not read as zeroes of an encrypted disk.
      const zero = ['-c', 'write -z 8M 1M'];
      for (const image of [uri, reference]) await bed.run(['qemu-io', '-f', 'raw', ...zero, image]);
      await compareImages(bed, uri, reference);
      await bed.run(['nbdcopy', reference, uri]);
      await compareImages(bed, uri, reference);
      await bed.run([
        ...[
          'fio',
          '--name=v',
          '--ioengine=nbd',
          `--uri=${uri}`,
          '--rw=randrw',
          '--bsrange=512-256k',
        ],
        ...['--iodepth=32', '--verify=crc32c', '--verify_backlog=256', '--verify_fatal=1'],
        ...['--serialize_overlap=1', `--size=${soak ? 32 : 12}M`, `--randseed=${seed}`],
        '--output-format=terse',
      ]);
      await bed.run(['nbdcopy', uri, copied]);
      await endNbd(server);
      // And it is on the disk.
      if (kind !== 'lazy') {
        await bed.run(['cmp', copied, encrypted ? bed.decrypted(disk) : disk]);
      }
    },
    120_000,
  );
}

testWith(
  'clients are told what the disk can, and where it has holes',
  [...needs],
  async () => {
    await using bed = new Bed();
    const disk = bed.disk({ sizeBytes: 16 * MIB });
    await bed.run([
      'dd',
      'if=/dev/urandom',
      `of=${disk}`,
      'bs=1M',
      'count=2',
      'seek=4',
      'conv=notrunc',
    ]);
    const server = await serveNbd(bed, disk, { direct_io: false }, { args: ['--export', 'vm/7'] });
    const named = server.uri.replace(':///', ':///vm%2F7');
    const info = JSON.parse((await bed.run(['nbdinfo', '--json', named])).stdout.text);
    expect(info.exports[0]).toMatchObject({
      'export-size': 16 * MIB,
      contexts: ['base:allocation'],
      can_multi_conn: true,
      can_fast_zero: true,
      can_trim: true,
      can_cache: true,
      can_df: true,
      is_read_only: false,
      block_size_minimum: 512,
      block_size_maximum: 32 * MIB,
    });
    const list = JSON.parse(
      (await bed.run(['nbdinfo', '--list', '--json', server.uri])).stdout.text,
    );
    expect(list.exports.map((each: { 'export-name': string }) => each['export-name'])).toEqual([
      'vm/7',
    ]);
    const map = JSON.parse((await bed.run(['nbdinfo', '--map', '--json', server.uri])).stdout.text);
    expect(
      map.map(({ offset, length, type }: Record<string, number>) => [offset, length, type]),
    ).toEqual([
      [0, 4 * MIB, 3],
      [4 * MIB, 2 * MIB, 0],
      [6 * MIB, 10 * MIB, 3],
    ]);
    const other = server.uri.replace(':///', ':///other');
    const refused = await bed.run(['nbdinfo', other], { expect: 1 });
    expect(refused.stderr.text).toContain('No such file');
    await endNbd(server);
  },
  30_000,
);

testWith(
  "the stripes' bits are a meta context",
  [...needs],
  async () => {
    await using bed = new Bed();
    const lazy = await lazyDisk(bed, {
      sizeBytes: 8 * MIB,
      imageBytes: 4 * MIB,
      shift: 11,
      settings: { track_written: true, copy_on_read: true },
    });
    const server = await serveNbd(bed, lazy.disk, lazy.settings);
    const commands = ['read 1M 4k', 'write 3M 4k', 'write 6M 4k', 'flush'].flatMap((c) => [
      '-c',
      c,
    ]);
    await bed.run(['qemu-io', '-f', 'raw', ...commands, server.uri]);
    const told = async (context: string) => {
      const argv = ['nbdinfo', `--map=${context}`, '--json', server.uri];
      const map = JSON.parse((await bed.run(argv)).stdout.text);
      return map.map(({ offset, length, type }: Record<string, number>) => [
        offset / MIB,
        length / MIB,
        type,
      ]);
    };
    expect(await told('ubiblk:stripes')).toEqual([
      [0, 1, 4],
      [1, 1, 5],
      [2, 1, 4],
      [3, 1, 7],
      [4, 2, 0],
      [6, 1, 2],
      [7, 1, 0],
    ]);
    await endNbd(server);
    const { written } = await dump(bed, lazy);
    expect(written).toEqual([
      [3, 3],
      [6, 6],
    ]);
  },
  30_000,
);

testWith(
  'a read-only export is not written to',
  [...needs],
  async () => {
    await using bed = new Bed();
    const disk = bed.disk({ sizeBytes: MIB });
    const server = await serveNbd(bed, disk, {}, { args: ['--read-only'] });
    const info = JSON.parse((await bed.run(['nbdinfo', '--json', server.uri])).stdout.text);
    expect(info.exports[0].is_read_only).toBe(true);
    const write = `
import nbd
h = nbd.NBD(); h.set_strict_mode(0); h.connect_uri(${JSON.stringify(server.uri)})
for call in (lambda: h.pwrite(b"x" * 512, 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
    try:
        call(); print("done")
    except nbd.Error as e:
        print(e.errno)
print(h.pread(512, 0) == bytes(512))
`;
    const { stdout } = await bed.run(['/usr/bin/python3', '-c', write]);
    expect(stdout.text).toBe('EPERM\nEPERM\nEPERM\nTrue\n');
    await endNbd(server);
  },
  30_000,
);

testWith(
  '--run gives the URI to a command and ends with its status',
  [...needs],
  async () => {
    await using bed = new Bed();
    const config = bed.config({ path: bed.disk({ sizeBytes: MIB }) });
    const argv = [binary, 'serve', 'nbd', '--config', config, '--run'];
    const sized = await bed.run(
      [...argv, 'nbdinfo --size "$uri"; test -S "$unixsocket" && exit 7'],
      { expect: 7 },
    );
    expect(sized.stdout.text).toBe(`${MIB}\n`);
    const over = [...argv, 'nbdinfo --size "nbd://127.0.0.1:$port"', '--listen', '127.0.0.1:0'];
    expect((await bed.run(over)).stdout.text).toBe(`${MIB}\n`);
    // A signal ends the command, too.
    const child = bed.spawn([...argv, 'echo begun; exec sleep 1000']);
    await child.said(/begun/, 10_000);
    child.signal('SIGTERM');
    expect(await child.exit(10_000)).toBe(0);
  },
  30_000,
);

testWith(
  'a socket that a service manager passes is served',
  [...needs, need.program('systemd-socket-activate')],
  async () => {
    await using bed = new Bed();
    const config = bed.config({ path: bed.disk({ sizeBytes: MIB }) });
    const socket = bed.path('activated.sock');
    const child = bed.spawn([
      ...['systemd-socket-activate', '-l', socket, binary, 'serve', 'nbd', '--config', config],
    ]);
    await child.said(/Listening on/, 10_000, 0, child.stderr);
    const { stdout } = await bed.run(['nbdinfo', '--size', `nbd+unix:///?socket=${socket}`]);
    expect(stdout.text).toBe(`${MIB}\n`);
    child.signal('SIGTERM');
    expect(await child.exit(10_000)).toBe(0);
  },
  30_000,
);

testWith(
  'TLS by a pre-shared key, with clients that have it, and those that have not',
  [...needs, need.program('psktool')],
  async () => {
    await using bed = new Bed();
    const disk = bed.disk({ sizeBytes: 8 * MIB });
    bed.fill(disk, 8 * MIB);
    const psk = bed.path('keys.psk');
    const wrong = bed.path('wrong.psk');
    for (const file of [psk, wrong]) await bed.run(['psktool', '-u', 'alice', '-p', file]);
    const server = await serveNbd(bed, disk, { num_queues: 2 }, { args: ['--tls-psk', psk] });
    const uri = (file: string) =>
      `nbds+unix://alice@/?socket=${server.socket}&tls-psk-file=${file}`;
    const copied = bed.path('copied.raw');
    await bed.run(['nbdcopy', uri(psk), copied]);
    await bed.run(['cmp', copied, disk]);
    bed.fill(copied, 8 * MIB, 99);
    await bed.run(['nbdcopy', copied, uri(psk)]);
    await bed.run(['nbdinfo', '--map', uri(psk)]);
    await bed.run(['nbdinfo', uri(wrong)], { expect: 1 });
    await bed.run(['nbdinfo', '--size', server.uri], { expect: 1 });
    // And ours, as a client.
    const again = bed.path('again.raw');
    await bed.run([binary, 'copy', uri(psk), again]);
    await bed.run(['cmp', copied, again]);
    const refused = await bed.run([binary, 'copy', uri(wrong), bed.path('x.raw')], { expect: 1 });
    expect(refused.stderr.text).not.toContain('at ');
    const plain = await bed.run([binary, 'copy', server.uri, bed.path('x.raw')], { expect: 1 });
    expect(plain.stderr.text).toContain("begins with 'nbds'");
    await endNbd(server);
    await bed.run(['cmp', copied, disk]);
  },
  60_000,
);

test('what has no place to listen, or a wrong one, is refused in a sentence', async () => {
  await using bed = new Bed();
  const config = bed.config({ path: bed.disk({ sizeBytes: MIB }) });
  const refused = async (args: string[], status: number) => {
    const argv = [binary, 'serve', 'nbd', '--config', config, ...args];
    return (await bed.run(argv, { expect: status })).stderr.text;
  };
  expect(await refused([], 2)).toContain("'--listen unix:PATH'");
  expect(await refused(['--listen', 'nowhere'], 2)).toContain('must be unix:PATH or HOST:PORT');
  expect(await refused(['--listen', 'unix:/no/such/folder/s'], 1)).toContain('does not exist');
  expect(await refused(['--tls-psk', '/no/such.psk', '--listen', '127.0.0.1:0'], 1)).toContain(
    'ENOENT',
  );
  expect(await refused(['--nbd', 'http://x', '--listen', '127.0.0.1:0'], 1)).toContain(
    'no NBD URI',
  );
  const other = Bun.listen({ hostname: '127.0.0.1', port: 0, socket: { data() {} } });
  for (const more of [[], ['--check']]) {
    const listen = ['--listen', `127.0.0.1:${other.port}`, ...more];
    expect(await refused(listen, 1)).toContain('EADDRINUSE; choose another port');
  }
  other.stop();
  if (hostProgram('nbdinfo') === undefined) return;
  const server = await serveNbd(bed, bed.disk({ sizeBytes: MIB }));
  expect(await refused(['--listen', `unix:${server.socket}`], 1)).toContain(
    'another process listens',
  );
  await endNbd(server);
});
