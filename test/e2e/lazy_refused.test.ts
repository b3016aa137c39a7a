/**
 * What a lazy disk isn't served from: metadata, sources and files that don't go together, or that somebody
 * else uses. Each gets its sentence, and everything stays as it was.
 */

import { expect, test } from 'bun:test';
import { chmodSync, existsSync, readFileSync, truncateSync, writeFileSync } from 'node:fs';
import { crc32 } from 'node:zlib';
import { dump, ended, type Lazy, type LazyOptions, lazyDisk, qemuIo } from './lazy.ts';
import { binary, client } from './processes.ts';
import { Bed, qemuDisk, type Settings, testKeys } from './support.ts';

const MIB = 1 << 20;
const plain: LazyOptions = { shift: 11, sizeBytes: 8 * MIB, imageBytes: 4 * MIB };

/** A server that must not come up, and must leave everything as it was. */
async function refused(bed: Bed, argv: string[], sentence: RegExp, files: string[] = []) {
  const before = files.map((file) => Bun.hash(readFileSync(file)));
  const child = await bed.run(argv, { deadlineMs: 30_000, expect: 1 });
  const lines = child.stderr.text.split('\n').filter((line) => line.includes('ERROR'));
  expect(lines.length).toBe(1);
  expect(lines[0]).toMatch(sentence);
  expect(child.stderr.text).not.toMatch(/^\s+at /m);
  expect(child.stdout.text).toBe('');
  expect(files.map((file) => Bun.hash(readFileSync(file)))).toEqual(before);
}

interface Case {
  name: string;
  options?: Partial<LazyOptions>;
  /** Spoils what init has made. @returns settings that differ from those of init */
  spoil: (lazy: Lazy) => Settings | undefined;
  sentence: RegExp;
}

/** Changes bytes of a metadata file, and the CRC of its first sector where it has one. */
function patch(path: string, offset: number, ...bytes: number[]): void {
  const content = readFileSync(path);
  content.set(bytes, offset);
  if (content[9] === 2) content.writeUInt32LE(crc32(content.subarray(0, 508)), 508);
  writeFileSync(path, content);
}

