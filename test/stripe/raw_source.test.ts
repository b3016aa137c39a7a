/** Stripes from a raw image: its holes, its end, and what is left of it when somebody cuts it. */
import { afterAll, afterEach, expect, test } from 'bun:test';
import {
  closeSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  truncateSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { openLibrary } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import { Log } from '../../src/log.ts';
import { openRawSource, type RawSource } from '../../src/stripe/sources/raw.ts';
import { folders } from '../e2e/processes.ts';

const STRIPE = 65536;
const folder = mkdtempSync(join(folders.disk ?? '/tmp', 'ubiblk-raw-'));
const path = join(folder, 'image.raw');
const log = new Log({ level: 'error', format: 'human' }, 'test');
openLibrary();
const memory = new NativeBuffer(STRIPE);
const bytes = new Uint8Array(memory.window());
let source: RawSource;

afterAll(() => {
  memory.free();
  rmSync(folder, { recursive: true });
});
afterEach(() => source.close());

/** An image with data in the stripes that are named: each byte is the stripe's number and one. */
async function image(sizeBytes: number, data: number[], directIo = false): Promise<void> {
  rmSync(path, { force: true });
  const fd = openSync(path, 'wx');
  for (const stripe of data) {
    const at = stripe * STRIPE;
    const part = Buffer.alloc(Math.min(STRIPE, sizeBytes - at), stripe + 1);
    writeSync(fd, part, 0, part.length, at);
  }
  closeSync(fd);
  truncateSync(path, sizeBytes);
  source = await openRawSource({ path, kept: false, stripeBytes: STRIPE, directIo }, log);
}

/** Reads a stripe over noise. @returns whether the buffer was filled */
function read(stripe: number, length = STRIPE): Promise<boolean> {
  bytes.fill(0xee);
  const buffer = { address: memory.address, bytes: bytes.subarray(0, length) };
  return source.read(stripe, buffer);
}

/** The runs of equal bytes in the buffer, as [byte, count]. */
function runs(length = STRIPE): [number, number][] {
  const found: [number, number][] = [];
  for (const byte of bytes.subarray(0, length)) {
    const last = found.at(-1);
    if (last?.[0] === byte) last[1]++;
    else found.push([byte, 1]);
  }
  return found;
}

for (const directIo of [false, true]) {
  test(`stripes, and zeroes behind the end: direct ${directIo}`, async () => {
    await image(2 * STRIPE + 1536, [0, 1, 2], directIo);
    expect([0, 1, 2, 3].map((stripe) => source.has(stripe))).toEqual([true, true, true, false]);
    expect(await read(1)).toBe(true);
    expect(runs()).toEqual([[2, STRIPE]]);
    expect(await read(2)).toBe(true);
    expect(runs()).toEqual([
      [3, 1536],
      [0, STRIPE - 1536],
    ]);
    // The disk's last stripe may end before the image's stripe.
    expect(await read(2, 1024)).toBe(true);
    expect(runs(1024)).toEqual([[3, 1024]]);
    expect(bytes[1024]).toBe(0xee);
  });
}

test('holes are told, not read', async () => {
  await image(6 * STRIPE, [1, 3]);
  const filled: boolean[] = [];
  for (let stripe = 0; stripe < 6; stripe++) filled.push(await read(stripe));
  expect(filled).toEqual([false, true, false, true, false, false]);
});

test('what was cut off is missing, and no hole', async () => {
  await image(6 * STRIPE, [1, 3]);
  truncateSync(path, 3 * STRIPE + 512);
  for (const stripe of [3, 4, 5]) {
    await expect(read(stripe)).rejects.toThrow(`'${path}' ends before `);
  }
  expect(await read(1)).toBe(true);
  expect(await read(2)).toBe(false);
  truncateSync(path, 0);
  for (const stripe of [0, 1, 2]) await expect(read(stripe)).rejects.toThrow('it was cut');
  truncateSync(path, 6 * STRIPE);
  expect(await read(5)).toBe(false);
});

test('its descriptor is closed', async () => {
  const before = readdirSync('/proc/self/fd').length;
  await image(STRIPE, [0]);
  await source.close();
  expect(readdirSync('/proc/self/fd').length).toBe(before);
  await image(STRIPE, [0]);
});
