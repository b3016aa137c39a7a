/**
 * `npm run bench`: `ubiblk serve vhost` against qemu-storage-daemon on the same raw file, with
 * libblkio's own benchmark as the client. docs/benchmarks.md tells how to read what it prints.
 */

import { execFileSync } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { cpus, release } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { binary, client, folders, root } from '../test/e2e/processes.ts';
import { archiveFigures, makeImage } from './archive.ts';
import { cipherRates, usesIsal } from './cipher.ts';
import { counterFigures } from './counters.ts';
import { autofetchFigures, demandFigures, type Figure, hugeFigures, init } from './lazy.ts';
import {
  ClientFailure,
  measure,
  measureFile,
  median,
  residentBytes,
  type Sample,
  settle,
} from './measure.ts';
import { nbdFigures } from './nbd.ts';
import { remoteFigures } from './remote.ts';
import { allRows, type Row, type Target } from './rows.ts';
import {
  peerModes,
  type RunningServer,
  type Served,
  startOurs,
  startPeer,
  stop,
} from './servers.ts';
import { ublkFigures } from './ublk.ts';

const help = `npm run bench -- [OPTION...]

  --rows FILTER    only the rows whose name has FILTER in it; may be given several times
  --runs N         runs of each side, interleaved (5)
  --seconds N      length of each run (3)
  --quick          three runs of a second
  --no-peer        our side and the file's limit alone
  --json FILE      write every sample there too
  --list           print the names of the rows
`;

const { values: options } = parseArgs({
  options: {
    rows: { type: 'string', multiple: true },
    runs: { type: 'string' },
    seconds: { type: 'string' },
    quick: { type: 'boolean', default: false },
    peer: { type: 'boolean', default: true },
    json: { type: 'string' },
    list: { type: 'boolean', default: false },
    help: { type: 'boolean', short: 'h', default: false },
  },
  allowNegative: true,
});

function count(name: 'runs' | 'seconds', fallback: number): number {
  const value = Number(options[name] ?? fallback);
  if (Number.isInteger(value) && value > 0) return value;
  console.error(`bench: '--${name} ${options[name]}' is not a positive number`);
  process.exit(2);
}

const runs = count('runs', options.quick ? 3 : 5);
const seconds = count('seconds', options.quick ? 1 : 3);
const sizeBytes = 1 << 30;
const cores = cpus().length;

interface Verdict {
  text: string;
  passed: boolean;
}

interface Result {
  row: string;
  ours: Sample[];
  peer: Sample[];
  peerMode?: string;
  limitIops?: number;
  verdicts: Verdict[];
}

interface Single {
  name: string;
  value: number;
  unit: string;
  /** What is said where nothing is demanded. */
  text?: string;
  verdict?: Verdict;
}

function wanted(name: string): boolean {
  return !options.rows || options.rows.some((filter) => name.includes(filter));
}

/** A file to serve: written in full, and in the page cache. */
function makeFile(file: string, bytes = sizeBytes): string {
  const chunk = new Uint8Array(1 << 20);
  const fd = openSync(file, 'wx', 0o600);
  for (let at = 0; at < bytes; at += chunk.length) {
    if (at % (64 << 20) === 0)
      for (let i = 0; i < chunk.length; i += 65536)
        crypto.getRandomValues(chunk.subarray(i, i + 65536));
    writeSync(fd, chunk, 0, chunk.length, at);
  }
  closeSync(fd);
  settle(file);
  readIntoCache(file);
  return file;
}

function readIntoCache(file: string): void {
  execFileSync('cat', [file], { stdio: ['ignore', 'ignore', 'inherit'] });
}

/** The ways to run the peer for a row, the fastest first, by one short run of each. */
async function rankedPeerModes(served: Served, row: Row): Promise<string[]> {
  const rates = new Map<string, number>();
  for (const mode of peerModes(row.place)) {
    const server = await startPeer(served, mode);
    try {
      rates.set(mode, (await measure(server, row, 1)).iops);
    } catch (error) {
      // Some of its modes hang under some loads; it is not compared in those.
      console.error(`bench: no figure: ${(error as Error).message}`);
    } finally {
      await stop(server);
    }
  }
  return [...rates.keys()].sort((a, b) => Number(rates.get(b)) - Number(rates.get(a)));
}

