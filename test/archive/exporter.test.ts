/** Exports that are interrupted, and what goes on from there. */
import { afterEach, beforeEach, expect, spyOn, test } from 'bun:test';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Lane } from '../../ffi/lane.ts';
import { exportArchive } from '../../src/archive/exporter.ts';
import { Archive } from '../../src/archive/reader.ts';
import { makeArchive, noKek, STRIPE_BYTES } from './support.ts';

const STRIPES = 40;
const EIO = 5;

let folder: string;
let image: string;
let archive: Archive;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'ubiblk-export-'));
  image = join(folder, 'image.raw');
  archive = await Archive.open(await makeArchive(join(folder, 'archive'), STRIPES), noKek);
});
afterEach(() => {
  archive.close();
  archive.store.close();
  rmSync(folder, { recursive: true });
});

/** @param until is interrupted when so many stripes are there */
async function exported(until = Number.POSITIVE_INFINITY) {
  const abort = new AbortController();
  let done = 0;
  const progress = () => {
    if (++done === until) abort.abort(new Error('interrupted'));
  };
  return await exportArchive(archive, { path: image, force: true, signal: abort.signal, progress });
}

function isWhole(): boolean {
  const expected = Buffer.concat(
    Array.from({ length: STRIPES }, (_, stripe) => Buffer.alloc(STRIPE_BYTES, stripe + 1)),
  );
  return readFileSync(image).equals(expected);
}

test('an export goes on where it was interrupted', async () => {
  await expect(exported(20)).rejects.toThrow('interrupted');
  const { kept, written } = await exported();
  expect(kept).toBeGreaterThanOrEqual(20);
  expect(kept + written).toBe(STRIPES);
  expect(isWhole()).toBe(true);
});

test('a note whose image is gone is not believed', async () => {
  await expect(exported(20)).rejects.toThrow('interrupted');
  rmSync(`${image}.partial`);
  expect((await exported()).kept).toBe(0);
  expect(isWhole()).toBe(true);
});

test('what a sync lost is not noted as there, though the next sync succeeds', async () => {
  const sync = spyOn(Lane.prototype, 'sync').mockImplementationOnce(async () => -EIO);
  // Notes are due at once.
  let now = 0;
  const clock = spyOn(performance, 'now').mockImplementation(() => (now += 10_000));
  try {
    await expect(exported()).rejects.toThrow(/can't be written: EIO/);
  } finally {
    sync.mockRestore();
    clock.mockRestore();
  }
  expect(existsSync(`${image}.partial.note`)).toBe(false);
  expect((await exported()).kept).toBe(0);
  expect(isWhole()).toBe(true);
});
