/** One measurement: a client's load, the server's CPU time meanwhile, and its memory. */

import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, readFileSync, readSync, rmSync } from 'node:fs';
import { totalmem } from 'node:os';
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
 * Fills free memory with page cache, of a file that has nothing on the disk. A virtual machine may have given free
 * memory back, and waits for its host when it uses it again: whoever came first would pay for those who come later.
 * What the page cache has is there, and can be had at once.
 */
export class PageCacheFiller {
  private readonly fd: number;
  private readonly part = Buffer.alloc(4 << 20);
  private offset = 0;

  /** @param path of the file, which is there until `close` */
  constructor(private readonly path: string) {
    this.fd = openSync(path, 'wx+', 0o600);
  }

  fill(): void {
    // As much as the kernel likes to have free.
    const enough = totalmem() / 32;
    // What was read before may be in memory still.
    const end = this.offset + totalmem();
    ftruncateSync(this.fd, end);
    while (this.offset < end && freeBytes() > enough) {
      this.offset += readSync(this.fd, this.part, 0, this.part.length, this.offset);
    }
  }

  close(): void {
    closeSync(this.fd);
    rmSync(this.path);
  }
}

function freeBytes(): number {
  return Number(/^MemFree:\s+(\d+) kB/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1]) * 1024;
}

/** What factors are on average. */
export function geometricMean(values: number[]): number {
  return Math.exp(values.reduce((sum, value) => sum + Math.log(value), 0) / values.length);
}

/** Puts what runs of writes left in the page cache onto the disk, whatever file they wrote to: the next starts alike. */
export function settle(file: string): void {
  execFileSync('sync', ['-f', file]);
}

export function median(values: number[]): number {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