/** A file of our own second server: no two of ours serve the same. Made when it is first needed. */
function otherFile({ file, place }: Served): string {
  const other = `${file}.2`;
  if (!existsSync(other)) makeFile(other);
  if (place === 'cache') readIntoCache(other);
  return other;
}

/** The row against the best peer that holds out. */
async function runRow(row: Row, served: Served, oneQueue: Result | undefined): Promise<Result> {
  if (row.place === 'cache') readIntoCache(served.file);
  if (row.encrypted || row.lazy) {
    const plain = () => startOurs({ ...served, file: otherFile(served) });
    return await compare(row, served, oneQueue, 'ours, plain', plain);
  }
  if (!options.peer) return await compare(row, served, oneQueue);
  const modes = await rankedPeerModes(served, row);
  for (const mode of modes.slice(0, -1)) {
    try {
      return await compare(row, served, oneQueue, mode, () => startPeer(served, mode));
    } catch (error) {
      if (!(error instanceof ClientFailure) || error.server === 'ubiblk') throw error;
      console.error(`bench: the next mode of the peer is tried: ${error.message}`);
    }
  }
  const [mode] = modes.slice(-1);
  return await compare(
    row,
    served,
    oneQueue,
    mode,
    mode ? () => startPeer(served, mode) : undefined,
  );
}

/** Metadata that says that everything is local. */
function localMetadata({ folder, file }: Served): Record<string, unknown> {
  const more = { metadata_path: join(folder, 'local.meta') };
  if (!existsSync(more.metadata_path)) init(folder, { path: file, ...more });
  return more;
}

async function compare(
  row: Row,
  served: Served,
  oneQueue: Result | undefined,
  peerMode?: string,
  startOther?: () => Promise<RunningServer>,
): Promise<Result> {
  const result: Result = { row: row.name, ours: [], peer: [], verdicts: [] };
  if (peerMode) result.peerMode = peerMode;
  const servers: RunningServer[] = [];
  try {
    const more = row.lazy ? localMetadata(served) : {};
    const ours = await startOurs({ ...served, encrypted: row.encrypted, more });
    servers.push(ours);
    if (startOther) servers.push(await startOther());
    // Neither side's first second counts: code is compiled, pages are mapped.
    for (const server of servers) await measure(server, row, 1);
    for (let run = 0; run < runs; run++) {
      for (const server of servers) {
        if (row.place !== 'null' && row.access.endsWith('write')) settle(served.file);
        const sample = await measure(server, row, seconds);
        (server === ours ? result.ours : result.peer).push(sample);
      }
    }
  } finally {
    for (const server of servers) await stop(server);
  }
  result.limitIops = await measureFile(served.file, sizeBytes, row, seconds);
  result.verdicts = row.targets.flatMap((target) => judge(target, result, oneQueue) ?? []);
  return result;
}

const figures = { iops: 'iops', latency: 'latencyUs', cpu: 'cpuUs' } as const;

function figure(samples: Sample[], name: keyof typeof figures): number {
  return median(samples.map((sample) => sample[figures[name]]));
}

function judge(target: Target, result: Result, oneQueue: Result | undefined): Verdict | undefined {
  const other = target.ofOneQueue ? oneQueue?.ours : result.peer;
  if (!other?.length) return undefined;
  const ratio = figure(result.ours, target.figure) / figure(other, target.figure);
  const bound = target.atLeast ?? target.atMost ?? 1;
  const passed = target.atLeast === undefined ? ratio <= bound : ratio >= bound;
  const sign = target.atLeast === undefined ? '<=' : '>=';
  const what = `${target.figure} ${ratio.toFixed(2)} ${sign} ${bound}`;
  return verdict(`${what}${target.ofOneQueue ? ' of one queue' : ''}`, passed);
}

function verdict(text: string, passed: boolean): Verdict {
  return { text: `${text} ${passed ? 'PASS' : 'FAIL'}`, passed };
}

