/** `ubiblk serve ublk` in a virtual machine, against a minimal server in C and the kernel's loop driver. */

import { execFileSync } from 'node:child_process';
import {
  closeSync,
  copyFileSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
} from 'node:fs';
import { join } from 'node:path';
import { binary, root, tool } from '../test/e2e/processes.ts';
import type { Figure } from './lazy.ts';
import { median } from './measure.ts';

/** Kernels of these Debian suites. */
const SUITES = ['trixie', 'sid'];

const ROWS = ['randread-4K-d32', 'randwrite-4K-d32', 'read-1M', 'write-1M'];

interface Pair {
  ours: string;
  other: string;
  words: string;
  /** None: it only tells what can be had. */
  atLeast?: { small: number; large: number };
}

/** Ours, what it is compared with, and how much of that it must reach. */
const PAIRS: readonly Pair[] = [
  {
    ours: 'null',
    other: 'ram',
    words: 'a minimal server in C',
    atLeast: { small: 0.7, large: 0.9 },
  },
  { ours: 'file', other: 'loop', words: 'loop with direct I/O', atLeast: { small: 1, large: 1 } },
  { ours: 'file', other: 'minimal', words: 'a minimal server in C' },
];

const MAX_CALLS = 0.2;

interface FioReport {
  jobs: { read: FioSide; write: FioSide }[];
}
interface FioSide {
  iops: number;
  total_ios: number;
}

function sides(file: string): FioSide[] {
  const [job] = (JSON.parse(readFileSync(file, 'utf8')) as FioReport).jobs;
  return [job.read, job.write];
}

function iops(file: string): number {
  return Math.max(...sides(file).map((side) => side.iops));
}

/** Measures on every kernel; takes some minutes for each. */
export function* ublkFigures(folder: string, runs: number, seconds: number): Generator<Figure> {
  for (const suite of SUITES) {
    const place = join(folder, `ublk-${suite}`);
    mkdirSync(place);
    runGuest(suite, place, runs, seconds);
    for (const { ours, other, words, atLeast } of PAIRS) {
      for (const row of ROWS) {
        const of = (server: string) =>
          median(
            Array.from({ length: runs }, (_, run) =>
              iops(join(place, `${server}.${row}.${run}.json`)),
            ),
          );
        const value = of(ours);
        yield {
          name: `ublk ${suite} ${ours} ${row.replaceAll('-', ' ')}`,
          value,
          unit: 'IOPS',
          against: words,
          ratio: value / of(other),
          ...(atLeast && { atLeast: row.includes('1M') ? atLeast.large : atLeast.small }),
        };
      }
      if (!atLeast) continue;
      const requests = Math.max(
        ...sides(join(place, `${ours}.calls.json`)).map((side) => side.total_ios),
      );
      yield {
        name: `ublk ${suite} ${ours}, system calls`,
        value: Number(readFileSync(join(place, `${ours}.calls`), 'utf8')) / requests,
        unit: 'a request',
        atMost: MAX_CALLS,
      };
    }
    rmSync(place, { recursive: true });
  }
}

function runGuest(suite: string, place: string, runs: number, seconds: number): void {
  const minimal = join(place, 'ublk-minimal');
  const source = join(root, 'test/tools/ublk-minimal.c');
  execFileSync('cc', ['-O2', '-o', minimal, source, '-luring', '-pthread']);
  const disk = join(place, 'disk.raw');
  const fd = openSync(disk, 'w', 0o600);
  ftruncateSync(fd, 1 << 30);
  closeSync(fd);
  const script = join(place, 'guest.sh');
  copyFileSync(join(root, 'bench/ublk_guest.sh'), script);
  const vm = ['--kernel', suite, '--share', place, '--disk', disk, '--timeout', '1800'];
  const guest = ['bash', script, binary, String(runs), String(seconds)];
  execFileSync(tool('vm-run'), [...vm, '--', ...guest], {
    cwd: place,
    stdio: ['ignore', 'ignore', 'inherit'],
  });
}
