/** `serve nbd` against qemu-nbd and nbdkit, and a disk that fills itself from nbdkit against nbdcopy. */

import { execFileSync } from 'node:child_process';
import { existsSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { createConnection } from 'node:net';
import { join } from 'node:path';
import { binary, type Child, hostProgram } from '../test/e2e/processes.ts';
import { type Figure, init } from './lazy.ts';
import { geometricMean, median, PageCacheFiller, settle } from './measure.ts';
import { start, writeConfig } from './servers.ts';

interface Peer {
  name: string;
  argv: string[];
}

/** Requests a second, or seconds. */
type Measure = (uri: string) => number;

const DEADLINE_MS = 10_000;
const LOOK_MS = 10;

function fio(seconds: number, access: string, block: string, depth: number): Measure {
  return (uri) => {
    const argv = ['--name=r', '--ioengine=nbd', `--uri=${uri}`, `--rw=${access}`, `--bs=${block}`];
    const more = [`--iodepth=${depth}`, '--size=512M', `--runtime=${seconds}`, '--time_based'];
    const text = execFileSync('fio', [...argv, ...more, '--output-format=json'], {
      encoding: 'utf8',
      stdio: ['ignore', 'pipe', 'ignore'],
    });
    const { read, write } = JSON.parse(text.slice(text.indexOf('{'))).jobs[0];
    return read.iops + write.iops;
  };
}

function seconds(argv: string[]): number {
  const from = performance.now();
  execFileSync(argv[0], argv.slice(1), { stdio: 'ignore' });
  return (performance.now() - from) / 1000;
}

/** Starts a server and waits until its socket is there. */
async function serving(argv: string[], socket: string): Promise<Child> {
  rmSync(socket, { force: true });
  const child = start(argv);
  const deadline = performance.now() + DEADLINE_MS;
  while (!existsSync(socket)) {
    if (!child.running || performance.now() > deadline) throw new Error(child.report());
    await Bun.sleep(10);
  }
  return child;
}

/**
 * @param file in the page cache
 * @param sizeBytes of it
 */
export async function* nbdFigures(
  folder: string,
  file: string,
  sizeBytes: number,
  runs: number,
  runSeconds: number,
): AsyncGenerator<Figure> {
  const missing = ['nbdkit', 'qemu-nbd', 'nbdcopy', 'fio'].filter((name) => !hostProgram(name));
  if (missing.length > 0) {
    console.error(`bench: no figures of NBD: ${missing.join(', ')} is not installed`);
    return;
  }
  const socketOf = (name: string) => join(folder, `${name}.sock`);
  const config = writeConfig(folder, { path: file, direct_io: false, num_queues: 2 });
  const peers: Peer[] = [
    {
      name: 'ubiblk',
      argv: [binary, 'serve', 'nbd', '--config', config, '--listen', `unix:${socketOf('ubiblk')}`],
    },
    { name: 'nbdkit', argv: ['nbdkit', '-f', '-U', socketOf('nbdkit'), 'file', file] },
    {
      name: 'qemu-nbd',
      argv: ['qemu-nbd', '-t', '-e', '8', '-k', socketOf('qemu-nbd'), '-f', 'raw', file],
    },
  ];
  const uriOf = (name: string) => `nbd+unix:///?socket=${socketOf(name)}`;
  const rows: [name: string, unit: string, atLeast: number, measure: Measure][] = [
    ['randread 4K d32', 'IOPS', 1.2, fio(runSeconds, 'randread', '4k', 32)],
    ['read 1M d8', 'IOPS', 1, fio(runSeconds, 'read', '1M', 8)],
    ['randwrite 4K d32', 'IOPS', 1.2, fio(runSeconds, 'randwrite', '4k', 32)],
    ['nbdcopy', 'MB/s', 1, (uri) => sizeBytes / 1e6 / seconds(['nbdcopy', uri, 'null:'])],
  ];
  for (const [name, unit, atLeast, measure] of rows) {
    const found = new Map<string, number[]>(peers.map((peer) => [peer.name, []]));
    for (let run = 0; run < runs; run++) {
      for (const peer of peers) {
        // One at a time has the file, and its lock.
        const child = await serving(peer.argv, socketOf(peer.name));
        if (name.includes('write')) settle(file);
        found.get(peer.name)?.push(measure(uriOf(peer.name)));
        await child.destroy(true);
      }
    }
    const medians = peers.map((peer) => median(found.get(peer.name) ?? []));
    const [ours, ...others] = medians;
    const best = Math.max(...others);
    const peer = peers[1 + others.indexOf(best)].name;
    const against = `${peer}'s ${Math.round(best)} ${unit}`;
    yield { name: `nbd ${name}`, value: ours, unit, against, ratio: ours / best, atLeast };
  }
  yield await fillFigure(folder, file, sizeBytes, runs, peers[1].argv, socketOf('nbdkit'));
}

/** Asks a server, without keeping it busy, until all of its disk is there. */
async function allFetched(rpc: string): Promise<void> {
  const socket = createConnection(rpc);
  const ask = () => socket.write('{"command":"status"}\n');
  ask();
  let text = '';
  for await (const part of socket) {
    text += part;
    if (!text.endsWith('\n')) continue;
    const { stripes } = JSON.parse(text).status;
    if (stripes.fetched === stripes.source) break;
    text = '';
    setTimeout(ask, LOOK_MS);
  }
}

/** A disk is filled from nbdkit, until everything is durable; nbdcopy to a file, with its flush. */
async function fillFigure(
  folder: string,
  file: string,
  sizeBytes: number,
  runs: number,
  nbdkit: string[],
  socket: string,
): Promise<Figure> {
  const uri = `nbd+unix:///?socket=${socket}`;
  const source = await serving(nbdkit, socket);
  const disk = join(folder, 'nbd-fill.raw');
  const copy = join(folder, 'nbd-copy.raw');
  const metadata = join(folder, 'nbd-fill.meta');
  const rpc = join(folder, 'nbd-fill.rpc');
  const settings = {
    path: disk,
    direct_io: false,
    metadata_path: metadata,
    copy_on_read: true,
    autofetch: true,
    rpc_socket_path: rpc,
    stripe_source: { source: 'nbd', uri },
  };
  const fills: number[] = [];
  const copies: number[] = [];
  const fill = async () => {
    writeFileSync(disk, '');
    truncateSync(disk, sizeBytes);
    init(folder, settings);
    const config = writeConfig(folder, settings);
    const from = performance.now();
    const listen = `unix:${join(folder, 'nbd-fill.sock')}`;
    const server = start([binary, 'serve', 'nbd', '--config', config, '--listen', listen]);
    await server.said(/listening on /, DEADLINE_MS, 0, server.stderr);
    await allFetched(rpc);
    fills.push((performance.now() - from) / 1000);
    await server.destroy(true);
  };
  const copyAll = async () => {
    copies.push(seconds(['nbdcopy', '--flush', uri, copy]));
  };
  const filler = new PageCacheFiller(join(folder, 'holes.raw'));
  for (let run = 0; run < 2 * Math.ceil(runs / 2); run++) {
    const sides = [fill, copyAll];
    // Each comes second as often as the other, and finds memory that need not be asked for.
    for (const side of run % 2 ? sides.toReversed() : sides) {
      for (const path of [disk, copy, metadata]) rmSync(path, { force: true });
      execFileSync('sync');
      filler.fill();
      execFileSync('cat', [file], { stdio: 'ignore' });
      await side();
    }
  }
  filler.close();
  await source.destroy(true);
  const [ours, theirs] = [median(fills), median(copies)].map((each) => sizeBytes / 1e6 / each);
  const against = `nbdcopy's ${Math.round(theirs)} MB/s`;
  const ratio = geometricMean(copies.map((each, run) => each / fills[run]));
  return { name: 'nbd source, filled', value: ours, unit: 'MB/s', against, ratio, atLeast: 0.8 };
}
