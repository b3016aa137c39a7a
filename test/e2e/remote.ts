/** What the tests of remote stripes share: stripe servers, and disks that are to be filled from them. */

import { expect } from 'bun:test';
import { binary, type Child } from './processes.ts';
import { type Bed, type Settings, testKeys } from './support.ts';

export const MIB = 1 << 20;
export const secret = Buffer.alloc(32, 9);
export const psk: Settings = { psk_identity: 'hosts', psk_secret: secret.toString('base64') };

export interface StripeServer {
  child: Child;
  address: string;
  /** Of `--server-config`. */
  config: string;
}

/** Starts `ubiblk serve stripes` of a disk; port 0 is any that is free. */
export async function serveStripes(
  bed: Bed,
  disk: string,
  { encrypted = false, tls = true, port = 0, more = {} as Settings, under = [] as string[] } = {},
): Promise<StripeServer> {
  const keys: Settings = encrypted ? { encryption_key: testKeys } : {};
  const config = bed.config({ path: disk, ...keys, ...more });
  const key = tls ? psk : {};
  const listen = bed.config({ address: `127.0.0.1:${port}`, ...key });
  const argv = [binary, 'serve', 'stripes', '--config', config, '--listen-config', listen];
  const child = bed.spawn([...under, ...argv]);
  const [, address] = await child.said(/ at (127\S+)/, 10_000, 0, child.stderr);
  return { child, address, config: bed.config({ address, ...key }) };
}

/** An empty disk with metadata that says that all of it is to come from a server. */
export async function emptyDisk(
  bed: Bed,
  { address }: Pick<StripeServer, 'address'>,
  sizeBytes: number,
  {
    encrypted = false,
    tls = true,
    shift = 11,
    settings = {} as Settings,
    /** More of its stripe source. */
    source: more = {} as Settings,
  } = {},
) {
  const disk = bed.disk({ sizeBytes, encrypted });
  const keys: Settings = encrypted ? { encryption_key: testKeys } : {};
  const source = { source: 'remote', address, ...(tls ? psk : {}), ...more };
  const all = {
    metadata_path: bed.path('copy.meta'),
    stripe_source: source as unknown as string,
    copy_on_read: true,
    rpc_socket_path: bed.path('rpc.sock'),
    ...settings,
  };
  const config = bed.config({ path: disk, ...keys, ...all });
  await bed.run([binary, 'metadata', 'init', '--config', config, '-s', String(shift)]);
  return { disk, settings: all, config };
}

export async function endStripes(server: StripeServer): Promise<void> {
  server.child.signal('SIGTERM');
  expect(await server.child.exit(10_000)).toBe(0);
}

/** Waits until `ubiblk rpc SOCKET status` has said that everything is fetched. */
export async function allFetched(bed: Bed, rpc: string): Promise<void> {
  const deadline = Date.now() + 60_000;
  for (;;) {
    const { stdout } = await bed.run([binary, 'rpc', rpc, 'status', '--json']);
    const { stripes } = JSON.parse(stdout.text).status;
    if (stripes.fetched === stripes.source) return;
    if (Date.now() > deadline) throw new Error(`${stdout.text}\n${bed.report()}`);
  }
}
