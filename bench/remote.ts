/**
 * Stripes over loopback, read by a client that throws them away and by autofetch to a disk, against what
 * TCP does between two processes, and what OpenSSL does over it with the same cipher.
 */

import { execFileSync } from 'node:child_process';
import { closeSync, ftruncateSync, openSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { statuses } from '../test/e2e/lazy.ts';
import { binary, Child, hostProgram, root } from '../test/e2e/processes.ts';
import { type Figure, init } from './lazy.ts';
import { cpuSeconds, median, residentBytes } from './measure.ts';
import { startWith, stop, writeConfig } from './servers.ts';

const mebibyte = 1 << 20;
const CONNECTIONS = 16;
const IDENTITY = 'bench';
const SECRET = Buffer.alloc(32, 7);
const SUITE = 'PSK-AES256-GCM-SHA384';
const DEADLINE_S = 300;

/** What the client in `remote_client.ts` prints. */
interface Transfer {
  bytes: number;
  seconds: number;
  cpuSeconds: number;
}

interface Server {
  child: Child;
  address: string;
  /** Resident bytes before anybody came. */
  before: number;
}

interface Sample {
  rate: number;
  /** Milliseconds of processor time for a MiB, of the server and of the client. */
  serverCpu: number;
  clientCpu: number;
  /** MB for each connection, when they are idle again. */
  memory: number;
}

async function serveStripes(folder: string, disk: string, tls: boolean): Promise<Server> {
  const config = writeConfig(folder, { path: disk });
  const psk = { psk_identity: IDENTITY, psk_secret: SECRET.toString('base64') };
  const listen = writeConfig(folder, { address: '127.0.0.1:0', ...(tls && psk) });
  const argv = [binary, 'serve', 'stripes', '--config', config, '--listen-config', listen];
  const child = new Child(argv);
  const [, address] = await child.said(/ at (127\S+)/, 10_000, 0, child.stderr);
  return { child, address, before: residentBytes(child.pid) };
}

/** A client with 16 connections reads every stripe. */
async function readStripes(server: Server, tls: boolean): Promise<Sample> {
  const key = tls ? [IDENTITY, SECRET.toString('hex')] : [];
  const script = join(root, 'bench/remote_client.ts');
  const before = cpuSeconds(server.child.pid);
  const client = new Child([process.execPath, script, server.address, String(CONNECTIONS), ...key]);
  try {
    await client.said(/\}\n/, DEADLINE_S * 1000);
    const transfer = JSON.parse(client.stdout.text) as Transfer;
    const size = transfer.bytes / mebibyte;
    return {
      rate: size / transfer.seconds,
      serverCpu: ((cpuSeconds(server.child.pid) - before) * 1000) / size,
      clientCpu: (transfer.cpuSeconds * 1000) / size,
      memory: (residentBytes(server.child.pid) - server.before) / mebibyte / CONNECTIONS,
    };
  } finally {
    await client.destroy(false);
  }
}

const OPENSSL_MS = 20_000;
const OPENSSL_TRIES = 5;

/** MiB a second that `openssl s_client` gets of a file from `s_server`, on one connection. */
async function opensslRate(file: string, bytes: number): Promise<number> {
  for (let i = 0; i < OPENSSL_TRIES; i++) {
    const rate = await opensslTry(file, bytes);
    if (rate > 0) return rate;
  }
  throw new Error(`openssl s_client got less than the file, ${OPENSSL_TRIES} times`);
}

/** The same; 0 where both stood still: now and then `s_server` stops sending. */
async function opensslTry(file: string, bytes: number): Promise<number> {
  const port = 20_000 + (process.pid % 20_000);
  const key = ['-psk', SECRET.toString('hex'), '-psk_identity', IDENTITY];
  const common = [...key, '-tls1_2', '-cipher', SUITE, '-quiet'];
  // It sends its standard input to whoever comes.
  const input = openSync(file, 'r');
  const server = Bun.spawn(
    ['openssl', 's_server', '-accept', `127.0.0.1:${port}`, '-nocert', '-naccept', '1', ...common],
    { stdin: input, stdout: 'ignore', stderr: 'ignore' },
  );
  closeSync(input);
  try {
    await listening(port);
    const from = performance.now();
    const argv = ['openssl', 's_client', '-connect', `127.0.0.1:${port}`, ...common];
    const client = Bun.spawn(argv, {
      stdin: 'pipe',
      stdout: 'ignore',
      stderr: 'ignore',
      timeout: OPENSSL_MS,
    });
    if ((await client.exited) !== 0) return 0;
    return bytes / mebibyte / ((performance.now() - from) / 1000);
  } finally {
    server.kill();
  }
}

