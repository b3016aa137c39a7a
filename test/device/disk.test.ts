/** Which files make a disk, and what is known of them. */
import { afterAll, expect, test } from 'bun:test';
import {
  chmodSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Disk, type DiskOptions, openDisk, openNullDisk } from '../../src/device/disk.ts';
import { UserError } from '../../src/errors.ts';
import { Log } from '../../src/log.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubiblk-disk-'));
const log = new Log({ level: 'error', format: 'human' }, 'test');
let count = 0;

afterAll(() => rmSync(folder, { recursive: true, force: true }));

function file(sizeBytes: number): string {
  const path = join(folder, `disk${count++}`);
  writeFileSync(path, '');
  truncateSync(path, sizeBytes);
  return path;
}

async function open(path: string, more: Partial<DiskOptions> = {}): Promise<Disk> {
  const options: DiskOptions = {
    path,
    ioEngine: 'io_uring',
    directIo: false,
    writeThrough: false,
    ...more,
  };
  return await openDisk(options, log);
}

/** Descriptors of this process. */
const descriptors = () => readdirSync('/proc/self/fd').length;

test('a file of whole sectors is a disk of its size', async () => {
  for (const sizeBytes of [512, 1536, 1 << 20, 2 ** 42]) {
    const disk = await open(file(sizeBytes));
    expect(disk.facts).toMatchObject({ sizeBytes, readOnly: false, isBlockDevice: false });
    expect(disk.facts.logicalBlock).toBe(512);
    expect(Math.log2(disk.facts.physicalBlock) % 1).toBe(0);
    disk.sync();
    disk.close();
  }
});

test('opening, and what it probes, leaves the file as it is', async () => {
  const path = file(1 << 20);
  const bytes = Buffer.alloc(1 << 20, 0x5a);
  writeFileSync(path, bytes);
  for (const more of [{}, { directIo: true }, { writeThrough: true }]) {
    const disk = await open(path, more);
    disk.close();
    expect(statSync(path).size).toBe(1 << 20);
    expect(Buffer.compare(readFileSync(path), bytes)).toBe(0);
  }
});

test.each([
  ['that is not there', () => join(folder, 'nothing'), /does not exist; create/],
  ['that is empty', () => file(0), /is empty; give it the disk's size/],
  ['of half a sector', () => file(1000), /has 1000 bytes, .* grow it to 1024 bytes/],
  [
    'that is a folder',
    () => mkdirSync(join(folder, 'sub'), { recursive: true }) ?? join(folder, 'sub'),
    /neither a regular file nor a block device/,
  ],
  ['that is a character device', () => '/dev/zero', /neither a regular file nor a block device/],
])('a file %s is refused in a sentence, and closed', async (_, make, sentence) => {
  const path = make();
  const before = descriptors();
  const error = await open(path).catch((thrown) => thrown);
  expect(error).toBeInstanceOf(UserError);
  expect(error.message).toMatch(sentence);
  expect(error.message).toContain(`'${path}'`);
  expect(descriptors()).toBe(before);
});

test('a file that nobody may write is a read-only disk, for several readers at once', async () => {
  const path = file(4096);
  chmodSync(path, 0o444);
  const disk = await open(path);
  expect(disk.facts.readOnly).toBe(true);
  const second = await open(path);
  second.close();
  disk.sync();
  disk.close();
});

test('a disk is open once: the next one waits until it is closed', async () => {
  const path = file(4096);
  const first = await open(path);
  let opened = false;
  // By another name as well: the lock is the file's.
  const alias = `${path}.alias`;
  symlinkSync(path, alias);
  const second = open(alias).then((disk) => {
    opened = true;
    return disk;
  });
  await Bun.sleep(120);
  expect(opened).toBe(false);
  first.close();
  (await second).close();
});

test('write-through is told, and so is direct I/O with what it asks for', async () => {
  const through = await open(file(4096), { writeThrough: true });
  expect(through.facts.writeThrough).toBe(true);
  through.close();
  const direct = await open(file(1 << 20), { directIo: true });
  const { facts } = direct;
  if (facts.direct) {
    expect(facts.directMemoryAlign).toBeGreaterThanOrEqual(1);
    expect(facts.directOffsetAlign).toBeGreaterThanOrEqual(512);
    // Where sectors are too small for it, the same file is open without it.
    expect(facts.bufferedFd >= 0).toBe(facts.directOffsetAlign > 512);
  } else {
    expect([facts.directMemoryAlign, facts.directOffsetAlign]).toEqual([1, 1]);
  }
  direct.close();
});

test('closing gives every descriptor back', async () => {
  const path = file(1 << 20);
  (await open(path, { directIo: true })).close();
  const before = descriptors();
  for (let i = 0; i < 20; i++) (await open(path, { directIo: i % 2 === 0 })).close();
  expect(descriptors()).toBe(before);
});

test('the null disk has no file', () => {
  const disk = openNullDisk(2 ** 40);
  expect(disk.facts).toMatchObject({ fd: -1, sizeBytes: 2 ** 40 });
  disk.sync();
  disk.close();
});