const noSource = { image_path: '' };
const cases: Case[] = [
  {
    name: 'no metadata file',
    spoil: () => ({ metadata_path: '/nowhere/disk.meta' }),
    sentence: /'\/nowhere\/disk\.meta' does not exist; make it with 'ubiblk metadata init'/,
  },
  {
    name: 'an empty metadata file',
    spoil: ({ metadata }) => void truncateSync(metadata, 0),
    sentence: /disk\.meta' is empty; make it with 'ubiblk metadata init'/,
  },
  {
    name: 'something else',
    spoil: ({ metadata }) => void writeFileSync(metadata, Buffer.alloc(1024, 'x')),
    sentence: /disk\.meta' is no metadata file, or sector 0 is damaged; with other keys/,
  },
  {
    name: 'version 0.2',
    spoil: ({ metadata }) => void patch(metadata, 9, 0, 0, 2, 0),
    sentence: /disk\.meta' is of version 0\.2, .* \(Seed, v0\.2 and v0\.3\) .*; make it anew with/,
  },
  {
    name: 'version 3.0',
    spoil: ({ metadata }) => void patch(metadata, 9, 3, 0),
    sentence: /disk\.meta' is of version 3\.0, which this ubiblk doesn't know/,
  },
  {
    name: 'a damaged sector of version 2.0',
    options: { format: 2 },
    spoil: ({ metadata }) => {
      const bytes = readFileSync(metadata);
      bytes[512 + 3] ^= 1;
      writeFileSync(metadata, bytes);
      return undefined;
    },
    sentence: /disk\.meta' is damaged: the CRC of sector 1 is wrong/,
  },
  {
    name: 'metadata of a smaller disk',
    options: { shift: 6, sizeBytes: 15 * MIB },
    spoil: ({ disk }) => void truncateSync(disk, 17 * MIB),
    sentence:
      /disk\.meta' has room for 512 stripes, but the disk has 544 of 32768 bytes: .* has grown/,
  },
  {
    name: 'metadata of a larger disk',
    options: { imageBytes: 8 * MIB },
    spoil: ({ disk }) => void truncateSync(disk, 6 * MIB),
    sentence: /disk\.meta' records stripes behind the disk's end: .* has been larger, or/,
  },
  {
    name: 'metadata 2.0 of another disk size',
    options: { format: 2 },
    spoil: ({ disk }) => void truncateSync(disk, 9 * MIB),
    sentence: /disk\.meta' has room for 8 stripes, but the disk has 9 of 1048576 bytes/,
  },
  {
    name: 'other keys',
    options: { encrypted: true },
    spoil: () => ({ encryption_key: [...testKeys].reverse() }),
    sentence: /disk\.meta' is no metadata file, or .* with other keys than it was written with/,
  },
  {
    name: 'no keys',
    options: { encrypted: true },
    spoil: () => ({ encryption_key: [] }),
    sentence: /disk\.meta' is no metadata file, or .* or without any, it would look the same/,
  },
  {
    name: 'keys where there were none',
    spoil: () => ({ encryption_key: testKeys }),
    sentence: /disk\.meta' is no metadata file, or .* keys/,
  },
  {
    name: 'no source',
    spoil: () => noSource,
    sentence:
      /disk\.meta' says that stripes are still to be fetched, but no source .*; add the 'stripe_source'/,
  },
  {
    name: 'a source that is gone',
    spoil: () => ({ image_path: '/nowhere/image.raw' }),
    sentence:
      /'\/nowhere\/image\.raw' does not exist; name the image that the disk is to be filled from/,
  },
  {
    name: 'a smaller source',
    spoil: ({ image }) => void truncateSync(image, 3 * MIB),
    sentence:
      /source raw \(.*, size: 3145728 bytes\) has no stripe 3, which is still to be fetched from it/,
  },
  {
    name: 'an empty source',
    spoil: ({ image }) => void truncateSync(image, 0),
    sentence: /disk1\.raw' is empty; name the image/,
  },
  {
    name: 'a source larger than the disk',
    spoil: ({ image }) => void truncateSync(image, 9 * MIB),
    sentence:
      /source raw \(.*, size: 9437184 bytes\) is larger than the disk; is it the right one\?/,
  },
  {
    name: 'a source that is a folder',
    spoil: () => ({ image_path: '/tmp' }),
    sentence: /'\/tmp' is neither a regular file nor a block device/,
  },
  {
    name: 'a read-only disk with stripes to be fetched',
    spoil: ({ disk }) => void chmodSync(disk, 0o400),
    sentence:
      /disk0\.raw' may not be written, but 4 of its stripes are still to be fetched; allow it/,
  },
  {
    name: 'read-only metadata',
    spoil: ({ metadata }) => void chmodSync(metadata, 0o400),
    sentence: /disk\.meta' may not be written, but a server records there .*; allow it/,
  },
];

for (const { name, options, spoil, sentence } of cases) {
  test(`refused: ${name}`, async () => {
    await using bed = new Bed();
    const all = { ...plain, ...options };
    const lazy = await lazyDisk(bed, all);
    const keys: Settings = all.encrypted ? { encryption_key: testKeys } : {};
    const socket = bed.path('vhost.sock');
    const settings = { path: lazy.disk, socket, ...lazy.settings, ...keys, ...spoil(lazy) };
    const given = Object.entries(settings).filter(([, value]) => value.length !== 0);
    const config = bed.config(Object.fromEntries(given));
    const argv = [binary, 'serve', 'vhost', '--config', config];
    const files = [lazy.disk, lazy.metadata, lazy.image];
    await refused(bed, argv, sentence, files);
    await refused(bed, [...argv, '--check'], sentence, files);
    expect([socket, lazy.rpc].filter(existsSync)).toEqual([]);
  });
}

