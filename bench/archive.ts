/** Archives in a folder against the tools that do parts of the same work, in turns. */

import { execFileSync, spawnSync } from 'node:child_process';
import {
  closeSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { binary, hostProgram } from '../test/e2e/processes.ts';
import type { Figure } from './lazy.ts';
import { median } from './measure.ts';
import { writeConfig } from './servers.ts';

/** Each is timed until what it wrote is on the disk. */
const DURABLE = 'sync -f .';
/** What runs before have left. */
const SPENT = 'spent';

/** Fills a file with this host's programs, which compress as systems do. */
export function makeImage(path: string, sizeBytes: number): void {
  const fd = openSync(path, 'w', 0o600);
  const folders = ['/usr/bin', '/usr/lib/x86_64-linux-gnu', '/usr/sbin'];
  let at = 0;
  while (at < sizeBytes) {
    const before = at;
    for (const file of folders.flatMap(filesOf)) {
      if (at >= sizeBytes) break;
      const bytes = readFileSync(file);
      // Another start each time round: no two stripes are equal.
      bytes[0] ^= at & 255;
      at += writeSync(fd, bytes, 0, Math.min(bytes.length, sizeBytes - at), at);
      at += 512 - (at % 512 || 512);
    }
    if (at === before) throw new Error('this host has no programs to make an image of');
  }
  closeSync(fd);
}

function filesOf(folder: string): string[] {
  try {
    return readdirSync(folder)
      .map((name) => join(folder, name))
      .filter((path) => statSync(path, { throwIfNoEntry: false })?.isFile());
  } catch {
    return [];
  }
}

/** Seconds that a script takes in a folder. */
function seconds(folder: string, script: string): number {
  const start = performance.now();
  const done = spawnSync('bash', ['-c', `set -e; ${script}; ${DURABLE}`], { cwd: folder });
  if (done.status !== 0) throw new Error(`${script}: ${done.stderr}`);
  return (performance.now() - start) / 1000;
}

/**
 * Takes away what a run before has made. Of its files empty ones stay: ext4 passes over inodes that were
 * freed a while ago, and would do so a thousand times for each file of the next archive.
 */
function takeAway(folder: string, made: string): void {
  const move = `mkdir -p ${SPENT}; if [[ -e ${made} ]]; then mv ${made} "$(mktemp -d -p ${SPENT})"; fi`;
  seconds(folder, `${move}; find ${SPENT} -type f -size +0 -exec truncate -s 0 {} +`);
}

interface Comparison {
  name: string;
  ours: string;
  /** What the peer is, and does. */
  against: string;
  peer: string;
  /** What each of them makes: ours, and the peer. */
  made: [string, string];
  atLeast: number;
}

/**
 * @param image in the page cache
 * @param runs of each side, in turns: ratios are medians of those of neighbours
 */
export function* archiveFigures(
  folder: string,
  image: string,
  sizeBytes: number,
  runs: number,
): Generator<Figure> {
  if (!hostProgram('zstd')) throw new Error("'zstd' is not installed: run scripts/setup");
  const config = writeConfig(folder, { path: image });
  const target = join(folder, 'target.yaml');
  execFileSync('sh', ['-c', `printf 'type: filesystem\\npath: archive\\n' > '${target}'`]);
  const options = `--target-config '${target}' --quiet`;
  const create = `'${binary}' archive --config '${config}' ${options}`;
  const plaintext = '--allow-plaintext-keys';
  const zstd = `--format 2 --compression zstd ${plaintext}`;
  const compress = `zstd -q -3 -T2 '${image}' -o peer.zst`;
  const comparisons: Comparison[] = [
    {
      name: 'archive zstd level 3',
      ours: `${create} ${zstd}`,
      against: 'zstd -3 -T2',
      peer: compress,
      made: ['archive', 'peer.zst'],
      atLeast: 0.9,
    },
    {
      name: 'archive zstd level 3, encrypted',
      ours: `${create} ${zstd} --encrypt`,
      against: 'zstd -3 -T2',
      peer: compress,
      made: ['archive', 'peer.zst'],
      atLeast: 0.75,
    },
    {
      name: 'archive export of zstd, encrypted',
      ours: `'${binary}' archive export ${options} out.raw`,
      against: 'zstd -d',
      peer: 'zstd -q -d peer.zst -o peer.raw',
      made: ['out.raw', 'peer.raw'],
      atLeast: 1,
    },
    {
      name: 'archive as it is',
      ours: create,
      against: 'cp beside sha256sum',
      peer: `sha256sum '${image}' > sum & cp '${image}' peer.raw; wait`,
      made: ['archive', 'peer.raw'],
      atLeast: 0.7,
    },
  ];
  for (const comparison of comparisons) yield compare(folder, comparison, sizeBytes, runs);
  for (const name of ['archive', 'out.raw', 'peer.raw', 'peer.zst', 'sum', SPENT]) {
    rmSync(join(folder, name), { recursive: true, force: true });
  }
  yield memory(folder, `${create} ${zstd}`);
}

function compare(
  folder: string,
  { name, ours, against, peer, made, atLeast }: Comparison,
  sizeBytes: number,
  runs: number,
): Figure {
  const rates: number[] = [];
  const ratios: number[] = [];
  for (let run = 0; run < runs; run++) {
    takeAway(folder, made[1]);
    const theirs = seconds(folder, peer);
    takeAway(folder, made[0]);
    const own = seconds(folder, ours);
    rates.push(sizeBytes / own / 1e6);
    ratios.push(theirs / own);
  }
  return { name, value: median(rates), unit: 'MB/s', against, ratio: median(ratios), atLeast };
}

/** The most memory that a run had at a time, as the kernel noted it. */
function memory(folder: string, script: string): Figure {
  const report = join(folder, 'memory');
  const watch = `while grep VmHWM /proc/$!/status > now 2> /dev/null && [[ -s now ]]; do mv now '${report}'; done`;
  seconds(folder, `${script} & ${watch}; wait $!`);
  const kib = Number(/(\d+) kB/.exec(readFileSync(report, 'utf8'))?.[1]);
  return { name: 'archive memory', value: kib / 1024, unit: 'MB', atMost: 300 };
}
