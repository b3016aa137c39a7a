/**
 * What a server records of its guests (`io_debug_path`), done again by `ubiblk replay`, makes the same
 * disk: for each kind of disk, with many requests in flight on several queues.
 */
import { expect, test } from 'bun:test';
import {
  chmodSync,
  chownSync,
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { open } from 'node:fs/promises';
import { lazyDisk } from './lazy.ts';
import { binary, client } from './processes.ts';
import { Bed, matrix, need, qemuDisk, seed, testWith } from './support.ts';

const MIB = 1 << 20;
const DISK_BYTES = 24 * MIB + 5 * 512;

const rows = matrix({
  kind: ['plain', 'encrypted', 'lazy'],
  io_engine: ['io_uring', 'sync'],
  direct_io: [true, false],
  queues: [1, 3],
  max: [4096, 1 << 20],
} as const);

for (const [index, { kind, queues, max, ...settings }] of rows.entries()) {
  const name = `${kind} ${queues} queues max=${max} ${Object.values(settings).join(' ')}`;
  test(`a log replayed onto what the disk was makes it what it is: ${name}`, async () => {
    await using bed = new Bed();
    const log = bed.path('io.log');
    const options = { sizeBytes: DISK_BYTES, encrypted: kind === 'encrypted' };
    const lazy =
      kind === 'lazy'
        ? await lazyDisk(bed, { ...options, imageBytes: 20 * MIB, shift: 8 })
        : undefined;
    const disk = lazy?.disk ?? bed.disk(options);
    if (kind === 'plain') bed.fill(disk, DISK_BYTES, seed);
    const copy = bed.path('copy.raw');
    // Of a lazy disk what is not in the image is what the data file has.
    copyFileSync(kind === 'encrypted' ? bed.decrypted(disk) : disk, copy);
    if (lazy) await bed.run(['dd', `if=${lazy.reference}`, `of=${copy}`, 'conv=notrunc', 'bs=1M']);
    const server = await bed.serve(disk, {
      ...settings,
      ...lazy?.settings,
      num_queues: queues,
      io_debug_path: log,
    });
    const { stderr } = server.child;
    expect(stderr.text).toContain(`recorded in '${log}'`);
    expect(/WILL HOLD PLAIN TEXT/.test(stderr.text)).toBe(kind === 'encrypted');
    const load = { queues, depth: 16, max, span: 8 * MIB, mix: 'rrrwwwzzdf', seed: seed % 100_000 };
    await bed.check(server.socket, { ...load, ops: max > 4096 ? 300 : 2000 });
    // What a second frontend does is appended.
    const before = statSync(log).size;
    await bed.check(server.socket, { ...load, ops: 50, seed: index + 1 });
    expect(statSync(log).size).toBeGreaterThan(before);
    await bed.stop(server);
    expect(statSync(log).mode & 0o777).toBe(0o600);

    const argv = [binary, 'replay', '--log', log, '--disk', copy, '--json'];
    const was = Bun.hash(readFileSync(copy));
    const tried = JSON.parse((await bed.run([...argv, '--dry-run'])).stdout.text);
    expect(Bun.hash(readFileSync(copy))).toBe(was);
    const done = JSON.parse((await bed.run(argv)).stdout.text);
    expect(done).toEqual({ ...tried, dryRun: false });
    expect(done.mismatches).toBe(0);
    expect(Math.min(done.reads, done.writes)).toBeGreaterThan(50);
    if (kind === 'lazy') {
      // Only what has been used is in the data file.
      const again = await bed.serve(disk, { ...lazy?.settings });
      await bed.run([binary, 'probe', '--socket', again.socket, '--verify', copy]);
      await bed.stop(again);
    } else {
      await bed.run(['cmp', kind === 'encrypted' ? bed.decrypted(disk) : disk, copy]);
    }
  }, 120_000);
}

const AB = 'ab'.repeat(512);
const record = (kind: string, sector: number, hex: string) =>
  `${kind}\n${sector}\n${hex.length / 2}\n${hex}\n`;

test('the log of a few requests is what is specified, to the byte', async () => {
  await using bed = new Bed();
  const log = bed.path('io.log');
  // What an earlier server has left is no part of it, nor its mode.
  writeFileSync(log, record('READ', 9, AB).repeat(100), { mode: 0o644 });
  const disk = bed.disk({ sizeBytes: 8 * MIB });
  const server = await bed.serve(disk, { io_debug_path: log, queue_size: 64 });
  const commands = ['write -P 0xab 4k 512', 'flush', 'read 0 1k', 'write -z 1k 512', 'read 4k 512'];
  await bed.run([
    ...[client('qemu-io'), '--image-opts', qemuDisk(server.socket)],
    ...commands.flatMap((command) => ['-c', command]),
  ]);
  const text = readFileSync(log, 'utf8');
  await bed.stop(server);
  expect(statSync(log).mode & 0o777).toBe(0o600);
  const zeroes = (sectors: number) => '00'.repeat(512 * sectors);
  const expected = [
    record('WRITE', 8, AB),
    record('READ', 0, zeroes(2)),
    record('WRITE', 2, zeroes(1)),
    record('READ', 8, AB),
  ].join('');
  // QEMU looks at the disk's beginning first, to see what it is.
  expect(text).toEndWith(expected);
  expect(text.slice(0, -expected.length)).toMatch(/^(READ\n0\n\d+\n0+\n)*$/);
}, 60_000);

test('discards are not offered where a log could not tell what is read of them', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk(), { io_debug_path: bed.path('io.log') });
  const probe = await bed.run([binary, 'probe', '-s', server.socket, '--stage', '0', '--json']);
  const { features } = JSON.parse(probe.stdout.text);
  expect(features).toContain('write_zeroes');
  expect(features).not.toContain('discard');
  await bed.stop(server);
}, 60_000);