function thousands(iops: number): string {
  return iops >= 10_000
    ? `${Math.round(iops / 1000)}k`
    : iops >= 1000
      ? `${(iops / 1000).toFixed(1)}k`
      : iops.toFixed(0);
}

function side(samples: Sample[]): string[] {
  if (samples.length === 0) return ['-', '-', '-'];
  const spread = samples.map((sample) => sample.iops);
  const range = `${thousands(Math.min(...spread))}..${thousands(Math.max(...spread))}`;
  return [
    `${thousands(figure(samples, 'iops'))} (${range})`,
    figure(samples, 'latency').toFixed(1),
    figure(samples, 'cpu').toFixed(2),
  ];
}

const widths = [34, 20, 8, 7, 20, 8, 7, 18, 7];

function printColumns(cells: string[], rest: string): void {
  console.log(`${cells.map((cell, i) => cell.padEnd(widths[i])).join(' ')} ${rest}`);
}

function printResult(result: Result): void {
  printColumns(
    [
      result.row,
      ...side(result.ours),
      ...side(result.peer),
      result.peerMode ?? '-',
      result.limitIops === undefined ? '-' : thousands(result.limitIops),
    ],
    result.verdicts.map(({ text }) => text).join(', '),
  );
}

function printSingle(single: Single): void {
  console.log(
    `${single.name.padEnd(widths[0])} ${`${single.value.toFixed(single.value < 1 ? 3 : 1)} ${single.unit}`.padEnd(20)} ${single.verdict?.text ?? single.text}`,
  );
}

/** Start-up time, memory by number of queues, and a queue's heap over ten million requests. */
async function processRows(folder: string, file: string): Promise<Single[]> {
  const singles: Single[] = [];
  const report = (name: string, value: number, unit: string, bound: number) => {
    const single = { name, value, unit, verdict: verdict(`< ${bound} ${unit}`, value < bound) };
    singles.push(single);
    printSingle(single);
  };
  const served: Served = { place: 'cache', file, sizeBytes, queues: 1, folder };
  const row = allRows(cores, usesIsal())[0];
  const mebibyte = 1 << 20;
  if (wanted('process start')) {
    const times: number[] = [];
    for (let run = 0; run < Math.max(runs, 5); run++) {
      const server = await startOurs(served);
      times.push(server.startMs);
      await stop(server);
    }
    report('process start to listening', median(times), 'ms', 60);
  }
  if (wanted('process memory')) {
    const sizes: number[] = [];
    for (const queues of [1, 9]) {
      const server = await startOurs({ ...served, queues });
      await measure(server, { ...row, queues, depth: 32 }, 1);
      sizes.push(residentBytes(server.child.pid) / mebibyte);
      await stop(server);
    }
    report('process memory, one queue', sizes[0], 'MB', 90);
    report('process memory, per further queue', (sizes[1] - sizes[0]) / 8, 'MB', 3);
  }
  if (wanted('process heap')) {
    const server = await startOurs({ ...served, place: 'null' }, { UBIBLK_LOG: 'debug' });
    const load = { ...row, place: 'null' as const, depth: 32, poll: true };
    const { iops } = await measure(server, load, 2);
    const from = server.child.stderr.text.length;
    const length = Math.ceil(1.2e7 / iops);
    const requests = (await measure(server, load, length)).iops * length;
    await server.child.said(/the ring is stopped/, 10_000, from, server.child.stderr);
    const sizes = [...server.child.stderr.text.slice(from).matchAll(/heapBytes=(\d+)/g)];
    await stop(server);
    const grown = Number(sizes.at(-1)?.[1]) - Number(sizes[0]?.[1]);
    report(
      `process heap, ${Math.floor(requests / 1e6)} million requests`,
      grown / 1024,
      'KB',
      1024,
    );
  }
  return singles;
}

/** What counting costs, as a part of what a request takes. */
async function counterRows(folder: string, file: string): Promise<Single[]> {
  if (!wanted('counters')) return [];
  readIntoCache(file);
  const served: Served = { place: 'cache', file, sizeBytes, queues: 1, folder };
  const names = [1, 32].map((depth) => `cache randread 4K d${depth} poll`);
  const rows = allRows(cores, usesIsal()).filter(({ name }) => names.includes(name));
  return (await counterFigures(rows, served, runs, seconds)).map(judgeFigure);
}

