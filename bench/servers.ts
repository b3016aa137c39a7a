/** The two servers that are compared: ours, and qemu-storage-daemon's vhost-user-blk export. */

import { existsSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { binary, Child, client } from '../test/e2e/processes.ts';
import type { Place } from './rows.ts';

export interface Served {
  place: Place;
  /** Raw file of both sides. */
  file: string;
  sizeBytes: number;
  queues: number;
  /** Ours alone: with keys, as if the file were ciphertext. */
  encrypted?: boolean;
  /** Ours alone: more of the configuration. */
  more?: Record<string, unknown>;
  /** Folder for sockets and configuration files. */
  folder: string;
}

export interface RunningServer {
  name: string;
  child: Child;
  socket: string;
  /** From the start of the process to the moment it listens. */
  startMs: number;
}

const running = new Set<Child>();
process.on('exit', () => {
  for (const child of running) child.killGroup();
});

let count = 0;

/** Starts `ubiblk serve vhost`. @throws Error with its output if it doesn't listen within 10 s */
export async function startOurs(
  served: Served,
  env: Record<string, string> = {},
): Promise<RunningServer> {
  const settings: Record<string, unknown> = {
    path: served.file,
    num_queues: served.queues,
    queue_size: 256,
    direct_io: served.place === 'direct',
    ...served.more,
  };
  if (served.encrypted) settings.encryption_key = [key(1), key(2)];
  const options = served.place === 'null' ? ['--null', String(served.sizeBytes)] : [];
  return await startWith(served.folder, settings, options, env);
}

/** Writes a configuration file. @returns its path */
export function writeConfig(folder: string, settings: Record<string, unknown>): string {
  const config = join(folder, `ours${count++}.yaml`);
  const lines = Object.entries(settings).map(
    ([name, value]) => `${name}: ${JSON.stringify(value)}`,
  );
  writeFileSync(config, `${lines.join('\n')}\n`, { mode: 0o600 });
  return config;
}

/** Starts `ubiblk serve vhost` with a configuration. @throws Error as {@link startOurs} */
export async function startWith(
  folder: string,
  settings: Record<string, unknown>,
  options: readonly string[] = [],
  env: Record<string, string> = {},
): Promise<RunningServer> {
  const socket = join(folder, `ours${count++}.sock`);
  const config = writeConfig(folder, { ...settings, socket });
  const argv = [binary, 'serve', 'vhost', '--config', config, ...options];
  const from = performance.now();
  const child = start(argv, env);
  await child.said(/listening on /, 10_000, 0, child.stderr);
  return { name: 'ubiblk', child, socket, startMs: performance.now() - from };
}

function key(byte: number): string {
  return Buffer.alloc(32, byte).toString('base64');
}

/** Ways to run the peer; the best of them for a row is what we are compared with. */
export function peerModes(place: Place): string[] {
  const engines = { cache: ['io_uring', 'threads'], direct: ['io_uring', 'native', 'threads'] };
  const modes = place === 'null' ? ['null-co'] : engines[place];
  return [...modes, ...modes.map((mode) => `${mode}+iothread`)];
}

/** Starts qemu-storage-daemon in one of {@link peerModes}. @throws Error if it ends at once */
export async function startPeer(served: Served, mode: string): Promise<RunningServer> {
  const socket = join(served.folder, `peer${count++}.sock`);
  const [engine, thread] = mode.split('+');
  const node =
    served.place === 'null'
      ? `driver=null-co,node-name=f,size=${served.sizeBytes},read-zeroes=off`
      : `driver=file,node-name=f,filename=${served.file},discard=unmap,aio=${engine},` +
        `cache.direct=${served.place === 'direct' ? 'on' : 'off'},locking=off`;
  const address = `addr.type=unix,addr.path=${socket}`;
  const argv = [client('qemu-storage-daemon'), '--blockdev', node];
  if (thread) argv.push('--object', 'iothread,id=io');
  argv.push(
    '--export',
    `type=vhost-user-blk,id=e,node-name=f,writable=on,num-queues=${served.queues},${address}` +
      (thread ? ',iothread=io' : ''),
    '--chardev',
    'stdio,id=c',
    '--monitor',
    'chardev=c',
  );
  const from = performance.now();
  const child = start(argv);
  // The monitor greets once the export is there.
  await child.said(/"QMP"/, 10_000);
  if (!existsSync(socket)) throw new Error(child.report());
  return { name: `qemu-storage-daemon ${mode}`, child, socket, startMs: performance.now() - from };
}

/** Starts a process that does not outlive the benchmark. */
export function start(argv: string[], env: Record<string, string> = {}): Child {
  const child = new Child(argv, { env });
  running.add(child);
  return child;
}

/** Ends a server; it has a second to do so itself. */
export async function stop(server: RunningServer): Promise<void> {
  await server.child.destroy(true);
  running.delete(server.child);
}
