/** Calls on files by threads of the shim: results come back to whoever asked, and lanes don't wait for each other. */
import { afterAll, expect, test } from 'bun:test';
import {
  closeSync,
  constants,
  existsSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { EBADF, EEXIST, EISDIR, ENODATA, ENOENT } from '../../ffi/errno.ts';
import { Lane } from '../../ffi/lane.ts';
import { openLibrary } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';

const { O_CREAT, O_DSYNC, O_RDWR, O_TRUNC } = constants;

openLibrary();
const folder = mkdtempSync(join(tmpdir(), 'ubiblk-lane-'));
const fd = openSync(join(folder, 'file'), 'wx+');
const BLOCK = 4096;
const BLOCKS = 1000;
ftruncateSync(fd, BLOCKS * BLOCK);
const memory = new NativeBuffer(BLOCKS * BLOCK);
const bytes = new Uint8Array(memory.window());
const part = (i: number) => ({ address: memory.address + i * BLOCK, length: BLOCK });
const blocks = Array.from({ length: BLOCKS }, (_, i) => i);

afterAll(() => {
  memory.free();
  closeSync(fd);
  rmSync(folder, { recursive: true });
});

test('each of many calls at once gets its own result', async () => {
  const lanes = [1, 4].map((threads) => new Lane('test', threads));
  for (const i of blocks) bytes.fill(i % 251, i * BLOCK, (i + 1) * BLOCK);
  const write = (i: number) => lanes[i % 2].write(fd, { ...part(i), length: 1 + i }, i * BLOCK);
  expect(await Promise.all(blocks.map(write))).toEqual(blocks.map((i) => 1 + i));
  bytes.fill(0);
  const read = (i: number) => lanes[i % 2].read(fd, { ...part(i), length: 1 + i }, i * BLOCK);
  expect(await Promise.all(blocks.map(read))).toEqual(blocks.map((i) => 1 + i));
  for (const i of blocks) expect(bytes[i * BLOCK + i]).toBe(i % 251);
  for (const lane of lanes) lane.close();
});

test('errors are results', async () => {
  const lane = new Lane('test', 1);
  expect(await lane.read(-1, part(0), 0)).toBe(-EBADF);
  expect(await lane.sync(-1)).toBe(-EBADF);
  expect(await lane.sync(fd)).toBe(0);
  lane.close();
});

test('a hole is told, not read', async () => {
  const lane = new Lane('test', 1);
  const empty = openSync(join(folder, 'empty'), 'wx+');
  ftruncateSync(empty, BLOCK);
  expect(await lane.readData(empty, part(0), 0)).toBe(-ENODATA);
  expect(await lane.closeFile(empty)).toBe(0);
  expect(await lane.closeFile(empty)).toBe(-EBADF);
  lane.close();
});

test('a file is read by its name, where there is room for it', async () => {
  const lane = new Lane('test', 2);
  const path = join(folder, 'named');
  writeFileSync(path, new Uint8Array(BLOCK).fill(7));
  bytes.fill(0, 0, 2 * BLOCK);
  expect(await lane.readFile(path, { address: memory.address, length: 100 })).toBe(BLOCK);
  expect(bytes[0]).toBe(0);
  expect(await lane.readFile(path, { address: memory.address, length: 2 * BLOCK })).toBe(BLOCK);
  expect(bytes.subarray(0, BLOCK + 1).indexOf(0)).toBe(BLOCK);
  expect(await lane.readFile(`${path}.none`, part(0))).toBe(-ENOENT);
  lane.close();
});

test('what is written out is there to its last byte', async () => {
  const lane = new Lane('test', 1);
  for (const flags of [O_TRUNC, O_TRUNC | O_DSYNC]) {
    const path = join(folder, 'written');
    const file = openSync(path, O_CREAT | O_RDWR | flags);
    for (const length of [1, BLOCK, 100 * BLOCK + 1]) {
      for (let i = 0; i < length; i++) bytes[i] = i % 251;
      expect(await lane.writeOut(file, { address: memory.address, length }, 5)).toBe(length);
      const there = readFileSync(path);
      expect(there.subarray(there.length - length)).toEqual(Buffer.from(bytes.subarray(0, length)));
    }
    closeSync(file);
  }
  expect(await lane.writeOut(-1, part(0), 0)).toBe(-EBADF);
  lane.close();
});

test('a file is made as a whole, or not at all', async () => {
  const lane = new Lane('test', 2);
  const [path, temporary] = ['made', 'made.tmp'].map((name) => join(folder, name));
  const from = { address: memory.address, length: 100 * BLOCK - 1 };
  for (const byte of [5, 6]) {
    bytes.fill(byte, 0, from.length);
    expect(await lane.makeFile(temporary, path, from)).toBe(0);
    expect(readFileSync(path)).toEqual(Buffer.alloc(from.length, byte));
    expect(statSync(path).mode & 0o777).toBe(0o600);
    expect(existsSync(temporary)).toBe(false);
  }
  // Its place is taken by a folder; its temporary one by a file, which isn't ours.
  const taken = join(folder, 'taken');
  mkdirSync(taken);
  expect(await lane.makeFile(temporary, taken, from)).toBe(-EISDIR);
  expect(existsSync(temporary)).toBe(false);
  writeFileSync(temporary, 'of somebody else');
  expect(await lane.makeFile(temporary, path, from)).toBe(-EEXIST);
  expect(readFileSync(temporary, 'utf8')).toBe('of somebody else');
  lane.close();
});

test('a closed lane takes nothing more', () => {
  const lane = new Lane('test', 1);
  lane.close();
  expect(() => lane.sync(fd)).toThrow("'test' is closed");
});