/** Encryption by itself, as a part of what the linked library does. */
function cipherRows(folder: string, file: string): Single[] {
  if (!wanted('cipher')) return [];
  readIntoCache(file);
  return cipherRates(file, sizeBytes, folder, runs).map(({ name, rate, library, atLeast }) => {
    const ratio = rate / library;
    const text = `${ratio.toFixed(2)} of the library's ${(library / 1e6).toFixed(0)} MB/s`;
    const judged = atLeast && verdict(`${text}, >= ${atLeast}`, ratio >= atLeast);
    const single = {
      name,
      value: rate / 1e6,
      unit: 'MB/s',
      text,
      ...(judged && { verdict: judged }),
    };
    printSingle(single);
    return single;
  });
}

async function lazyFigures(folder: string): Promise<Single[]> {
  if (!wanted('lazy figures')) return [];
  const image = join(folder, 'image.raw');
  const bytes = options.quick ? sizeBytes : 4 * sizeBytes;
  makeFile(image, bytes);
  const figures = [
    ...(await hugeFigures(folder, runs)),
    ...(await demandFigures(folder, image, bytes, runs)),
    // The last: it leaves no memory free.
    ...(await autofetchFigures(folder, image, bytes, runs)),
  ];
  return figures.map(judgeFigure);
}

/** Prints a figure, and whether it is what is demanded. */
function judgeFigure(figure: Figure): Single {
  const { name, value, unit, against, ratio, atLeast, atMost } = figure;
  if (atLeast === undefined && atMost === undefined) {
    const text = ratio === undefined ? (against ?? '') : `${ratio.toFixed(2)} of ${against}`;
    const single = { name, value, unit, text };
    printSingle(single);
    return single;
  }
  const bound = atLeast === undefined ? `<= ${atMost}` : `>= ${atLeast}`;
  const shown = Number(ratio) < 0.1 ? ratio?.toFixed(4) : ratio?.toFixed(2);
  const what = against ? `${shown} of ${against}, ${bound}` : `${bound} ${unit}`;
  const judged = against ? Number(ratio) : value;
  const passed = atLeast === undefined ? judged <= Number(atMost) : judged >= atLeast;
  const single = { name, value, unit, verdict: verdict(what, passed) };
  printSingle(single);
  return single;
}

/** Stripes of a file in the page cache, over loopback. */
async function remoteRows(folder: string, file: string): Promise<Single[]> {
  if (!wanted('remote')) return [];
  readIntoCache(file);
  const singles: Single[] = [];
  const times = Math.min(runs, 3);
  for await (const figure of remoteFigures(folder, file, sizeBytes, times)) {
    singles.push(judgeFigure(figure));
  }
  return singles;
}

/** NBD clients of others, against servers of others. */
async function nbdRows(folder: string, file: string): Promise<Single[]> {
  if (!wanted('nbd')) return [];
  readIntoCache(file);
  const singles: Single[] = [];
  for await (const figure of nbdFigures(folder, file, sizeBytes, runs, seconds)) {
    singles.push(judgeFigure(figure));
  }
  return singles;
}

/** Archives of this host's programs, in a folder beside the file. */
function archiveRows(folder: string): Single[] {
  if (!wanted('archive')) return [];
  const image = join(folder, 'image.raw');
  makeImage(image, sizeBytes);
  settle(image);
  readIntoCache(image);
  const singles: Single[] = [];
  for (const figure of archiveFigures(folder, image, sizeBytes, runs)) {
    singles.push(judgeFigure(figure));
  }
  return singles;
}

/** A ublk server of ours in a virtual machine. */
function ublkRows(folder: string): Single[] {
  if (!wanted('ublk')) return [];
  return [...ublkFigures(folder, runs, seconds)].map(judgeFigure);
}

