/** Who uses a block device: file systems, other devices, swap, processes that have it open. */
import { closeSync, constants, openSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { errorName } from '../../errors.ts';
import { blockPath } from './protocol.ts';

export interface Holders {
  /** Where it, or a partition of it, is mounted. */
  mounts: string[];
  /** What else has it, each a phrase: `device dm-0`, `process 12 (dd)`. */
  others: string[];
}

/** @param root of /proc, /sys and /dev; another one for tests */
export function holdersOf(id: number, root = '/'): Holders {
  const disk = `ublkb${id}`;
  const devices = [disk, ...partitionsOf(disk, root)];
  const numbers = new Set(devices.map((name) => read(join(root, 'sys/class/block', name, 'dev'))));
  const mounts = linesOf(join(root, 'proc/self/mountinfo'))
    .map((line) => line.split(' '))
    .filter((fields) => numbers.has(fields[2]))
    .map((fields) => unescaped(fields[4]));
  const stacked = devices.flatMap((name) =>
    namesIn(join(root, 'sys/class/block', name, 'holders')).map((holder) => `device ${holder}`),
  );
  const paths = new Set(devices.map((name) => `/dev/${name}`));
  const swaps = linesOf(join(root, 'proc/swaps'))
    .map((line) => line.split(/\s+/)[0])
    .filter((path) => paths.has(path))
    .map((path) => `swap on ${path}`);
  const processes = processesWith(paths, root);
  const others = [...stacked, ...swaps, ...processes];
  if (mounts.length + others.length === 0 && isClaimed(join(root, blockPath(id)))) {
    others.push('somebody whom this process cannot see');
  }
  return { mounts, others };
}

/** One phrase for all, empty where nobody holds the device. */
export function describeHolders({ mounts, others }: Holders): string {
  return [...mounts.map((path) => `mounted on '${path}'`), ...others].join(', ');
}

function partitionsOf(disk: string, root: string): string[] {
  return namesIn(join(root, 'sys/class/block', disk)).filter((name) => name.startsWith(disk));
}

function processesWith(paths: ReadonlySet<string>, root: string): string[] {
  const proc = join(root, 'proc');
  return namesIn(proc)
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .sort((a, b) => Number(a) - Number(b))
    .filter((pid) => namesIn(join(proc, pid, 'fd')).some((fd) => paths.has(link(proc, pid, fd))))
    .map((pid) => `process ${pid} (${read(join(proc, pid, 'comm'))})`);
}

function link(proc: string, pid: string, fd: string): string {
  try {
    return readlinkSync(join(proc, pid, 'fd', fd));
  } catch {
    return '';
  }
}

/** A mounted device can't be opened exclusively (open(2), O_EXCL). */
function isClaimed(path: string): boolean {
  try {
    closeSync(openSync(path, constants.O_RDONLY | constants.O_EXCL));
    return false;
  } catch (error) {
    return errorName(error) === 'EBUSY';
  }
}

/** mountinfo has blanks and the like as octal numbers (proc(5)). */
function unescaped(text: string): string {
  return text.replace(/\\([0-7]{3})/g, (_, octal) =>
    String.fromCharCode(Number.parseInt(octal, 8)),
  );
}

function linesOf(path: string): string[] {
  return read(path).split('\n').filter(Boolean);
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim();
  } catch {
    return '';
  }
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}
