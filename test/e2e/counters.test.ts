/** What a server has counted against what its clients say that they did. */
import { expect } from 'bun:test';
import { ended, lazyDisk, qemuIo, type Status, statusNow, statusWhen } from './lazy.ts';
import { client, keyValues } from './processes.ts';
import { ask } from './rpc.ts';
import { Bed, matrix, seed, testWith } from './support.ts';

const MIB = 1 << 20;

interface Stats {
  queues: Record<string, number>[];
  latency_us: Record<string, { count: number; max: number; buckets: [number, number][] }>;
}

/** vhost-check's own report. */
function told(text: string): Record<string, number> {
  const bytes = text.match(/: (\d+) reads, bytes: (\d+) r, (\d+) w, (\d+) z, (\d+) d\n/);
  const counts = text.match(/\((\d+) r, (\d+) w, (\d+) u, (\d+) z, (\d+) d, (\d+) f\)/);
  if (!bytes || !counts) throw new Error(`no report: ${text}`);
  const [reads, read, written, zeroed, discarded] = bytes.slice(1).map(Number);
  const [, w, u, z, d, f] = counts.slice(1).map(Number);
  return {
    read_ops: reads,
    bytes_read: read,
    write_ops: w + u,
    bytes_written: written,
    write_zeroes_ops: z,
    bytes_zeroed: zeroed,
    discard_ops: d,
    bytes_discarded: discarded,
    flush_ops: f,
  };
}

function sums({ queues }: Stats): Record<string, number> {
  const all: Record<string, number> = {};
  for (const queue of queues) {
    for (const [key, value] of Object.entries(queue)) {
      if (/_ops$|^bytes_/.test(key)) all[key] = (all[key] ?? 0) + value;
    }
  }
  return all;
}

const rows = matrix({
  io_engine: ['io_uring', 'sync'],
  direct_io: [true, false],
  write_through: [false, true],
  encrypted: [false, true],
  num_queues: [1, 3],
} as const);

for (const { encrypted, ...settings } of rows) {
  const name = Object.entries({ encrypted, ...settings })
    .map(([key, value]) => `${key}=${value}`)
    .join(' ');
  testWith(
    `counters agree exactly with what the client did: ${name}`,
    [],
    async () => {
      await using bed = new Bed();
      const rpc = bed.path('rpc.sock');
      const queues = settings.num_queues;
      const disk = bed.disk({ encrypted });
      const server = await bed.serve(disk, { ...settings, rpc_socket_path: rpc });
      const load = { queues, depth: 32, ops: 3000, seed, mix: 'rrrwwwwzdf' };
      const total: Record<string, number> = {};
      // Counters survive that a frontend goes and another one comes.
      for (let round = 0; round < 2; round++) {
        const user = await bed.run([client('vhost-check'), server.socket, ...keyValues(load)]);
        for (const [key, value] of Object.entries(told(user.stdout.text))) {
          total[key] = (total[key] ?? 0) + value;
        }
        const { stats } = (await ask(rpc, 'stats')) as { stats: Stats };
        expect(stats.queues.length).toBe(queues);
        expect(sums(stats)).toEqual(total);
        const { read, write, flush } = stats.latency_us;
        expect(read.count).toBe(total.read_ops);
        expect(write.count).toBe(total.write_ops);
        expect(flush.count).toBe(total.flush_ops);
        expect(read.buckets.reduce((sum, [, count]) => sum + count, 0)).toBe(read.count);
        expect(read.max).toBeGreaterThan(0);
        for (const { in_flight, oldest_ms, refused } of stats.queues) {
          expect([in_flight, oldest_ms, refused]).toEqual([0, 0, 0]);
        }
      }
      await bed.stop(server);
    },
    60_000,
  );
}

testWith(
  'what stripes came from is told in bytes: fetched, holes, and read from the image meanwhile',
  [],
  async () => {
    await using bed = new Bed();
    const options = { shift: 9, sizeBytes: 8 * MIB, imageBytes: 4 * MIB };
    const lazy = await lazyDisk(bed, options);
    // A hole of two stripes of 256 KiB.
    const hole = ['fallocate', '--punch-hole', '--offset', '1M', '--length', '512K', lazy.image];
    await bed.run(hole);
    const server = await bed.serve(lazy.disk, lazy.settings);
    await ended(qemuIo(bed, server, 'read 0 64k', 'read 3M 128k', 'read 6M 64k'));
    const before = await statusNow(server, lazy.rpc);
    expect(before.source).toMatchObject({ stripes: 0, bytes_read: 0, in_use: true, failures: 0 });
    // QEMU looks at the first sectors of a disk by itself.
    expect(before.source?.bytes_from_image).toBeGreaterThanOrEqual(192 << 10);
    expect(before.source?.bytes_from_image).toBeLessThan(256 << 10);
    expect(before.source?.description).toContain(lazy.image);
    expect(before.source?.connections).toBeNull();
    expect(await ask(lazy.rpc, 'resume_autofetch')).toEqual({ autofetch: true });
    const all = ({ stripes }: Status) => stripes.fetched === stripes.source;
    const { source } = await statusWhen(server, lazy.rpc, all);
    const { bytes_read = 0, bytes_shared = 0, bytes_zero = 0 } = source ?? {};
    expect(bytes_read + bytes_shared + bytes_zero).toBe(4 * MIB);
    expect(bytes_shared > 0 ? 0 : bytes_zero).toBe(bytes_shared > 0 ? 0 : 512 << 10);
    expect(source).toMatchObject({ stripes: 16, in_use: false });
    await bed.stop(server);
  },
  60_000,
);
