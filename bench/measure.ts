/** One measurement: a client's load, the server's CPU time meanwhile, and its memory. */

import {
  closeSync,
  fdatasyncSync,
  openSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeSync,
} from 'node:fs';
import { freemem } from 'node:os';
import { Child, client, hostProgram } from '../test/e2e/processes.ts';
import type { Row } from './rows.ts';
import type { RunningServer } from './servers.ts';

export interface Sample {
  iops: number;
  /** Mean over all requests. */
  latencyUs: number;
  /** The server's CPU time, user and system, for one request. */
  cpuUs: number;
}

/** The unit of CPU times in /proc/PID/stat, which count threads that have ended too. */
const tickUs = 10_000;

/** Seconds of processor time that a process has used. */
export function cpuSeconds(pid: number): number {
  return (cpuTicks(pid) * tickUs) / 1e6;
}

function cpuTicks(pid: number): number {
  const stat = readFileSync(`/proc/${pid}/stat`, 'utf8');
  // The name in parentheses may hold blanks: fields are counted from behind it.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
  return Number(fields[11]) + Number(fields[12]);
}

/** Resident memory in bytes. */
export function residentBytes(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, 'utf8');
  return Number(status.match(/^VmRSS:\s*(\d+) kB/m)?.[1] ?? 0) * 1024;
}

async function finish(child: Child, deadlineMs: number): Promise<string> {
  try {
    const status = await child.exit(deadlineMs);
    if (status !== 0) throw new Error(`exit ${status}: ${child.report()}`);
    return child.stdout.text;
  } finally {
    await child.destroy(false);
  }
}

/** A client had no answer from a server, or the server had ended. */
export class ClientFailure extends Error {
  constructor(
    readonly server: string,
    message: string,
  ) {
    super(message);
  }
}

/** Runs libblkio's benchmark against a server. @throws ClientFailure */
export async function measure(server: RunningServer, row: Row, seconds: number): Promise<Sample> {
  const { name, child } = server;
  if (!child.running) throw new ClientFailure(name, `${name} has ended: ${child.report()}`);
  const argv = [client('blkio-bench'), `--num-threads=${row.queues}`, `--iodepth=${row.depth}`];
  argv.push(`--readwrite=${row.access}`, `--blocksize=${row.blockBytes}`, `--runtime=${seconds}`);
  if (row.poll) argv.push('--poll');
  const before = cpuTicks(child.pid);
  const load = new Child([...argv, 'virtio-blk-vhost-user', `path=${server.socket}`]);
  const text = await finish(load, seconds * 1000 + 20_000).catch((error) => {
    throw new ClientFailure(name, `${name} under ${row.name}: ${(error as Error).message}`);
  });
  const ticks = cpuTicks(child.pid) - before;
  const { kiops, mean_lat_us } = JSON.parse(text).aggregate;
  const iops = kiops * 1000;
  return { iops, latencyUs: mean_lat_us, cpuUs: (ticks * tickUs) / (iops * seconds) };
}

/** Runs fio with io_uring on the file itself: what no server can be faster than by much. */
export async function measureFile(
  file: string,
  sizeBytes: number,
  row: Row,
  seconds: number,
): Promise<number | undefined> {
  const fio = hostProgram('fio');
  if (!fio || row.place === 'null') return undefined;
  const text = await finish(
    new Child([
      fio,
      '--name=limit',
      `--filename=${file}`,
      `--size=${sizeBytes}`,
      '--ioengine=io_uring',
      '--registerfiles=1',
      `--direct=${row.place === 'direct' ? 1 : 0}`,
      // It empties the page cache otherwise.
      '--invalidate=0',
      `--rw=${row.access}`,
      `--bs=${row.blockBytes}`,
      `--iodepth=${row.depth}`,
      `--numjobs=${row.queues}`,
      '--group_reporting',
      '--norandommap',
      '--time_based',
      `--runtime=${seconds}`,
      '--output-format=json',
    ]),
    seconds * 1000 + 20_000,
  );
  const [job] = JSON.parse(text.slice(text.indexOf('{'))).jobs;
  return row.access.endsWith('write') ? job.write.iops : job.read.iops;
}

/**
 * Has so many bytes of free memory there, as far as half of it goes: a virtual machine may have to wait for its host
 * when it uses pages that it has not used lately, and whoever comes first would pay for those who come later.
 */
export function populateMemory(bytes: number): void {
  const path = `/dev/shm/ubiblk-bench-${process.pid}`;
  const { bavail, bsize } = statfsSync('/dev/shm');
  const wanted = Math.min(bytes, freemem() / 2, (bavail * bsize) / 2);
  const fd = openSync(path, 'wx', 0o600);
  try {
    const part = Buffer.alloc(1 << 20);
    for (let done = 0; done < wanted; done += part.length) writeSync(fd, part);
  } finally {
    closeSync(fd);
    rmSync(path, { force: true });
  }
}

/** What factors are on average. */
export function geometricMean(values: number[]): number {
  return Math.exp(values.reduce((sum, value) => sum + Math.log(value), 0) / values.length);
}

/** Puts what a run of writes left in the page cache onto the disk, so that the next run starts alike. */
export function settle(file: string): void {
  const fd = openSync(file, 'r+');
  fdatasyncSync(fd);
  closeSync(fd);
}

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
