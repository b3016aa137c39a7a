/** Metadata files on disk: what is written is read, in whole units, by one owner at a time. */
import { afterAll, expect, test } from 'bun:test';
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  copyFileSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { Secret } from '../../src/crypto/secret.ts';
import { expandXts, freeXts } from '../../src/crypto/xts.ts';
import { UserError } from '../../src/errors.ts';
import { Log } from '../../src/log.ts';
import { openMetadata } from '../../src/stripe/metadata_file.ts';
import { initMetadata, type NewMetadata } from '../../src/stripe/metadata_init.ts';
import { MetadataLayout, type MetadataVersion } from '../../src/stripe/metadata_layout.ts';
import { folders } from '../e2e/processes.ts';
import { need, testWith } from '../e2e/support.ts';
import { Random, seed } from '../random.ts';

const MIB = 1 << 20;
const folder = mkdtempSync(join(folders.disk ?? '/tmp', 'ubiblk-metadata-'));
const log = new Log({ level: 'error', format: 'human' }, 'test');
const keys = [1, 2].map((byte) => Secret.taking(new Uint8Array(32).fill(byte))) as [Secret, Secret];
const xts = expandXts(keys);
let count = 0;

afterAll(() => {
  freeXts(xts);
  rmSync(folder, { recursive: true, force: true });
});

const fresh = () => join(folder, `file${count++}.meta`);
/** Descriptors of this process. */
const descriptors = () => readdirSync('/proc/self/fd').length;
const progress = () => {};

async function make(path: string, more: Partial<NewMetadata> & { version?: MetadataVersion } = {}) {
  const { version = 1, ...rest } = more;
  const layout = rest.layout ?? new MetadataLayout(version, 11, 1500);
  const headers = rest.headers ?? new Uint8Array(layout.stripes).fill(4);
  const diskBytes = layout.stripes * layout.stripeBytes;
  const metadata = { path, layout, headers, diskBytes, xts: 0, force: false, progress, ...rest };
  await initMetadata(metadata, log);
  return metadata;
}

const serving = { directIo: true, writeThrough: false, xts: 0, use: 'serve' } as const;
const looking = { ...serving, use: 'look' } as const;

async function failure(work: Promise<unknown>): Promise<string> {
  const error = await work.then(
    () => undefined,
    (thrown) => thrown,
  );
  expect(error).toBeInstanceOf(UserError);
  return (error as UserError).message;
}

for (const version of [1, 2] as const) {
  for (const [name, handle] of [
    ['plain', 0],
    ['encrypted', xts],
  ] as const) {
    for (const direct of [true, false]) {
      const how = direct ? 'direct' : 'through the page cache';
      test(`version ${version}.0, ${name}, ${how}: updates are there afterwards (${seed})`, async () => {
        const random = new Random(seed);
        const path = fresh();
        const { diskBytes } = await make(path, { version, xts: handle });
        const options = { ...serving, xts: handle, directIo: direct, diskBytes };
        const first = await openMetadata(path, options, log);
        expect(first.headers.every((header) => header === 4)).toBe(true);
        const { layout, headers, store } = first;
        for (let round = 0; round < 20; round++) {
          const stripe = random.below(layout.stripes);
          headers[stripe] |= 1 + random.below(3);
          const { unitBytes } = store;
          const unit = new Uint8Array(unitBytes);
          const at = Math.floor(layout.sectorOffset(stripe) / unitBytes) * unitBytes;
          layout.encode(headers, at, unit);
          const before = Buffer.from(unit);
          await store.write(at, unit);
          // What is written stays as it was, so that it can be written again.
          expect(Buffer.compare(before, unit)).toBe(0);
        }
        await store.sync();
        await first.close();
        const second = await openMetadata(path, { ...options, use: 'look' }, log);
        expect(Buffer.compare(second.headers, headers)).toBe(0);
        await second.close();
        expect(readFileSync(path).includes('BDEV_UBI')).toBe(handle === 0);
      });
    }
  }
}

test('an encrypted file is the plain one, encrypted sector by sector from 0 on', async () => {
  const [plain, encrypted] = [fresh(), fresh()];
  await make(plain);
  await make(encrypted, { xts });
  const key = keys.map((secret) => Buffer.from(secret.reveal()).toString('hex')).join('');
  const script = `
    const { createDecipheriv } = require('node:crypto');
    const bytes = require('node:fs').readFileSync(process.argv[1]);
    for (let at = 0; at < bytes.length; at += 512) {
      const tweak = Buffer.alloc(16);
      tweak.writeBigUInt64LE(BigInt(at / 512), 8);
      const cipher = createDecipheriv('aes-256-xts', Buffer.from('${key}', 'hex'), tweak);
      cipher.update(bytes.subarray(at, at + 512)).copy(bytes, at);
    }
    require('node:fs').writeFileSync(process.argv[1] + '.plain', bytes);
  `;
  const done = spawnSync('node', ['-e', script, encrypted], { encoding: 'utf8' });
  expect(done.stderr).toBe('');
  expect(Buffer.compare(readFileSync(`${encrypted}.plain`), readFileSync(plain))).toBe(0);
});

