/** `ubiblk doctor` on this host, with configurations and disks that are well, and others. */
import { expect, test } from 'bun:test';
import { chmodSync, mkdirSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { lazyDisk } from './lazy.ts';
import { binary } from './processes.ts';
import { Bed, need, type Settings, testKeys, testWith } from './support.ts';

const MIB = 1 << 20;

interface Finding {
  check: string;
  level: 'ok' | 'warn' | 'fail';
  message: string;
  fix: string;
}

interface Report {
  version: string;
  failed: number;
  warned: number;
  findings: Finding[];
}

async function report(bed: Bed, argv: string[], status = 0, env = {}): Promise<Report> {
  const argument = [binary, 'doctor', '--json', ...argv];
  const child = await bed.run(argument, { expect: status, env });
  const found = JSON.parse(child.stdout.text) as Report;
  const count = (level: string) => found.findings.filter((of) => of.level === level).length;
  expect([found.failed, found.warned]).toEqual([count('fail'), count('warn')]);
  for (const { level, fix, message } of found.findings) {
    expect(message).not.toMatch(/\n|^\s+at /);
    if (level !== 'ok') expect(fix).toMatch(/^.+\.$/);
  }
  return found;
}

function found({ findings }: Report, check: string): Finding {
  const all = findings.filter((of) => of.check === check);
  expect(all.length).toBeGreaterThan(0);
  return all[0];
}

/** Looks at a disk, and tells of one thing. */
async function finding(bed: Bed, settings: Settings, check: string, status = 0): Promise<string> {
  const { level, message, fix } = found(
    await report(bed, ['--config', bed.config(settings)], status),
    check,
  );
  return `${level}: ${message}. ${fix}`;
}

test('this host, line by line and as JSON', async () => {
  await using bed = new Bed();
  const { findings, failed } = await report(bed, []);
  expect(failed).toBe(0);
  const { stdout } = await bed.run([binary, 'doctor']);
  const lines = stdout.text.trimEnd().split('\n');
  expect(lines.length).toBe(findings.length);
  lines.forEach((line, i) => {
    const { level, check } = findings[i];
    expect(line).toMatch(/^(OK {2}|WARN|FAIL) {2}\S/);
    expect(line).toStartWith(level.toUpperCase());
    expect(line).toContain(check);
  });
  const odd = await report(bed, [], 0, { BUN_OPTIONS: '--smol', UBIBLK_IO_URING_SETUP: 'plain' });
  const set = odd.findings.filter(({ check }) => check === 'environment');
  expect(set.map(({ level, message }) => `${level} ${message}`)).toEqual([
    'warn BUN_OPTIONS is set',
    'warn UBIBLK_IO_URING_SETUP is set',
  ]);
  const wrong = await bed.run([binary, 'doctor', '--kek', 'x'], { expect: 2 });
  expect(wrong.stderr.text).toContain("'--kek' needs '--config FILE'");
}, 60_000);

test('a disk that is well, also while it is served; nothing of it is changed', async () => {
  await using bed = new Bed();
  const sizes = { shift: 9, sizeBytes: 8 * MIB, imageBytes: 4 * MIB, encrypted: true };
  const lazy = await lazyDisk(bed, { ...sizes, settings: { num_queues: 2 } });
  const server = await bed.serve(lazy.disk, lazy.settings);
  const all = await report(bed, ['--config', server.config]);
  expect(all.failed).toBe(0);
  expect(found(all, 'data file').message).toContain('is a file of 8 MiB');
  expect(found(all, 'metadata').message).toContain('32 stripes of 256 KiB');
  expect(found(all, 'stripe source').message).toContain(lazy.image);
  expect(found(all, 'socket').message).toContain('a server listens at');
  expect(found(all, 'direct I/O').level).toBe('ok');
  for (const key of testKeys) expect(JSON.stringify(all)).not.toContain(key);
  await bed.check(server.socket, { ops: 200, image: lazy.reference });
  await bed.stop(server);
  const times = () => [lazy.disk, lazy.metadata, lazy.image].map((path) => statSync(path).mtimeMs);
  const before = times();
  const after = await report(bed, ['--config', server.config]);
  expect(found(after, 'socket').message).not.toContain('listens');
  expect(times()).toEqual(before);
}, 60_000);

test('what is wrong with a disk or its configuration fails, with what to do', async () => {
  await using bed = new Bed();
  const disk = bed.disk({ sizeBytes: 8 * MIB });
  const missing = { path: bed.path('none.raw') };
  expect(await finding(bed, missing, 'data file', 1)).toMatch(/^fail: .*does not exist\. Create /);
  truncateSync(disk, 8 * MIB - 100);
  expect(await finding(bed, { path: disk }, 'data file', 1)).toMatch(/^fail: .*512\. Grow it to/);
  truncateSync(disk, 8 * MIB - 512);
  expect(await finding(bed, { path: disk }, 'alignment')).toMatch(/^warn: .*4096 bytes\. Grow it/);
  truncateSync(disk, 8 * MIB);
  chmodSync(disk, 0o666);
  expect(await finding(bed, { path: disk }, 'permission')).toMatch(/^warn: anybody.*chmod o=/);
  chmodSync(disk, 0o400);
  expect(await finding(bed, { path: disk }, 'permission')).toMatch(/^warn: .*read-only\. /);
  chmodSync(disk, 0o600);
  const buffered = { path: disk, direct_io: false };
  expect(await finding(bed, buffered, 'direct I/O')).toMatch(/^warn: .*page cache/);
  const many = { path: disk, num_queues: 64 };
  expect(await finding(bed, many, 'processors')).toMatch(/^warn: \d+ online for 64 queues/);
  const metadata = { path: disk, metadata_path: bed.path('none.meta') };
  expect(await finding(bed, metadata, 'metadata', 1)).toMatch(/^fail: .*does not exist\. /);
  const socket = { path: disk, socket: bed.path('none/vhost.sock') };
  expect(await finding(bed, socket, 'socket', 1)).toMatch(/^fail: .*does not exist\. Create it/);
  const file = { path: disk, rpc_socket_path: disk };
  expect(await finding(bed, file, 'rpc socket', 1)).toMatch(/^fail: .*is not a socket\. Remove it/);
  const same = { path: disk, socket: bed.path('a.sock'), rpc_socket_path: bed.path('a.sock') };
  expect(await finding(bed, same, 'rpc socket', 1)).toMatch(/^fail: .*both.*\. They need two/);
  mkdirSync(bed.path('open'));
  chmodSync(bed.path('open'), 0o777);
  const replaced = { path: disk, rpc_socket_path: bed.path('open/rpc.sock') };
  expect(await finding(bed, replaced, 'rpc socket')).toMatch(/^warn: anybody may replace/);
  expect(await finding(bed, { path: disk, queue_size: 100 }, 'configuration', 1)).toMatch(
    /^fail: .*queue_size: must be a power of two/,
  );
  expect(await finding(bed, { path: disk, quue_size: 64 }, 'configuration')).toMatch(
    /^warn: .*quue/,
  );
  writeFileSync(bed.path('large.raw'), '');
  truncateSync(bed.path('large.raw'), 2 ** 43);
  expect(await finding(bed, { path: bed.path('large.raw') }, 'free space')).toMatch(
    /^warn: 8 TiB of the disk are not written yet, but only/,
  );
  const image = { path: disk, metadata_path: bed.path('disk.meta'), image_path: disk };
  expect(await finding(bed, image, 'data file', 1)).toMatch(/^fail: /);
}, 120_000);

test('a disk in memory is told of', async () => {
  await using bed = new Bed();
  const disk = bed.disk({ kind: 'tmpfs' });
  expect(await finding(bed, { path: disk }, 'file system')).toMatch(/^warn: tmpfs is memory/);
}, 60_000);

testWith(
  'block devices, with the sectors that they have',
  [need.loop()],
  async () => {
    await using bed = new Bed();
    const disk = bed.disk({ kind: 'loop4096' });
    const all = await report(bed, ['--config', bed.config({ path: disk })]);
    expect(found(all, 'data file').message).toContain('is a block device of 64 MiB');
    expect(found(all, 'direct I/O').message).toContain('4096');
    expect(found(all, 'write cache').message).not.toContain('not known');
  },
  60_000,
);

testWith(
  'a disk that this user may not write is told of',
  [need.root(), need.program('setpriv')],
  async () => {
    await using bed = new Bed();
    chmodSync(bed.folder, 0o755);
    const disk = bed.disk();
    chmodSync(disk, 0o644);
    const config = bed.config({ path: disk });
    chmodSync(config, 0o644);
    const user = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'];
    const argv = [...user, binary, 'doctor', '--json', '--config', config];
    const all = JSON.parse((await bed.run(argv, { cwd: '/' })).stdout.text) as Report;
    expect(found(all, 'permission').message).toContain('(EACCES): the disk is read-only');
  },
  60_000,
);

testWith(
  "another user's limits are those that count",
  [need.root(), need.program('setpriv')],
  async () => {
    await using bed = new Bed();
    chmodSync(bed.folder, 0o755);
    const user = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'];
    const limits = ['sh', '-c', 'ulimit -l 64; ulimit -n 256; exec "$0" doctor --json', binary];
    const child = await bed.run([...user, ...limits], { expect: 0, cwd: '/' });
    const all = JSON.parse(child.stdout.text) as Report;
    expect(found(all, 'memlock')).toMatchObject({ level: 'warn' });
    expect(found(all, 'memlock').message).toContain('only 64 KiB');
    expect(found(all, 'open files').message).toContain('only 256');
  },
  60_000,
);
