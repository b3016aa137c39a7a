/** A folder as an archive's place: its lock and note, and what of it is durable. */
import { afterEach, beforeEach, expect, spyOn, test } from 'bun:test';
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Lane } from '../../ffi/lane.ts';
import { FilesystemStore } from '../../src/archive/filesystem_store.ts';
import { type ArchivedDisk, writeArchive } from '../../src/archive/writer.ts';
import type { Log } from '../../src/log.ts';
import { makeArchive, noKek, STRIPE_BYTES } from './support.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'ubiblk-store-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

function openedFolders(): number[] {
  const isData = (fd: string) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) === join(folder, 'data');
    } catch {
      return false;
    }
  };
  return readdirSync('/proc/self/fd').filter(isData).map(Number);
}

test('the description that syncfs goes through is there before the first write', async () => {
  const store = new FilesystemStore(folder, 'an archive of the tests');
  const run = await store.begin();
  const [fd] = openedFolders();
  const sync = spyOn(Lane.prototype, 'syncAll');
  try {
    const description = 'a description';
    await store.commit({ description, meanwhile: null, indexName: 'x', index: Buffer.alloc(1) });
    expect(sync.mock.calls).toEqual([[fd as number]]);
  } finally {
    sync.mockRestore();
    await run.end();
    run.leave();
    store.close();
  }
  expect(openedFolders()).toEqual([]);
});

test("a note that stays as it is isn't written anew: it has the only copy of the keys", async () => {
  const store = new FilesystemStore(folder, 'an archive of the tests');
  const note = join(folder, 'resume.json');
  const begin = async (text: string) => {
    const run = await store.begin();
    await run.note(text);
    run.leave();
    expect(readFileSync(note, 'utf8')).toBe(text);
    return statSync(note, { bigint: true }).mtimeNs;
  };
  const before = await begin('keys');
  expect(await begin('keys')).toBe(before);
  expect(await begin('others')).not.toBe(before);
  store.close();
});

test('an archive that another run has made meanwhile is not replaced without --force', async () => {
  class LateStore extends FilesystemStore {
    override async begin() {
      (await makeArchive(folder, 1)).close();
      return await super.begin();
    }
  }
  const store = new LateStore(folder, 'an archive of the tests');
  const facts = { xts: 0, isBlockDevice: false } as ArchivedDisk['facts'];
  const disk = { facts, diskBytes: 0, stripeBytes: STRIPE_BYTES, headers: new Uint8Array(0) };
  const options = {
    shape: { format: 1, compression: { method: 'none' } },
    encrypted: false,
    kek: noKek,
    force: false,
    resume: false,
    signal: new AbortController().signal,
    progress: () => {},
  } as const;
  const writing = writeArchive({ ...disk, source: null }, store, options, {} as Log);
  await expect(writing).rejects.toThrow(/there is an archive in .* already; give --force/);
  store.close();
});