test("metadata, disk and image of a lazy disk that is served are nobody else's to write", async () => {
  await using bed = new Bed();
  const lazy = await lazyDisk(bed, plain);
  const server = await bed.serve(lazy.disk, lazy.settings);
  await ended(qemuIo(bed, server, 'write -P 3 0 1M'));
  const [another, third] = [bed.disk({ sizeBytes: 8 * MIB }), bed.disk({ sizeBytes: 8 * MIB })];
  const { metadata_path, image_path } = lazy.settings;
  const otherDisk = bed.config({ path: another, metadata_path, image_path });
  const init = (config: string) => [binary, 'metadata', 'init', '--config', config, '-s', '11'];
  const serve = (name: string, settings: Settings) => {
    const config = bed.config({ socket: bed.path(`${name}.sock`), ...settings });
    return [binary, 'serve', 'vhost', '--config', config];
  };
  const held = (file: string) => new RegExp(`${file}' is in use by another process`);
  // Each waits for a while, in case the server is about to end.
  await Promise.all([
    refused(bed, init(lazy.config), held('disk0.raw')),
    refused(bed, [...init(lazy.config), '--force'], held('disk0.raw')),
    refused(bed, [...init(otherDisk), '--force'], held('disk.meta')),
    refused(bed, serve('same', { path: lazy.disk, metadata_path, image_path }), held('disk0.raw')),
    refused(bed, serve('disk', { path: third, metadata_path, image_path }), held('disk.meta')),
    refused(bed, serve('image', { path: lazy.image }), held('disk1.raw')),
    refused(bed, serve('map', { path: lazy.metadata }), held('disk.meta')),
  ]);
  expect((await dump(bed, lazy)).fetched).toEqual([[0, 0]]);
  await ended(qemuIo(bed, server, 'read -P 3 0 1M', 'write -P 4 1M 1M'));
  expect((await dump(bed, lazy)).fetched).toEqual([[0, 1]]);
  await bed.crash(server);
  await refused(bed, init(lazy.config), /records 2 fetched and 0 written stripes/, [lazy.metadata]);
  await bed.run([...init(lazy.config), '--force']);
  expect((await dump(bed, lazy)).fetched).toEqual([]);
}, 60_000);

test('several lazy disks share an image', async () => {
  await using bed = new Bed();
  const lazy = await lazyDisk(bed, plain);
  const disks = [lazy.disk, bed.disk({ sizeBytes: 8 * MIB }), bed.disk({ sizeBytes: 5 * MIB })];
  const { image_path } = lazy.settings;
  const servers = await Promise.all(
    disks.map(async (path, i) => {
      const settings = { metadata_path: bed.path(`${i}.meta`), image_path, autofetch: true };
      await bed.run([binary, 'metadata', 'init', '--config', bed.config({ path, ...settings })]);
      return await bed.serve(path, settings);
    }),
  );
  for (const server of servers) {
    await bed.closed(server.child.pid, lazy.image, 10_000);
    await bed.stop(server);
  }
  const content = readFileSync(lazy.reference);
  for (const disk of disks) {
    expect(Buffer.compare(readFileSync(disk).subarray(0, content.length), content)).toBe(0);
  }
}, 60_000);

test('a read-only disk that has all of its stripes is served', async () => {
  await using bed = new Bed();
  const lazy = await lazyDisk(bed, { ...plain, settings: { autofetch: true } });
  const first = await bed.serve(lazy.disk, lazy.settings);
  await bed.closed(first.child.pid, lazy.image, 10_000);
  await bed.stop(first);
  chmodSync(lazy.disk, 0o400);
  const server = await bed.start(first.config, first.socket);
  const copy = bed.path('copy.raw');
  const device = qemuDisk(server.socket);
  await bed.run([client('qemu-img'), 'convert', '--image-opts', device, copy]);
  await bed.stop(server);
  expect(Buffer.compare(readFileSync(copy), readFileSync(lazy.disk))).toBe(0);
}, 60_000);