testWith(
  'a log for which there is no room ends with its last whole record; the guest goes on',
  [need.root()],
  async () => {
    await using bed = new Bed();
    const small = bed.path('small');
    mkdirSync(small);
    await bed.run(['mount', '-t', 'tmpfs', '-o', 'size=1M', 'tmpfs', small]);
    try {
      const log = `${small}/io.log`;
      const disk = bed.disk({ sizeBytes: 8 * MIB });
      const server = await bed.serve(disk, { io_debug_path: log, num_queues: 2 });
      await bed.check(server.socket, {
        queues: 2,
        depth: 4,
        max: 4096,
        span: 1 << 17,
        ops: 2000,
        zero: 1,
        seed,
      });
      expect(
        server.child.stderr.text.match(/the I\/O log can't be written .*ENOSPC/g)?.length,
      ).toBe(1);
      await bed.stop(server);
      const copy = bed.disk({ sizeBytes: 8 * MIB });
      const { stdout } = await bed.run([binary, 'replay', '-l', log, '-d', copy]);
      expect(stdout.text).toMatch(/^[1-9]\d* writes of .* of them as recorded\n$/);
    } finally {
      await bed.run(['umount', '-l', small]);
    }
  },
  60_000,
);

const small = `${record('WRITE', 8, AB)}${record('READ', 8, AB)}${record('READ', 0, '00'.repeat(512))}`;

test('mismatches are counted, told with their places, and end with 1', async () => {
  await using bed = new Bed();
  const program = bed.path('replay-log');
  symlinkSync(binary, program);
  const disk = bed.disk({ sizeBytes: MIB });
  const log = bed.path('io.log');
  writeFileSync(log, small);
  const good = await bed.run([program, '-l', log, '-d', disk, '--log-level', 'info']);
  expect(good.stdout.text).toBe('1 writes of 512 bytes, 2 reads of 1 KiB, 2 of them as recorded\n');
  expect(good.stderr.text).toBe(
    '[INFO replay] [1] WRITE: sector 8, len 512\n' +
      '[INFO replay] [5] READ: sector 8, len 512\n' +
      '[INFO replay] [9] READ: sector 0, len 512\n',
  );
  expect(readFileSync(disk).toString('hex', 4096, 4608)).toBe(AB);

  const other = `${'00'.repeat(500)}${'17'.repeat(12)}`;
  writeFileSync(log, `${small}${record('READ', 1, other)}${record('READ', 2, AB)}`);
  const bad = await bed.run([program, '-l', log, '-d', disk, '--json'], { expect: 1 });
  expect(JSON.parse(bad.stdout.text)).toMatchObject({ reads: 4, writes: 1, mismatches: 2 });
  expect(bad.stderr.text).toBe(
    '[ERROR replay] [13] READ: sector 1, len 512: differs from byte 500 on: the log has ' +
      `${'17'.repeat(10)}, the disk ${'00'.repeat(10)}\n` +
      '[ERROR replay] [17] READ: sector 2, len 512: differs from byte 0 on: the log has ' +
      `${'ab'.repeat(10)}, the disk ${'00'.repeat(10)}\n` +
      `[ERROR replay] 2 of 4 reads of '${log}' differ from '${disk}'\n`,
  );
}, 60_000);

test('writes behind the end make a file longer; reads there are refused', async () => {
  await using bed = new Bed();
  const disk = bed.path('disk.raw');
  const log = bed.path('io.log');
  writeFileSync(disk, '');
  writeFileSync(log, small);
  await bed.run([binary, 'replay', '-l', log, '-d', disk, '--dry-run']);
  expect(statSync(disk).size).toBe(0);
  await bed.run([binary, 'replay', '-l', log, '-d', disk]);
  expect(statSync(disk).size).toBe(4608);
  writeFileSync(log, record('READ', 8, `${AB}${AB}`));
  for (const more of [[], ['--dry-run']]) {
    const { stderr } = await bed.run([binary, 'replay', '-l', log, '-d', disk, ...more], {
      expect: 1,
    });
    expect(stderr.text).toContain(`'${disk}' ends at offset 4608, where the log reads on`);
  }
}, 60_000);

test('what can not be replayed is refused in a sentence', async () => {
  await using bed = new Bed();
  const [log, disk] = [bed.path('io.log'), bed.disk({ sizeBytes: MIB })];
  const says = async (sentence: string, argv: string[], expect_ = 1) => {
    const { stderr } = await bed.run([binary, 'replay', ...argv], { expect: expect_ });
    expect(stderr.text).toContain(sentence);
  };
  await says("option '--log' is required", ['--disk', disk], 2);
  await says(`the I/O log '${log}' cannot be read: ENOENT`, ['-l', log, '-d', disk]);
  writeFileSync(log, '');
  await bed.run([binary, 'replay', '-l', log, '-d', disk]);
  await says(`'${bed.path('x')}' does not exist`, ['-l', log, '-d', bed.path('x')]);
  await says(`is both the I/O log and the disk`, ['-l', disk, '-d', disk]);
  writeFileSync(log, `${small}READ\n0\n`);
  await says(`line 15 of '${log}' is the end, where a length in bytes should be`, [
    '-l',
    log,
    '-d',
    disk,
  ]);
  const server = await bed.serve(disk);
  await says('is in use by another process', ['-l', log, '-d', disk]);
  await bed.stop(server);
}, 60_000);

test("a log that would overwrite something, or is another server's, is refused", async () => {
  await using bed = new Bed();
  const disk = bed.disk({ sizeBytes: MIB });
  bed.fill(disk, MIB);
  const link = bed.path('link.raw');
  linkSync(disk, link);
  const log = bed.path('io.log');
  const refused = async (path: string, sentence: string) => {
    const config = bed.config({ path: disk, socket: bed.path('x.sock'), io_debug_path: path });
    const argv = [binary, 'serve', 'vhost', '-f', config];
    const { stderr } = await bed.run(argv, { expect: 1 });
    expect(stderr.text).toContain(sentence);
    if (sentence.includes('another server')) return;
    const checked = await bed.run([...argv, '--check'], { expect: 1 });
    expect(checked.stderr.text).toContain(sentence);
  };
  await refused(link, "is both the disk's data file and the I/O log");
  await refused(bed.folder, 'is no regular file; name one in io_debug_path');
  await refused(bed.path('no/folder'), "can't be written: ENOENT");
  await refused(`${disk}/io.log`, "can't be written: ENOTDIR");
  const other = bed.disk({ sizeBytes: MIB });
  bed.fill(other, MIB);
  const before = readFileSync(other);
  chmodSync(other, 0o644);
  await refused(other, 'holds something else than an I/O log; name a new file');
  expect(readFileSync(other).equals(before)).toBe(true);
  expect(statSync(other).mode & 0o777).toBe(0o644);
  if (process.getuid?.() === 0) {
    // Who has it open would see all.
    const others = bed.path('others.log');
    writeFileSync(others, 'mine');
    chownSync(others, 65534, 65534);
    await refused(others, "is another user's; name a new file");
    expect(readFileSync(others, 'utf8')).toBe('mine');
  }
  // --check changes nothing.
  const config = bed.config({ path: disk, socket: bed.path('x.sock'), io_debug_path: log });
  await bed.run([binary, 'serve', 'vhost', '-f', config, '--check']);
  expect(existsSync(log)).toBe(false);
  const server = await bed.serve(other, { io_debug_path: log });
  await refused(log, "is another server's; name another file");
  await bed.stop(server);
  truncateSync(log, 0);
}, 60_000);

test('a log that never comes is no reason to stay', async () => {
  await using bed = new Bed();
  const log = bed.path('io.log');
  await bed.run(['mkfifo', log]);
  const replay = bed.spawn([binary, 'replay', '-l', log, '-d', bed.disk()]);
  // Waits until it is opened there.
  const writer = await open(log, 'w');
  try {
    replay.signal('SIGTERM');
    expect(await replay.exit(10_000)).toBe('SIGTERM');
  } finally {
    await writer.close();
  }
}, 60_000);

test('skip_sync is warned of loudly, and flushes succeed', async () => {
  await using bed = new Bed();
  const disk = bed.disk();
  const server = await bed.serve(disk, { skip_sync: true, num_queues: 2 });
  expect(server.child.stderr.text).toMatch(/WARN .*skip_sync: .*NOTHING IS SYNCED/);
  const state = bed.path('state');
  await bed.check(server.socket, {
    queues: 2,
    depth: 8,
    ops: 1000,
    mix: 'rwf',
    state,
    zero: 1,
    seed,
  });
  await bed.stop(server);
  await bed.compareFile(disk, state);
}, 60_000);
