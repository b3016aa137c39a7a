/** The binary needs nothing but itself: no source tree, no place to unpack to. */

import { expect, test } from 'bun:test';
import { copyFileSync, existsSync, mkdirSync, readdirSync, symlinkSync } from 'node:fs';
import { binary } from './processes.ts';
import { Bed, need, quote, testWith } from './support.ts';

test('a copy in an empty folder serves, and leaves no file behind', async () => {
  await using bed = new Bed();
  const disk = bed.disk();
  const folder = bed.path('alone');
  mkdirSync(folder);
  copyFileSync(binary, `${folder}/ubiblk`);
  const socket = bed.path('vhost.sock');
  const config = bed.config({ path: disk, socket, queue_size: 256 });
  const before = readdirSync(bed.folder).sort();
  const server = await bed.start(config, socket, { program: `${folder}/ubiblk`, cwd: folder });
  await bed.check(socket, { ops: 500, zero: 1 });
  await bed.stop(server);
  expect(readdirSync(folder)).toEqual(['ubiblk']);
  expect(readdirSync(bed.folder).sort()).toEqual(before);
}, 60_000);

testWith(
  'a server where /tmp is mounted noexec',
  [need.root(), need.program('unshare')],
  async () => {
    await using bed = new Bed();
    const folder = bed.path('alone');
    mkdirSync(folder);
    copyFileSync(binary, `${folder}/ubiblk`);
    const socket = bed.path('vhost.sock');
    const config = bed.config({ path: bed.disk(), socket, queue_size: 256 });
    // Every folder that a runtime may unpack itself to is empty and noexec, but for the test's own.
    const script = `set -e
mount -t tmpfs tmpfs /mnt && mkdir /mnt/hold && mount --bind ${quote(bed.folder)} /mnt/hold
for dir in /tmp /var/tmp /dev/shm; do mount -t tmpfs -o noexec,mode=1777 tmpfs "$dir"; done
mkdir -p ${quote(bed.folder)} && mount --bind /mnt/hold ${quote(bed.folder)}
cp /bin/true /tmp/true && if /tmp/true; then exit 97; fi
rm /tmp/true
cd ${quote(folder)}
unset TMPDIR
./ubiblk serve vhost --config ${quote(config)} &
echo "server $!" >&2
wait $!
find /tmp /var/tmp /dev/shm -xdev ! -type d`;
    const child = bed.spawn(['unshare', '-m', '--', 'bash', '-c', script]);
    await child.said(/listening on /, 15_000, 0, child.stderr);
    await bed.check(socket, { ops: 500, zero: 1 });
    const server = await child.said(/server (\d+)/, 1000, 0, child.stderr);
    process.kill(Number(server[1]), 'SIGTERM');
    expect(await child.exit(10_000)).toBe(0);
    expect(child.stdout.text).toBe('');
    expect(readdirSync(folder)).toEqual(['ubiblk']);
  },
  60_000,
);

test('where files may not be as large as the native library a sentence says so', async () => {
  await using bed = new Bed();
  for (const [blocks, taken] of [
    [0, 0],
    [100, 102400],
  ]) {
    const script = 'ulimit -f "$1"; "$0" --version';
    const argv = ['bash', '-c', script, binary, String(blocks)];
    const { stdout, stderr } = await bed.run(argv, { expect: 1 });
    expect(stdout.text).toBe('');
    expect(stderr.text).toMatch(
      new RegExp(
        `^\\[ERROR ubiblk\\] this system takes ${taken} of the \\d+ bytes of ubiblk's native ` +
          'library into a memory file; raise the limit on the size of files \\(ulimit -f\\)\n$',
      ),
    );
  }
});

test('by the name vhost-backend it takes that program’s options', async () => {
  await using bed = new Bed();
  const link = bed.path('vhost-backend');
  symlinkSync(binary, link);
  const socket = bed.path('vhost.sock');
  const config = bed.config({ path: bed.disk(), socket, queue_size: 256 });
  const child = bed.spawn([link, '-f', config]);
  await bed.listening(child, 10_000);
  await bed.check(socket, { ops: 500 });
  await bed.stop({ child, socket, config });
  expect(existsSync(socket)).toBe(false);
}, 60_000);
