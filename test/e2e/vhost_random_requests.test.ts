/**
 * Random reads, writes, write-zeroes, discards and flushes from libblkio, every byte compared while
 * they run, and the disk itself compared once the server has ended.
 */

import { test } from 'bun:test';
import { Bed, matrix, need, seed, testWith } from './support.ts';

const rows = matrix({
  io_engine: ['io_uring', 'sync'],
  direct_io: [true, false],
  write_through: [false, true],
  encrypted: [false, true],
  kind: ['ext4', 'tmpfs', 'loop512', 'loop4096'],
  queues: [1, 4],
  depth: [1, 8, 32, 128],
  max: [4096, 131072, 1048576],
} as const);

for (const [index, row] of rows.entries()) {
  const { kind, encrypted, queues, depth, max, ...settings } = row;
  const name = `random requests: ${Object.entries(row)
    .map(([key, value]) => `${key}=${value}`)
    .join(' ')}`;
  testWith(
    name,
    [kind.startsWith('loop') && need.loop(), kind === 'ext4' && need.diskFolder()],
    async () => {
      await using bed = new Bed();
      const disk = bed.disk({ kind, encrypted, sizeBytes: 64 << 20 });
      const server = await bed.serve(disk, { ...settings, num_queues: queues });
      const state = bed.path('state');
      const span = Math.min(32 << 20, max * 2048);
      // At depth 1 every synced write waits for the disk alone.
      const ops = depth === 1 ? 1000 : max > 131072 ? 2000 : 5000;
      const load = { queues, depth, max, span, state, zero: 1, mix: 'rrrrwwwwzdfu' };
      await bed.check(server.socket, { ...load, ops, seed: (seed + index) % 100_000 });
      // A second client finds what the first one left.
      await bed.check(server.socket, { ...load, ops: 200, depth: 4, seed: index + 1 });
      await bed.stop(server);
      await bed.compareFile(disk, state, { span });
    },
    90_000,
  );
}

test('random requests: an offset at the end of a disk beyond 4 GiB', async () => {
  await using bed = new Bed();
  const sizeBytes = 5 * 2 ** 30 + 512 * 7;
  const disk = bed.disk({ sizeBytes });
  const server = await bed.serve(disk);
  const span = 8 << 20;
  // The last sectors of the disk, and a span that crosses 4 GiB.
  for (const offset of [sizeBytes - span, 2 ** 32 - span / 2]) {
    await bed.check(server.socket, { offset, span, ops: 2000, depth: 32, zero: 1, seed });
  }
  await bed.stop(server);
}, 60_000);

test('random requests: 64 queues, the most there can be', async () => {
  await using bed = new Bed();
  const disk = bed.disk();
  const server = await bed.serve(disk, { num_queues: 64 });
  const state = bed.path('state');
  const load = { queues: 64, depth: 128, span: 32 << 20, state, zero: 1 };
  await bed.check(server.socket, { ...load, ops: 20_000, seed });
  await bed.stop(server);
  await bed.compareFile(disk, state, { span: load.span });
}, 60_000);
