/** What laziness costs: autofetch against cp, an unfetched stripe against its image, a start of millions. */

import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, readdirSync, readlinkSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { binary, client } from '../test/e2e/processes.ts';
import { geometricMean, median, PageCacheFiller, residentBytes } from './measure.ts';
import { type RunningServer, startWith, stop, writeConfig } from './servers.ts';

const mebibyte = 1 << 20;
/** Seconds until an image must be copied. */
const DEADLINE_S = 300;

export interface Figure {
  name: string;
  value: number;
  unit: string;
  /** What it is compared with, in words. */
  against?: string;
  ratio?: number;
  atLeast?: number;
  atMost?: number;
}

interface Lazy {
  disk: string;
  settings: Record<string, unknown>;
}

function empty(path: string, sizeBytes: number): string {
  const fd = openSync(path, 'w', 0o600);
  ftruncateSync(fd, sizeBytes);
  closeSync(fd);
  return path;
}

/** A new disk over an image, with 1 MiB stripes. */
function lazyDisk(folder: string, image: string, sizeBytes: number, direct: boolean): Lazy {
  const disk = empty(join(folder, 'lazy.raw'), sizeBytes);
  const metadata = join(folder, 'lazy.meta');
  rmSync(metadata, { force: true });
  const settings = {
    metadata_path: metadata,
    stripe_source: { source: 'raw', path: image },
    copy_on_read: true,
    direct_io: direct,
  };
  init(folder, { path: disk, ...settings });
  return { disk, settings };
}

/** Makes the metadata that a configuration names. */
export function init(folder: string, settings: Record<string, unknown>): void {
  const config = writeConfig(folder, settings);
  execFileSync(binary, ['metadata', 'init', '--config', config], { stdio: 'ignore' });
}

function isOpen(server: RunningServer, path: string): boolean {
  const folder = `/proc/${server.child.pid}/fd`;
  return readdirSync(folder).some((fd) => {
    try {
      return readlinkSync(join(folder, fd)) === path;
    } catch {
      return false;
    }
  });
}

/** Seconds from the start of a server until it has copied all of an image and let go of it. */
async function autofetchSeconds(
  folder: string,
  image: string,
  sizeBytes: number,
  direct: boolean,
): Promise<number> {
  const { disk, settings } = lazyDisk(folder, image, sizeBytes, direct);
  const from = performance.now();
  const server = await startWith(folder, { path: disk, ...settings, autofetch: true });
  try {
    while (isOpen(server, image)) {
      if (performance.now() - from > DEADLINE_S * 1000) throw new Error('autofetch takes too long');
      await Bun.sleep(5);
    }
    return (performance.now() - from) / 1000;
  } finally {
    await stop(server);
    rmSync(disk);
  }
}

/** Seconds of a copy with the same use of the page cache, to stable storage. */
function copySeconds(folder: string, image: string, direct: boolean): number {
  const copy = join(folder, 'copy.raw');
  const from = performance.now();
  if (direct) {
    const flags = ['bs=1M', 'iflag=direct', 'oflag=direct', 'conv=fdatasync'];
    execFileSync('dd', [`if=${image}`, `of=${copy}`, ...flags], { stdio: 'ignore' });
  } else {
    execFileSync('cp', ['--reflink=never', '--sparse=never', image, copy]);
    execFileSync('sync', ['-d', copy]);
  }
  const seconds = (performance.now() - from) / 1000;
  rmSync(copy);
  return seconds;
}