/** Until a port is listened on, without connecting to it. */
async function listening(port: number): Promise<void> {
  const entry = `0100007F:${port.toString(16).toUpperCase().padStart(4, '0')} 00000000:0000 0A`;
  for (let i = 0; i < 1000; i++) {
    if (readFileSync('/proc/net/tcp', 'utf8').includes(entry)) return;
    await Bun.sleep(10);
  }
  throw new Error(`nobody listens on port ${port}`);
}

/** MiB a second between two processes in the clear, on one connection. */
function tcpRate(file: string): number {
  const words = execFileSync(join(root, 'build/c/bench/tcp_speed'), [file]).toString().split(' ');
  return Number(words[0]) / mebibyte / Number(words[1]);
}

/** MiB a second from a stripe server to another disk, durable. */
async function autofetchRate(folder: string, server: Server, tls: boolean, bytes: number) {
  const disk = join(folder, 'copy.raw');
  const metadata = join(folder, 'copy.meta');
  const fd = openSync(disk, 'w', 0o600);
  ftruncateSync(fd, bytes);
  closeSync(fd);
  rmSync(metadata, { force: true });
  const psk = { psk_identity: IDENTITY, psk_secret: SECRET.toString('base64') };
  const settings = {
    path: disk,
    metadata_path: metadata,
    copy_on_read: true,
    stripe_source: { source: 'remote', address: server.address, ...(tls && psk) },
  };
  init(folder, settings);
  const rpc = join(folder, 'copy.rpc');
  const from = performance.now();
  const more = { ...settings, autofetch: true, rpc_socket_path: rpc };
  const running = await startWith(folder, more);
  try {
    for await (const { stripes } of statuses(rpc)) {
      if (stripes.fetched === stripes.source) break;
      if (performance.now() - from > DEADLINE_S * 1000) throw new Error('autofetch takes too long');
      await Bun.sleep(5);
    }
    return bytes / mebibyte / ((performance.now() - from) / 1000);
  } finally {
    await stop(running);
    rmSync(disk);
    rmSync(metadata);
  }
}

/** Reading and autofetch, over TLS and in the clear, each beside what it is compared with. */
export async function* remoteFigures(
  folder: string,
  file: string,
  bytes: number,
  runs: number,
): AsyncGenerator<Figure> {
  execFileSync('make', ['-s', '-C', join(root, 'c'), 'bench']);
  for (const tls of [true, false]) {
    const other = tls ? 'openssl' : 'TCP';
    if (tls && !hostProgram('openssl')) continue;
    const samples: Sample[] = [];
    const others: number[] = [];
    const copies: number[] = [];
    for (let run = 0; run < runs; run++) {
      const server = await serveStripes(folder, file, tls);
      try {
        samples.push(await readStripes(server, tls));
        others.push(tls ? await opensslRate(file, bytes) : tcpRate(file));
        copies.push(await autofetchRate(folder, server, tls, bytes));
      } finally {
        await server.child.destroy(true);
      }
    }
    const of = (what: keyof Sample) => median(samples.map((sample) => sample[what]));
    const rate = median(others);
    const name = `remote${tls ? ' TLS' : ''}`;
    yield {
      name: `${name} read, ${CONNECTIONS} connections`,
      value: of('rate'),
      unit: 'MiB/s',
      against: `${rate.toFixed(0)} MiB/s of ${other}`,
      // Of each to the one right after it: machines are not equally fast all the time.
      ratio: median(samples.map((sample, run) => sample.rate / others[run])),
      atLeast: tls ? 0.8 : 0.9,
    };
    yield { name: `${name} autofetch, disk to disk`, value: median(copies), unit: 'MiB/s' };
    yield { name: `${name} server CPU`, value: of('serverCpu'), unit: 'ms a MiB' };
    yield { name: `${name} client CPU`, value: of('clientCpu'), unit: 'ms a MiB' };
    yield { name: `${name} server memory`, value: of('memory'), unit: 'MB a connection' };
  }
}
