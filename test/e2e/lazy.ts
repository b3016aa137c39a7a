/** What the tests of lazy disks share: disks with images, images that fail, and a server's status. */

import { expect } from 'bun:test';
import { spawnSync } from 'node:child_process';
import { closeSync, openSync, readFileSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { createConnection } from 'node:net';
import { binary, type Child, client, within } from './processes.ts';
import {
  type Bed,
  type DiskOptions,
  qemuDisk,
  type Server,
  type Settings,
  seed,
  testKeys,
} from './support.ts';

export interface LazyOptions extends DiskOptions {
  /** 0: none. */
  imageBytes: number;
  imageKind?: DiskOptions['kind'];
  /** Of the stripe size in sectors. */
  shift: number;
  format?: number;
  settings?: Settings;
}

export interface Lazy {
  disk: string;
  image: string;
  /** A copy of the image. */
  reference: string;
  metadata: string;
  rpc: string;
  /** For {@link Bed.serve}. */
  settings: Settings;
  /** For commands. */
  config: string;
}

/**
 * A disk, an image, and metadata that says that all of the image is still to be fetched. The disk's
 * stripes of the image hold noise, so that it shows which of them was not filled, or not to its end.
 */
export async function lazyDisk(bed: Bed, options: LazyOptions): Promise<Lazy> {
  const { imageBytes, imageKind, shift, format = 1, settings = {}, ...more } = options;
  const disk = bed.disk(more);
  const stripeBytes = 512 << shift;
  const stripes = Math.ceil(imageBytes / stripeBytes);
  bed.fill(disk, Math.min(stripes * stripeBytes, more.sizeBytes ?? 64 << 20), seed + 1);
  const image = bed.disk({ sizeBytes: imageBytes, kind: imageKind });
  const source: Settings = imageBytes > 0 ? { image_path: image } : {};
  bed.fill(image, imageBytes, seed);
  const reference = bed.path('reference.raw');
  writeFileSync(reference, '');
  bed.fill(reference, imageBytes, seed);
  const metadata = bed.path('disk.meta');
  const rpc = bed.path('rpc.sock');
  const all = { metadata_path: metadata, ...source, rpc_socket_path: rpc, ...settings };
  const keys: Settings = more.encrypted ? { encryption_key: testKeys } : {};
  const config = bed.config({ path: disk, ...keys, ...all });
  const argv = [binary, 'metadata', 'init', '--config', config, '-s', String(shift)];
  await bed.run([...argv, '--format', String(format)]);
  return { disk, image, reference, metadata, rpc, settings: all, config };
}

/** Lists are pairs of first and last stripe. */
export interface Dump {
  stripes: { total: number; fetched: number; written: number; hasSource: number; missing: number };
  fetched: [number, number][];
  written: [number, number][];
  hasSource: [number, number][];
}

/** `ubiblk metadata dump --json`. */
export async function dump(bed: Bed, { config }: Pick<Lazy, 'config'>): Promise<Dump> {
  const { stdout } = await bed.run([binary, 'metadata', 'dump', '--config', config, '--json']);
  return JSON.parse(stdout.text);
}

/** The stripes in one of a dump's lists. */
export function numbers(list: [number, number][]): Set<number> {
  return new Set(
    list.flatMap(([first, last]) => Array.from({ length: last - first + 1 }, (_, i) => first + i)),
  );
}

/** What vhost-check has of a sector that was never written to. */
const UNTOUCHED = 0x80000000;

/**
 * The stripes of which a sector was written to or zeroed.
 *
 * @param state of vhost-check
 * @param known only by requests that were answered, or, with `cache=1`, flushed
 */
export function touched(state: string, shift: number, known: 'answered' | 'sent'): Set<number> {
  const words = readFileSync(state);
  const stripes = new Set<number>();
  for (let sector = 0; sector < words.length / 8; sector++) {
    const value = words.readUInt32LE(sector * 8 + (known === 'sent' ? 4 : 0));
    if (value !== UNTOUCHED) stripes.add(sector >> shift);
  }
  return stripes;
}

/** Takes an image away from whoever has it open, and gives it back: a file, or a loop device's file. */
export class Outage {
  private readonly file: string;
  private readonly content: Buffer;

  constructor(image: string) {
    this.file = image;
    if (image.startsWith('/dev/')) {
      const found = spawnSync('losetup', ['-nO', 'BACK-FILE', image], { encoding: 'utf8' });
      this.file = found.stdout.trim();
    }
    this.content = readFileSync(this.file);
  }

  begin(): void {
    truncateSync(this.file, 0);
  }

  end(): void {
    const fd = openSync(this.file, 'r+');
    const { content } = this;
    for (let at = 0; at < content.length; )
      at += writeSync(fd, content, at, content.length - at, at);
    closeSync(fd);
  }
}

export interface Failing {
  stripe: number;
  attempts: number;
  message: string;
}

export interface SourceStatus {
  description: string;
  in_use: boolean;
  stripes: number;
  bytes_read: number;
  bytes_shared: number;
  bytes_zero: number;
  bytes_from_image: number;
  failures: number;
  connections: { open: number; most: number; problem: string | null } | null;
}

export interface Status {
  stripes: { total: number; source: number; no_source: number; fetched: number };
  failing: Failing[];
  failing_count: number;
  slow: { stripe: number; seconds: number }[];
  queued: number;
  in_flight: number;
  autofetch: boolean;
  source: SourceStatus | null;
  metadata_failing: boolean;
  metadata: { attempts: number; message: string | null; pending: number };
}

/** One answer after the other. */
export async function* statuses(rpc: string): AsyncGenerator<Status> {
  const socket = createConnection(rpc);
  const request = '{"command":"status"}\n';
  socket.on('connect', () => socket.write(request));
  let text = '';
  for await (const part of socket) {
    text += part;
    if (!text.endsWith('\n')) continue;
    yield JSON.parse(text).status;
    text = '';
    socket.write(request);
  }
}

/** The server's status once it is as wanted. */
export async function statusWhen(
  server: Server,
  rpc: string,
  wanted: (status: Status) => boolean,
  deadlineMs = 30_000,
): Promise<Status> {
  let last: Status | undefined;
  const find = async () => {
    for await (last of statuses(rpc)) if (wanted(last)) return last;
    throw new Error(`no more answers: ${server.child.report()}`);
  };
  const describe = () => `${JSON.stringify(last)} ${server.child.report()}`;
  return await within(find(), deadlineMs, describe);
}

/** The server's status now. */
export async function statusNow(server: Server, rpc: string): Promise<Status> {
  return await statusWhen(server, rpc, () => true);
}

/** Runs qemu-io commands; a pattern that doesn't match makes it fail. */
export function qemuIo(bed: Bed, server: Server, ...commands: string[]): Child {
  const argv = commands.flatMap((command) => ['-c', command]);
  return bed.spawn([client('qemu-io'), '--image-opts', qemuDisk(server.socket), ...argv]);
}

/** A client's end; any other exit status than `status` throws. */
export async function ended(child: Child, status = 0): Promise<void> {
  const found = await child.exit(30_000);
  if (found !== status) throw new Error(`exit ${found}, expected ${status}: ${child.report()}`);
  expect(child.stdout.text).not.toContain('Pattern verification failed');
}

/** Waits until a server has tried a stripe `attempts` times in vain. @returns what it tells of it */
export async function failed(
  server: Server,
  rpc: string,
  attempts = 1,
  stripe?: number,
): Promise<Failing> {
  const find = ({ failing }: Status) =>
    failing.find((of) => of.attempts >= attempts && (stripe ?? of.stripe) === of.stripe);
  const status = await statusWhen(server, rpc, (now) => find(now) !== undefined);
  return find(status) as Failing;
}
