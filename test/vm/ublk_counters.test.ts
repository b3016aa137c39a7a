/** What a ublk server has counted against fio's own report, in a virtual machine. */
import { expect } from 'bun:test';
import { readFileSync, writeFileSync } from 'node:fs';
import { binary } from '../e2e/processes.ts';
import { Bed, need, quote, testWith } from '../e2e/support.ts';
import { runInGuest } from './ublk.ts';

interface Queue {
  bytes_read: number;
  bytes_written: number;
  read_ops: number;
  write_ops: number;
  flush_ops: number;
  refused: number;
  in_flight: number;
  errors: Record<string, number>;
}

interface Stats {
  queues: Queue[];
  latency_us: Record<string, { count: number; max: number }>;
}

const rows = [
  { kernel: 'trixie', ublk_mode: 'copy', io_engine: 'io_uring', num_queues: 1 },
  { kernel: 'trixie', ublk_mode: 'user_copy', io_engine: 'sync', num_queues: 2 },
  { kernel: 'sid', ublk_mode: 'zero_copy', io_engine: 'io_uring', num_queues: 2 },
] as const;

for (const { kernel, ...row } of rows) {
  const name = [kernel, ...Object.values(row)].join(' ');
  testWith(
    `counters agree exactly with fio's report: ${name} queues`,
    [need.program('fio')],
    async () => {
      await using bed = new Bed();
      const told = { rpc_socket_path: '/tmp/rpc.sock', metrics_listen: '127.0.0.1:9731' };
      const settings = { path: '/tmp/disk.raw', ...told, ...row };
      bed.config({ ...settings, direct_io: false, queue_size: 64 }, 'disk.yaml');
      writeFileSync(bed.path('job.fio'), job);
      const rpc = `${quote(binary)} rpc /tmp/rpc.sock --json`;
      await runInGuest(
        bed,
        { seconds: 100, kernel },
        `truncate -s 64M /tmp/disk.raw
        serve disk.yaml
        ${rpc} stats > before.json
        step fio
        fio --filename=$device --output-format=json --output=fio.json job.fio
        ${rpc} stats > after.json
        step metrics
        exec 3<> /dev/tcp/127.0.0.1/9731
        printf 'GET /metrics HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' >&3
        cat <&3 > metrics
        exec 3>&-
        ${rpc} status > status.json
        step shutdown
        ${rpc} shutdown
        wait $server
        test ! -e $device`,
      );
      const read = (file: string) => JSON.parse(readFileSync(bed.path(file), 'utf8'));
      const [before, after] = ['before.json', 'after.json'].map((f) => read(f).stats as Stats);
      expect(after.queues.length).toBe(row.num_queues);
      const grown = (key: keyof Queue) => sum(after, key) - sum(before, key);
      const { jobs } = read('fio.json');
      const total = (of: (job: FioJob) => number) =>
        jobs.reduce((all: number, each: FioJob) => all + of(each), 0);
      expect(grown('read_ops')).toBe(total(({ read }) => read.total_ios));
      expect(grown('bytes_read')).toBe(total(({ read }) => read.io_bytes));
      expect(grown('write_ops')).toBe(total(({ write }) => write.total_ios));
      expect(grown('bytes_written')).toBe(total(({ write }) => write.io_bytes));
      expect(grown('flush_ops')).toBeGreaterThanOrEqual(total(({ sync }) => sync.total_ios));
      expect(sum(after, 'read_ops')).toBe(after.latency_us.read.count);
      expect(sum(after, 'write_ops')).toBe(after.latency_us.write.count);
      expect(after.latency_us.write.max).toBeGreaterThan(0);
      expect(sum(after, 'refused') + sum(after, 'in_flight')).toBe(0);
      const metrics = readFileSync(bed.path('metrics'), 'utf8');
      for (const [op, ops, bytes] of [
        ['read', 'read_ops', 'bytes_read'],
        ['write', 'write_ops', 'bytes_written'],
      ] as const) {
        expect(metric(metrics, 'requests', op)).toBe(sum(after, ops));
        expect(metric(metrics, 'request_bytes', op)).toBe(sum(after, bytes));
      }
      expect(metrics).toContain('\nubiblk_frontend_connected 1\n');
      expect(metrics).toMatch(
        /^ubiblk_device_info\{.*frontend="ublk".*block_device="\/dev\/ublkb/m,
      );
      const { device, status } = read('status.json');
      expect(status).toBeNull();
      expect(device).toMatchObject({ frontend: 'ublk', connected: true, cache: 'writeback' });
      expect(device.block_device).toMatch(/^\/dev\/ublkb\d+$/);
    },
    240_000,
  );
}

interface FioJob {
  read: { total_ios: number; io_bytes: number };
  write: { total_ios: number; io_bytes: number };
  sync: { total_ios: number };
}

function sum({ queues }: Stats, key: keyof Queue): number {
  return queues.reduce((all, queue) => all + (queue[key] as number), 0);
}

/** The sum of a counter over all queues. */
function metric(text: string, name: string, op: string): number {
  const samples = [
    ...text.matchAll(new RegExp(`^ubiblk_${name}_total\\{.*op="${op}"\\} (.+)$`, 'gm')),
  ];
  expect(samples.length).toBeGreaterThan(0);
  return samples.reduce((all, [, value]) => all + Number(value), 0);
}

// Nothing that the block layer would cut up or put together.
const job = `[global]
direct=1
ioengine=io_uring
iodepth=16
size=32M
[mixed]
rw=randrw
bsrange=4k-64k
number_ios=1500
[syncs]
stonewall
rw=randwrite
bs=4k
iodepth=1
ioengine=psync
number_ios=200
fdatasync=4
`;
