/** Who uses a block device: file systems, other devices, swap, processes that have it open. */
import { closeSync, constants, openSync, readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { join } from 'node:path';
import { errorName } from '../../errors.ts';

export interface Holders {
  /** Where it, or a partition of it, is mounted. */
  mounts: string[];
  /** What else has it, each a phrase: `device dm-0`, `process 12 (dd)`. */
  others: string[];
}

/**
 * The device isn't opened: that could wait for its server, which may be gone.
 * @param root of /proc, /sys and /dev; another one for tests
 */
export function holdersOf(id: number, root = '/'): Holders {
  const disk = `ublkb${id}`;
  const devices = [disk, ...partitionsOf(disk, root)];
  const numbers = new Set(devices.map((name) => read(join(root, 'sys/class/block', name, 'dev'))));
  const mounts = mountsOf(numbers, root);
  const stacked = devices.flatMap((name) =>
    namesIn(join(root, 'sys/class/block', name, 'holders')).map((holder) => `device ${holder}`),
  );
  const paths = new Set(devices.map((name) => `/dev/${name}`));
  const loops = namesIn(join(root, 'sys/block'))
    .filter((name) => paths.has(read(join(root, 'sys/block', name, 'loop/backing_file'))))
    .map((name) => `device ${name}`);
  const swaps = linesOf(join(root, 'proc/swaps'))
    .map((line) => line.split(/\s+/)[0])
    .filter((path) => paths.has(path))
    .map((path) => `swap on ${path}`);
  const processes = processesWith(paths, root);
  return { mounts, others: [...stacked, ...loops, ...swaps, ...processes] };
}

/**
 * Also a file system that is mounted nowhere any more and still has data to write: its device may not be
 * removed before it is done. Opens the device, so it must have a server.
 */
export function holdersOfLive(id: number, root = '/'): Holders {
  const holders = holdersOf(id, root);
  if (describeHolders(holders) !== '' || !isClaimed(join(root, 'dev', `ublkb${id}`)))
    return holders;
  return { mounts: [], others: ['the kernel, which has not finished to unmount it'] };
}

/** Whether somebody has a block device, or a part of it, for itself alone, as file systems do. */
function isClaimed(path: string): boolean {
  try {
    closeSync(openSync(path, constants.O_RDONLY | constants.O_EXCL));
    return false;
  } catch (error) {
    return errorName(error) === 'EBUSY';
  }
}

/** One phrase for all, empty where nobody holds the device. */
export function describeHolders({ mounts, others }: Holders): string {
  return [...mounts.map((path) => `mounted on '${path}'`), ...others].join(', ');
}

/** Where devices of these numbers are mounted, in the name spaces of all processes that can be seen. */
function mountsOf(numbers: ReadonlySet<string>, root: string): string[] {
  const proc = join(root, 'proc');
  const seen = new Set<string>();
  const found = new Set<string>();
  for (const pid of ['self', ...namesIn(proc).filter((name) => /^\d+$/.test(name))]) {
    const space = link(join(proc, pid, 'ns/mnt'));
    if (seen.has(space) && space !== '') continue;
    seen.add(space);
    for (const line of linesOf(join(proc, pid, 'mountinfo'))) {
      const fields = line.split(' ');
      if (numbers.has(fields[2])) found.add(unescaped(fields[4]));
    }
  }
  return [...found];
}

function partitionsOf(disk: string, root: string): string[] {
  return namesIn(join(root, 'sys/class/block', disk)).filter((name) => name.startsWith(disk));
}

function processesWith(paths: ReadonlySet<string>, root: string): string[] {
  const proc = join(root, 'proc');
  return namesIn(proc)
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .sort((a, b) => Number(a) - Number(b))
    .filter((pid) =>
      namesIn(join(proc, pid, 'fd')).some((fd) => paths.has(link(join(proc, pid, 'fd', fd)))),
    )
    .map((pid) => `process ${pid} (${read(join(proc, pid, 'comm'))})`);
}

function link(path: string): string {
  try {
    return readlinkSync(path);
  } catch {
    return '';
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