test('a map of more than a mebibyte is written and read whole', async () => {
  const random = new Random(seed);
  const layout = new MetadataLayout(2, 6, 3 * MIB + 77);
  const headers = Uint8Array.from({ length: layout.stripes }, () => random.below(8));
  const path = fresh();
  const { diskBytes } = await make(path, { layout, headers, xts });
  const { store, ...read } = await openMetadata(path, { ...serving, xts, diskBytes }, log);
  expect(Buffer.compare(read.headers, headers)).toBe(0);
  const all = new Uint8Array(Math.ceil(layout.sizeBytes / store.unitBytes) * store.unitBytes);
  headers.fill(1, MIB);
  layout.encode(headers, 0, all);
  await store.write(0, all);
  await store.sync();
  await read.close();
  const again = await openMetadata(path, { ...looking, xts, diskBytes }, log);
  expect(Buffer.compare(again.headers, headers)).toBe(0);
  await again.close();
});

test('who serves is alone with the file; who looks is not in the way', async () => {
  const path = fresh();
  const { diskBytes } = await make(path);
  const first = await openMetadata(path, { ...serving, diskBytes }, log);
  let open = false;
  const waiting = openMetadata(path, { ...serving, diskBytes }, log).then((second) => {
    open = true;
    return second;
  });
  const look = await openMetadata(path, { ...looking, diskBytes }, log);
  expect(look.layout.stripes).toBe(1500);
  await look.close();
  const before = readFileSync(path);
  expect(await failure(make(path, { force: true }))).toMatch(/in use by another process/);
  expect(Buffer.compare(readFileSync(path), before)).toBe(0);
  expect(open).toBe(false);
  await first.close();
  await (await waiting).close();
}, 20_000);

test('what is wrong is said with the name of the file, which is closed', async () => {
  const path = fresh();
  const { diskBytes } = await make(path);
  const before = descriptors();
  const open = (at: string, more = {}) => {
    return failure(openMetadata(at, { ...serving, diskBytes, ...more }, log));
  };
  const absent = join(folder, 'absent');
  expect(await open(absent)).toBe(
    `'${absent}' does not exist; make it with 'ubiblk metadata init'`,
  );
  const empty = fresh();
  writeFileSync(empty, '');
  expect(await open(empty)).toMatch(/is empty; make it with 'ubiblk metadata init'/);
  writeFileSync(empty, Buffer.alloc(700));
  expect(await open(empty)).toMatch(/has 700 bytes, which is not a multiple of 512/);
  expect(await open(path, { xts })).toMatch(new RegExp(`^'${path}' is no metadata file, .* keys`));
  expect(await open(path, { diskBytes: diskBytes + 37 * MIB })).toMatch(/the disk has 1537 /);
  expect(await open(path, { diskBytes: MIB })).toMatch(/behind the disk's end/);
  chmodSync(path, 0o400);
  expect(await open(path)).toMatch(/may not be written/);
  chmodSync(path, 0o600);
  expect(descriptors()).toBe(before);
});

test('what an init that was stopped leaves is no metadata file, and needs no force', async () => {
  for (const handle of [0, xts]) {
    const path = fresh();
    const headers = new Uint8Array(1500).fill(7);
    const { diskBytes } = await make(path, { headers, xts: handle });
    expect(await failure(make(path, { xts: handle }))).toMatch(/1500 fetched and 1500 written/);
    const fd = openSync(path, 'r+');
    writeSync(fd, Buffer.alloc(512), 0, 512, 0);
    closeSync(fd);
    const stopped = openMetadata(path, { ...serving, xts: handle, diskBytes }, log);
    expect(await failure(stopped)).toMatch(/is no metadata file/);
    await make(path, { xts: handle });
    const made = await openMetadata(path, { ...looking, xts: handle, diskBytes }, log);
    expect(made.headers.every((header) => header === 4)).toBe(true);
    await made.close();
  }
});

test('a file that is larger keeps its size and gets zeroes, encrypted where the rest is', async () => {
  const path = fresh();
  const fd = openSync(path, 'wx');
  ftruncateSync(fd, 3 * MIB + 512);
  closeSync(fd);
  await make(path, { xts });
  expect(statSync(path).size).toBe(3 * MIB + 512);
  const bytes = readFileSync(path);
  for (let at = 0; at < bytes.length; at += 512) {
    expect(bytes.subarray(at, at + 512).every((byte) => byte === 0)).toBe(false);
  }
  const plain = fresh();
  copyFileSync(path, plain);
  await make(plain, { force: true });
  expect(
    readFileSync(plain)
      .subarray(2048)
      .every((byte) => byte === 0),
  ).toBe(true);
});

testWith(
  'on blocks of 4096 bytes whole blocks are written',
  [need.loop()],
  async () => {
    const file = fresh();
    writeFileSync(file, Buffer.alloc(64 << 10, 0));
    const made = spawnSync('losetup', ['-f', '--show', '-b', '4096', file], { encoding: 'utf8' });
    const device = made.stdout.trim();
    try {
      const { diskBytes, layout } = await make(device, { version: 2, xts });
      const metadata = await openMetadata(device, { ...serving, xts, diskBytes }, log);
      expect(metadata.store.unitBytes).toBe(4096);
      metadata.headers[1499] = 5;
      const unit = new Uint8Array(4096);
      layout.encode(metadata.headers, 0, unit);
      await metadata.store.write(0, unit);
      await metadata.store.sync();
      await metadata.close();
      const again = await openMetadata(device, { ...looking, xts, diskBytes }, log);
      expect([...again.headers.subarray(1498)]).toEqual([4, 5]);
      await again.close();
    } finally {
      spawnSync('losetup', ['-d', device]);
    }
  },
  20_000,
);
