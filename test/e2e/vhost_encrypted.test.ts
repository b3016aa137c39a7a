/** Encrypted disks against implementations and tools that are not ours, and what must not get out. */

import { expect, test } from 'bun:test';
import { readFileSync, statSync } from 'node:fs';
import { binary, client } from './processes.ts';
import { Bed, matrix, need, qemuDisk, seed, testKeys, testWith } from './support.ts';

const engines = matrix({ io_engine: ['io_uring', 'sync'], direct_io: [true, false] } as const);
/** QEMU's name for a served disk among file names. */
function jsonDisk(path: string): string {
  const file = { driver: 'virtio-blk-vhost-user', path, cache: { direct: true } };
  return `json:${JSON.stringify({ driver: 'raw', file })}`;
}

const MARKER = 'the quick brown fox jumps over the lazy dog; '.repeat(1000);

for (const settings of engines) {
  const name = Object.values(settings).join(' ');

  test(`a disk encrypted elsewhere reads as what it was, and the reverse: ${name}`, async () => {
    await using bed = new Bed();
    const disk = bed.disk({ encrypted: true, sizeBytes: (16 << 20) + 512 * 5 });
    const image = bed.disk({ sizeBytes: statSync(disk).size });
    const img = client('qemu-img');
    const server = await bed.serve(disk, settings);
    const same = async () => await bed.run([img, 'compare', image, jsonDisk(server.socket)]);
    // Made of zeroes by node's OpenSSL.
    await same();
    bed.fill(image, statSync(disk).size, seed);
    await bed.run([
      img,
      'convert',
      '-n',
      '-f',
      'raw',
      '--target-image-opts',
      image,
      qemuDisk(server.socket),
    ]);
    await same();
    await bed.stop(server);
    expect(Buffer.compare(readFileSync(bed.decrypted(disk)), readFileSync(image))).toBe(0);
  }, 60_000);
}

test('what a guest writes is not to be found in the file', async () => {
  await using bed = new Bed();
  for (const encrypted of [false, true]) {
    const disk = bed.disk({ encrypted, sizeBytes: 1 << 20 });
    const text = bed.path('text');
    await Bun.write(text, MARKER.slice(0, 32768));
    const server = await bed.serve(disk);
    const io = [client('qemu-io'), '--image-opts', qemuDisk(server.socket)];
    await bed.run([...io, '-c', `write -s ${text} 4096 32768`, '-c', 'flush']);
    await bed.stop(server);
    // The plain disk shows that the text would be found.
    for (const part of [MARKER.slice(0, 45), 'quick', 'lazy dog']) {
      expect([encrypted, readFileSync(disk).includes(part)]).toEqual([encrypted, !encrypted]);
    }
  }
}, 60_000);

test('an encrypted disk offers write-zeroes, never discard', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk({ encrypted: true }));
  const probe = await bed.run([
    binary,
    'probe',
    '--socket',
    server.socket,
    '--json',
    '--seconds',
    '1',
  ]);
  const { features } = JSON.parse(probe.stdout.text);
  expect(features).toContain('write_zeroes');
  expect(features).not.toContain('discard');
  await bed.stop(server);
}, 60_000);

test('no key is in any output, whatever is logged', async () => {
  await using bed = new Bed();
  const disk = bed.disk({ encrypted: true });
  const server = await bed.serve(disk, {}, { env: { UBIBLK_LOG: 'debug' } });
  await bed.check(server.socket, { ops: 200 });
  const check = await bed.run([
    binary,
    'serve',
    'vhost',
    '--config',
    bed.config({ path: bed.disk(), socket: bed.path('other.sock'), encryption_key: testKeys }),
    '--check',
    '--log-level',
    'debug',
  ]);
  expect(check.stdout.text).toContain('encrypted');
  await bed.stop(server);
  const output = [server.child, check]
    .map(({ stdout, stderr }) => stdout.text + stderr.text)
    .join('');
  for (const key of testKeys) {
    expect(output).not.toContain(key);
    expect(output).not.toContain(Buffer.from(key, 'base64').toString('hex'));
    expect(output).not.toContain(Buffer.from(key, 'base64').toString('latin1'));
  }
}, 60_000);

testWith(
  'a process with keys can be neither dumped nor traced by its user, and its keys are locked',
  [need.root(), need.program('setpriv')],
  async () => {
    await using bed = new Bed();
    const nobody = 65534;
    await bed.run(['chmod', '-R', 'a+rwX', bed.folder]);
    const disk = bed.disk({ encrypted: true });
    const config = bed.config({ path: disk, socket: bed.path('a'), encryption_key: testKeys });
    await bed.run(['chown', String(nobody), disk, config]);
    for (const [keys, ...options] of [
      [true, '--config', config],
      [false, '--null', '1G', '--socket', bed.path('b')],
    ] as const) {
      const argv = ['setpriv', `--reuid=${nobody}`, '--clear-groups', binary, 'serve', 'vhost'];
      const child = bed.spawn([...argv, ...options]);
      await bed.listening(child, 10_000);
      // The kernel gives the files in /proc of a process that can't be dumped to root.
      expect(statSync(`/proc/${child.pid}/mem`).uid).toBe(keys ? 0 : nobody);
      const status = readFileSync(`/proc/${child.pid}/status`, 'utf8');
      expect(/^VmLck:\s+0 kB/m.test(status)).toBe(!keys);
      expect(child.stderr.text).not.toContain('memlock');
      child.signal('SIGTERM');
      expect(await child.exit(10_000)).toBe(0);
    }
  },
  60_000,
);

test('where nothing may be locked the disk is served with a warning', async () => {
  await using bed = new Bed();
  const disk = bed.disk({ encrypted: true });
  const config = bed.config({ path: disk, socket: bed.path('a.sock'), encryption_key: testKeys });
  const argv = ['prlimit', '--memlock=0:0', binary, 'serve', 'vhost', '--config', config];
  const run = await bed.run(
    ['setpriv', '--bounding-set=-ipc_lock', '--inh-caps=-ipc_lock', ...argv, '--check'],
    { deadlineMs: 20_000 },
  );
  expect(run.stderr.text).toMatch(/locked into memory; raise the memlock limit/);
}, 60_000);