function commit(): string {
  try {
    const git = (...args: string[]) =>
      execFileSync('git', ['-C', root, ...args])
        .toString()
        .trim();
    return (
      git('rev-parse', '--short', 'HEAD') + (git('status', '--porcelain') ? ' with changes' : '')
    );
  } catch {
    return 'unknown';
  }
}

/** Two benchmarks at once measure each other: the second one is refused. */
function takeTurn(): void {
  const path = join(folders.memory ?? '/tmp', 'ubiblk-bench.pid');
  const others = () => {
    try {
      const pid = Number(readFileSync(path, 'utf8'));
      process.kill(pid, 0);
      return pid;
    } catch {
      return undefined;
    }
  };
  const other = others();
  if (other !== undefined) {
    console.error(`bench: another benchmark runs here as process ${other}; wait for its end`);
    process.exit(1);
  }
  writeFileSync(path, String(process.pid));
  process.on('exit', () => rmSync(path, { force: true }));
}

/** Measures what was asked for; false where a row could not be. */
async function main(): Promise<boolean> {
  const rows = allRows(cores, usesIsal());
  if (options.list) {
    for (const row of rows) console.log(row.name);
    for (const name of ['start', 'memory', 'heap']) console.log(`process ${name}`);
    for (const more of ['counters', 'cipher', 'lazy figures', 'remote', 'nbd', 'archive', 'ublk'])
      console.log(more);
    return true;
  }
  if (!folders.disk) throw new Error('no folder on a disk was found: set TMPDIR to one');
  takeTurn();
  client('blkio-bench');
  const folder = mkdtempSync(join(folders.disk, 'ubiblk-bench-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));

  const machine = `${cpus()[0].model.trim()}, ${cores} cores, Linux ${release()}`;
  const version = execFileSync(client('qemu-storage-daemon'), ['--version']).toString();
  const peer = version.match(/version ([\d.]+)/)?.[1] ?? '?';
  console.log(`machine: ${machine}`);
  console.log(`ours:    '${binary}', commit ${commit()}`);
  console.log(`peer:    qemu-storage-daemon ${peer}, in the fastest of its modes for each row`);
  console.log(
    `file:    ${folder}, ${sizeBytes >> 20} MiB; medians of ${runs} runs of ${seconds} s`,
  );
  console.log('');
  const file = makeFile(join(folder, 'bench.raw'));
  const heads = ['row', 'ours: IOPS (range)', 'us', 'CPU us', 'peer: IOPS (range)', 'us', 'CPU us'];
  printColumns([...heads, 'peer mode', 'file'], 'ours / peer');

  const results: Result[] = [];
  let broken = 0;
  for (const row of rows.filter(({ name }) => wanted(name))) {
    const served: Served = { place: row.place, file, sizeBytes, queues: row.queues, folder };
    const oneQueue = results.find(({ row: name }) => name === row.name.replace(/ q\d+/, ''));
    try {
      const result = await runRow(row, served, oneQueue);
      printResult(result);
      results.push(result);
    } catch (error) {
      broken++;
      console.error(`bench: the row is given up: ${(error as Error).message}`);
    }
  }
  const singles = [
    ...(await processRows(folder, file)),
    ...(await counterRows(folder, file)),
    ...cipherRows(folder, file),
    ...(await lazyFigures(folder)),
    ...(await remoteRows(folder, file)),
    ...(await nbdRows(folder, file)),
    ...archiveRows(folder),
    ...ublkRows(folder),
  ];

  const verdicts = [
    ...results.flatMap(({ verdicts }) => verdicts),
    ...singles.flatMap(({ verdict }) => verdict ?? []),
  ];
  const passed = verdicts.filter((one) => one.passed).length;
  console.log('');
  const given = broken > 0 ? `, ${broken} rows given up` : '';
  console.log(`${passed} targets reached, ${verdicts.length - passed} missed${given}`);
  if (options.json) {
    const head = { machine, commit: commit(), peer, runs, seconds };
    writeFileSync(options.json, `${JSON.stringify({ ...head, results, singles }, null, 2)}\n`);
  }
  return broken === 0;
}

for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(130));

let measured = true;
if (options.help) console.log(help.trimEnd());
else measured = await main();
process.exit(measured ? 0 : 1);
