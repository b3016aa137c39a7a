/** What the tests of NBD share: servers of ours and of others, and URIs. */
import { expect } from 'bun:test';
import { goData, option, RawClient } from '../nbd/support.ts';
import { binary, type Child } from './processes.ts';
import { type Bed, type Settings, testKeys } from './support.ts';

export const MIB = 1 << 20;

/** What the tests need besides. */
export const nbdPrograms = ['nbdkit', 'nbdinfo', 'nbdcopy', 'qemu-img', 'qemu-io'] as const;

export interface NbdServer {
  child: Child;
  socket: string;
  uri: string;
}

/** Starts `ubiblk serve nbd` at a Unix socket and waits until it listens. */
export async function serveNbd(
  bed: Bed,
  disk: string | null,
  settings: Settings = {},
  { encrypted = false, args = [] as string[], socket = bed.path('nbd.sock') } = {},
): Promise<NbdServer> {
  const keys: Settings = encrypted ? { encryption_key: testKeys } : {};
  const config =
    disk === null ? [] : ['--config', bed.config({ path: disk, ...keys, ...settings })];
  const argv = [binary, 'serve', 'nbd', ...config, '--listen', `unix:${socket}`, ...args];
  const child = bed.spawn(argv);
  await child.said(/listening on /, 10_000, 0, child.stderr);
  return { child, socket, uri: `nbd+unix:///?socket=${socket}` };
}

export async function endNbd({ child }: NbdServer): Promise<void> {
  child.signal('SIGTERM');
  expect(await child.exit(10_000)).toBe(0);
}

/** Starts nbdkit in the foreground and waits until it can be connected to. */
export async function nbdkit(bed: Bed, argv: string[], name = 'nbdkit.sock'): Promise<NbdServer> {
  const socket = bed.path(name);
  const pid = bed.path(`${name}.pid`);
  const child = bed.spawn(['nbdkit', '-f', '-U', socket, '-P', pid, ...argv]);
  const deadline = Date.now() + 10_000;
  while (!(await Bun.file(pid).exists())) {
    if (!child.running || Date.now() > deadline) throw new Error(child.report());
    await Bun.sleep(10);
  }
  return { child, socket, uri: `nbd+unix:///?socket=${socket}` };
}

/** Whether two ends hold the same, as QEMU sees it. */
export async function compareImages(bed: Bed, a: string, b: string): Promise<void> {
  await bed.run(['qemu-img', 'compare', '-f', 'raw', '-F', 'raw', a, b]);
}

/** A client that has agreed on simple replies. */
export async function greeted({ socket }: NbdServer): Promise<RawClient> {
  const client = await RawClient.open(socket);
  await client.receive(18);
  client.send(Buffer.from([0, 0, 0, 3]));
  client.send(option(7, goData()));
  // Two infos and the end.
  await client.receive(20 + 12 + 20 + 14 + 20);
  return client;
}

/** The error of the reply that comes next. */
export async function errorOf(client: RawClient): Promise<number> {
  const head = await client.receive(16);
  if (!head) throw new Error('the connection has ended');
  expect(head.readUInt32BE(0)).toBe(0x67446698);
  return head.readUInt32BE(4);
}