/** Autofetch in MiB a second, as a part of what a copy does. */
export async function autofetchFigures(
  folder: string,
  image: string,
  sizeBytes: number,
  runs: number,
): Promise<Figure[]> {
  const figures: Figure[] = [];
  const filler = new PageCacheFiller(join(folder, 'holes.raw'));
  for (const direct of [false, true]) {
    const ours: number[] = [];
    const copies: number[] = [];
    const sides = [
      async () => ours.push(await autofetchSeconds(folder, image, sizeBytes, direct)),
      async () => copies.push(copySeconds(folder, image, direct)),
    ];
    // Each comes second as often as the other: that one finds a disk with less in hand, often half as fast.
    for (let run = 0; run < 2 * Math.ceil(runs / 2); run++) {
      for (const side of run % 2 ? sides.toReversed() : sides) {
        // What the one before has left to do, such as discards of the file that was removed.
        execFileSync('sync');
        filler.fill();
        execFileSync('cat', [image], { stdio: 'ignore' });
        await side();
      }
    }
    const rate = (seconds: number) => sizeBytes / mebibyte / seconds;
    figures.push({
      name: `lazy autofetch, ${direct ? 'direct' : 'cached'}`,
      value: rate(median(ours)),
      unit: 'MiB/s',
      against: `${rate(median(copies)).toFixed(0)} MiB/s of ${direct ? 'dd' : 'cp'}`,
      ratio: geometricMean(copies.map((seconds, run) => seconds / ours[run])),
      atLeast: 0.9,
    });
  }
  filler.close();
  return figures;
}

const DEMANDED = 100;
/** Between two reads: what the first one leads to is done by then. */
const PAUSE_MS = 20;

/** The median time of reads of one stripe each, in microseconds. */
function stripeReadUs({ socket }: RunningServer): number {
  const commands = Array.from({ length: DEMANDED }, (_, i) => [
    ...['-c', `sleep ${PAUSE_MS}`],
    ...['-c', `read ${i * mebibyte} ${mebibyte}`],
  ]).flat();
  const blockdev = `driver=virtio-blk-vhost-user,path=${socket},cache.direct=on`;
  const argv = ['--image-opts', blockdev, ...commands];
  const text = execFileSync(client('qemu-io'), argv, { encoding: 'utf8' });
  const rates = [...text.matchAll(/and ([\d.]+) ops\/sec/g)].map(([, rate]) => 1e6 / Number(rate));
  if (rates.length !== DEMANDED) throw new Error(`qemu-io: ${text}`);
  return median(rates);
}

/** A read of a stripe that isn't fetched, which it then is, against the same read of the image itself. */
export async function demandFigures(
  folder: string,
  image: string,
  sizeBytes: number,
  runs: number,
): Promise<Figure[]> {
  const figures: Figure[] = [];
  for (const direct of [false, true]) {
    const latency = async (settings: Record<string, unknown>) => {
      execFileSync('cat', [image], { stdio: 'ignore' });
      const server = await startWith(folder, settings);
      try {
        return stripeReadUs(server);
      } finally {
        await stop(server);
      }
    };
    const ours: number[] = [];
    const plain: number[] = [];
    for (let run = 0; run < runs; run++) {
      const { disk, settings } = lazyDisk(folder, image, sizeBytes, direct);
      ours.push(await latency({ path: disk, ...settings }));
      rmSync(disk);
      plain.push(await latency({ path: image, direct_io: direct }));
    }
    figures.push({
      name: `lazy demand read 1M, ${direct ? 'direct' : 'cached'}`,
      value: median(ours),
      unit: 'us',
      against: `${median(plain).toFixed(0)} us of the image`,
      ratio: median(ours.map((us, run) => us / plain[run])),
      atMost: 1.5,
    });
  }
  return figures;
}

/** Start-up and memory of a disk of millions of stripes. */
export async function hugeFigures(folder: string, runs: number): Promise<Figure[]> {
  // The largest that ext4 has is a little less than 16 TiB.
  const disk = empty(join(folder, 'huge.raw'), 15 * 2 ** 40);
  const metadata = join(folder, 'huge.meta');
  const settings = { path: disk, metadata_path: metadata };
  init(folder, settings);
  const starts: number[] = [];
  const sizes: number[][] = [[], []];
  for (let run = 0; run < runs; run++) {
    for (const [i, more] of [settings, { path: disk }].entries()) {
      const server = await startWith(folder, more);
      if (i === 0) starts.push(server.startMs);
      sizes[i].push(residentBytes(server.child.pid) / mebibyte);
      await stop(server);
    }
  }
  rmSync(disk);
  rmSync(metadata);
  return [
    { name: 'lazy start, 15 Mi stripes', value: median(starts), unit: 'ms', atMost: 200 },
    {
      name: 'lazy memory, 15 Mi stripes',
      value: median(sizes[0]) - median(sizes[1]),
      unit: 'MB',
      atMost: 64,
    },
  ];
}
