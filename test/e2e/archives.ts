/** What the tests of archives share: disks of every kind of content, places for archives, an S3 server. */
import { createCipheriv } from 'node:crypto';
import { closeSync, ftruncateSync, openSync, writeFileSync, writeSync } from 'node:fs';
import { createServer } from 'node:net';
import { binary, Child, client, tool, within } from './processes.ts';
import { type Bed, qemuDisk, Random, type Settings, testKeys } from './support.ts';

/** Stripes of 64 KiB: many in a small disk. */
export const SHIFT = 7;
export const STRIPE_BYTES = 512 << SHIFT;

export const CONTENTS = ['random', 'zero', 'sparse', 'partial', 'repeated'] as const;
export type Content = (typeof CONTENTS)[number];

/** Writes a disk's content: `partial` ends within a stripe, `repeated` has equal stripes. */
export function fillDisk(path: string, content: Content, sizeBytes: number, start: number): void {
  const fd = openSync(path, 'r+');
  ftruncateSync(fd, 0);
  const random = new Random(start);
  const stripe = Buffer.alloc(STRIPE_BYTES);
  const noise = () => {
    for (let at = 0; at < stripe.length; at += 4) stripe.writeUInt32LE(random.next(), at);
    // Half of it compresses.
    stripe.fill('of a disk ', 0, stripe.length / 2);
  };
  noise();
  for (let at = 0; content !== 'zero' && at < sizeBytes; at += STRIPE_BYTES) {
    if (content === 'sparse' && random.below(3) > 0) continue;
    if (content !== 'repeated' || random.below(4) === 0) noise();
    writeSync(fd, stripe, 0, Math.min(STRIPE_BYTES, sizeBytes - at), at);
  }
  ftruncateSync(fd, sizeBytes);
  closeSync(fd);
}

export function sizeOf(content: Content, stripes: number): number {
  return stripes * STRIPE_BYTES - (content === 'partial' ? STRIPE_BYTES - 3 * 512 : 0);
}

/** A disk and the configuration that archives it. */
export async function archivedDisk(
  bed: Bed,
  plain: string,
  { encrypted = false, settings = {} as Settings } = {},
): Promise<{ disk: string; config: string }> {
  const disk = encrypted ? bed.cipher(plain) : plain;
  const keys: Settings = encrypted ? { encryption_key: testKeys } : {};
  const metadata = `${disk}.meta`;
  const config = bed.config({ path: disk, metadata_path: metadata, ...keys, ...settings });
  await bed.run([binary, 'metadata', 'init', '--config', config, '-s', String(SHIFT), '--force']);
  return { disk, config };
}

export const archiveKek = {
  method: 'aes256-gcm',
  key: Buffer.alloc(32, 7).toString('base64'),
  init_vector: Buffer.alloc(12, 8).toString('base64'),
  auth_data: Buffer.from('archives').toString('base64'),
};

/** A KEK file, and what it wraps: each base64 text of a mapping. */
export function kekFile(bed: Bed, method: 'none' | 'aes256-gcm' = 'aes256-gcm') {
  const file = bed.path('kek.yaml');
  const [key, nonce, aad] = [Buffer.alloc(32, 3), Buffer.alloc(12, 4), Buffer.from('of the tests')];
  const parts = { key, init_vector: nonce, auth_data: aad };
  const lines = Object.entries(parts).map(
    ([name, part]) => `${name}: ${part.toString('base64')}\n`,
  );
  const text = `method: ${method}\n${method === 'none' ? '' : lines.join('')}`;
  writeFileSync(file, text, { mode: 0o600 });
  const wrapOne = (plain: string) => {
    const cipher = createCipheriv('aes-256-gcm', key, nonce).setAAD(aad);
    const wrapped = [cipher.update(plain, 'base64'), cipher.final(), cipher.getAuthTag()];
    return Buffer.concat(wrapped).toString('base64');
  };
  const wrap = (plain: Record<string, string>) =>
    Object.fromEntries(Object.entries(plain).map(([name, text]) => [name, wrapOne(text)]));
  return { file, wrap };
}

