/** QEMU's block tools and libblkio's own against the server. */

import { expect, test } from 'bun:test';
import { readFileSync } from 'node:fs';
import { client } from './processes.ts';
import { Bed, qemuDisk } from './support.ts';

const mebibyte = 1 << 20;

/** Runs qemu-io commands; a pattern that doesn't match makes it fail. */
async function qemuIo(bed: Bed, socket: string, ...commands: string[]) {
  const argv = [client('qemu-io'), '--image-opts', qemuDisk(socket)];
  const child = await bed.run([...argv, ...commands.flatMap((command) => ['-c', command])]);
  expect(child.stdout.text).not.toContain('Pattern verification failed');
  return child.stdout.text;
}

test('qemu-io writes, reads, zeroes and discards what it says', async () => {
  await using bed = new Bed();
  const disk = bed.disk();
  const server = await bed.serve(disk);
  await qemuIo(
    bed,
    server.socket,
    'write -P 90 0 1M',
    'read -P 90 0 1M',
    'write -z 4k 8k',
    'read -P 0 4k 8k',
    'read -P 90 12k 4k',
    'write -z -u 512 512',
    'read -P 0 512 512',
    'discard 64k 64k',
    'read -P 0 64k 64k',
    'write -P 17 -f 63M 1M',
    'flush',
    'writev -P 33 2M 512 1k 4k 64k',
    'readv -P 33 2M 64k 4k 1k 512',
    'aio_write -P 44 3M 256k',
    'aio_write -P 45 4M 256k',
    'aio_flush',
    'read -P 44 3M 256k',
    'read -P 45 4M 256k',
  );
  await bed.stop(server);
  const bytes = readFileSync(disk);
  expect(bytes[0]).toBe(90);
  expect(bytes.subarray(512, 1024).every((byte) => byte === 0)).toBe(true);
  expect(bytes.subarray(63 * mebibyte).every((byte) => byte === 17)).toBe(true);
}, 60_000);

test('qemu-img copies onto the disk and back, and finds both the same', async () => {
  await using bed = new Bed();
  const disk = bed.disk();
  const source = bed.disk();
  bed.fill(source, 24 * mebibyte);
  const server = await bed.serve(disk, { num_queues: 2 });
  const target = qemuDisk(server.socket);
  const img = client('qemu-img');
  await bed.run([img, 'convert', '-n', '-W', '-f', 'raw', '--target-image-opts', source, target]);
  const there = `json:{"driver":"raw","file":{"driver":"virtio-blk-vhost-user","path":"${server.socket}","cache":{"direct":true}}}`;
  await bed.run([img, 'compare', '-f', 'raw', '-F', 'raw', '-T', 'none', source, there]);
  const copy = bed.path('copy.raw');
  await bed.run([img, 'convert', '-T', 'none', '-O', 'raw', there, copy]);
  await bed.stop(server);
  await bed.run(['cmp', source, copy]);
  await bed.run(['cmp', source, disk]);
}, 90_000);

test('qemu-img bench ends at every depth, with flushes in between', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk());
  for (const depth of [1, 32, 64]) {
    const argv = ['bench', '-t', 'none', '-c', '4000', '-d', String(depth), '-s', '4096'];
    const target = ['--image-opts', qemuDisk(server.socket)];
    await bed.run([client('qemu-img'), ...argv, '-S', '1052672', ...target]);
    await bed.run([
      client('qemu-img'),
      ...argv,
      '-w',
      `--flush-interval=${Math.max(depth, 16)}`,
      ...target,
    ]);
  }
  await bed.stop(server);
}, 90_000);

test('blkio-info sees the size, the queues and the limits', async () => {
  await using bed = new Bed();
  const sizeBytes = 64 * mebibyte - 512;
  const disk = bed.disk({ sizeBytes });
  const server = await bed.serve(disk, { num_queues: 3, seg_size_max: 65536, seg_count_max: 64 });
  const names = ['capacity', 'max-queues', 'request-alignment', 'max-segments', 'max-segment-len'];
  names.push('max-discard-len', 'max-write-zeroes-len', 'max-mem-regions');
  const path = `path=${server.socket}`;
  const info = await bed.run([client('blkio-info'), 'virtio-blk-vhost-user', path, ...names]);
  const lines = info.stdout.text.trim().split('\n').map(Number);
  const seen = Object.fromEntries(names.map((name, i) => [name, lines[i]]));
  expect(seen.capacity).toBe(sizeBytes);
  expect(seen['max-queues']).toBe(3);
  expect(seen['request-alignment']).toBe(512);
  expect(seen['max-segments']).toBe(64);
  expect(seen['max-segment-len']).toBe(65536);
  expect(seen['max-discard-len']).toBeGreaterThan(0);
  expect(seen['max-write-zeroes-len']).toBeGreaterThan(0);
  expect(seen['max-mem-regions']).toBeGreaterThanOrEqual(32);
  await bed.stop(server);
}, 30_000);

test('blkio-copy reads the whole disk', async () => {
  await using bed = new Bed();
  const disk = bed.disk({ sizeBytes: 16 * mebibyte });
  bed.fill(disk, 16 * mebibyte, 7);
  const copy = bed.disk({ sizeBytes: 16 * mebibyte });
  const server = await bed.serve(disk);
  await bed.run([
    client('blkio-copy'),
    '--input-blkio=virtio-blk-vhost-user',
    `path=${server.socket}`,
    `--output-file=${copy}`,
  ]);
  await bed.stop(server);
  await bed.run(['cmp', disk, copy]);
}, 30_000);