/** Where an archive is, as the fields of `--target-config`. */
export type Place = Record<string, unknown>;

export function targetConfig(bed: Bed, place: Place): string {
  return bed.config(place as Settings);
}

export function folderPlace(bed: Bed, name = 'archive'): Place {
  return { type: 'filesystem', path: bed.path(name), archive_kek: archiveKek };
}

/** Runs `ubiblk archive ...` and returns what it printed. */
export async function archive(
  bed: Bed,
  argv: string[],
  options: { expect?: number; deadlineMs?: number } = {},
): Promise<{ stdout: string; stderr: string }> {
  const child = await bed.run([binary, 'archive', ...argv], options);
  return { stdout: child.stdout.text, stderr: child.stderr.text };
}

/** An empty disk that is to come from an archive. */
export async function lazyDisk(
  bed: Bed,
  place: Place,
  sizeBytes: number,
  { encrypted = false, autofetch = false } = {},
): Promise<{ disk: string; settings: Settings }> {
  const disk = bed.disk({ sizeBytes, encrypted });
  const keys: Settings = encrypted ? { encryption_key: testKeys } : {};
  const settings: Settings = {
    metadata_path: `${disk}.meta`,
    stripe_source: { source: 'archive', ...place } as unknown as string,
    copy_on_read: true,
    autofetch,
  };
  const config = bed.config({ path: disk, ...keys, ...settings });
  await bed.run([binary, 'metadata', 'init', '--config', config, '-s', String(SHIFT)]);
  return { disk, settings };
}

/** A lazy disk that is to come from an archive, served; all of it must be as an image. */
export async function compareLazily(
  bed: Bed,
  place: Place,
  image: string,
  sizeBytes: number,
  options: { encrypted?: boolean; autofetch?: boolean } = {},
): Promise<void> {
  const { disk, settings } = await lazyDisk(bed, place, sizeBytes, options);
  const server = await bed.serve(disk, settings);
  const raw = `driver=raw,file.driver=file,file.filename=${image}`;
  const served = qemuDisk(server.socket);
  await bed.run([client('qemu-img'), 'compare', '--image-opts', raw, served]);
  await bed.stop(server);
}

/** moto, in a process of its own; `url` has an address, so that buckets are parts of paths. */
export class S3Server {
  private constructor(
    readonly child: Child,
    readonly url: string,
  ) {}

  static async start(): Promise<S3Server> {
    const port = await freePort();
    const child = new Child([tool('s3-server'), String(port)]);
    await child.said(/Running on http:/, 120_000, 0, child.stderr);
    return new S3Server(child, `http://127.0.0.1:${port}`);
  }

  /** Makes an empty bucket. */
  async bucket(name: string): Promise<void> {
    const answer = await fetch(`${this.url}/${name}`, { method: 'PUT' });
    if (!answer.ok) throw new Error(`the bucket '${name}' can't be made: ${answer.status}`);
  }

  place(bucket: string, more: Place = {}): Place {
    return {
      type: 's3',
      bucket,
      prefix: 'debian/12',
      endpoint: this.url,
      region: 'us-east-1',
      credentials: {
        access_key_id: Buffer.from('AKIAEXAMPLE').toString('base64'),
        secret_access_key: Buffer.from('a secret of the tests').toString('base64'),
      },
      archive_kek: archiveKek,
      ...more,
    };
  }

  async stop(): Promise<void> {
    await this.child.destroy(false);
  }
}

async function freePort(): Promise<number> {
  const server = createServer();
  const { promise, resolve } = Promise.withResolvers<void>();
  server.listen(0, '127.0.0.1', resolve);
  await within(promise, 10_000, () => 'a free port');
  const { port } = server.address() as { port: number };
  await new Promise((done) => server.close(done));
  return port;
}
