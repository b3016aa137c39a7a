/** An archive as a source: what several ask for at once. */
import { expect, test } from 'bun:test';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { NativeBuffer } from '../../ffi/memory.ts';
import { ArchiveSource } from '../../src/archive/archive_source.ts';
import { Archive } from '../../src/archive/reader.ts';
import { makeArchive, noKek, STRIPE_BYTES } from './support.ts';

test('the end of a server waits no longer than a while for a read that hangs', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'ubiblk-source-'));
  const store = await makeArchive(folder, 1);
  const source = new ArchiveSource(await Archive.open(store, noKek), STRIPE_BYTES);
  const begun = Promise.withResolvers<void>();
  store.fetch = () => {
    begun.resolve();
    return new Promise(() => {});
  };
  const memory = new NativeBuffer(STRIPE_BYTES);
  const bytes = new Uint8Array(memory.window());
  void source.read(0, { address: memory.address, bytes });
  await begun.promise;
  await source.close();
  rmSync(folder, { recursive: true });
});

test.each([false, true])(
  'several ask for the same stripe at once; encrypted: %p',
  async (encrypted) => {
    const folder = mkdtempSync(join(tmpdir(), 'ubiblk-source-'));
    const store = await makeArchive(folder, 3, encrypted);
    const source = new ArchiveSource(await Archive.open(store, noKek), STRIPE_BYTES);
    const asked = [2, 1, 1, 2, 1, 0];
    const memory = new NativeBuffer(asked.length * STRIPE_BYTES);
    const read = asked.map(async (stripe, i) => {
      const address = memory.address + i * STRIPE_BYTES;
      const bytes = new Uint8Array(memory.window(i * STRIPE_BYTES, STRIPE_BYTES));
      expect(await source.read(stripe, { address, bytes })).toBe(true);
      return Buffer.compare(bytes, Buffer.alloc(STRIPE_BYTES, stripe + 1));
    });
    expect(await Promise.all(read)).toEqual(asked.map(() => 0));
    await source.close();
    memory.free();
    rmSync(folder, { recursive: true });
  },
);

test('who gives up is not kept by a fetch that hangs, and gets nothing of it afterwards', async () => {
  const folder = mkdtempSync(join(tmpdir(), 'ubiblk-source-'));
  const store = await makeArchive(folder, 1);
  const source = new ArchiveSource(await Archive.open(store, noKek), STRIPE_BYTES);
  const begun = Promise.withResolvers<void>();
  let answered = Promise.withResolvers<void>();
  const fetch = store.fetch.bind(store);
  let fetched = 0;
  store.fetch = async (name, to) => {
    begun.resolve();
    await answered.promise;
    const length = await fetch(name, to);
    fetched++;
    return length;
  };
  const memory = new NativeBuffer(2 * STRIPE_BYTES);
  const bufferOf = (offset: number) => {
    const bytes = new Uint8Array(memory.window(offset, STRIPE_BYTES));
    return { address: memory.address + offset, bytes };
  };
  const [mine, other] = [bufferOf(0), bufferOf(STRIPE_BYTES)];
  const abort = new AbortController();
  const givenUp = source.read(0, mine, abort.signal);
  const wanted = source.read(0, other);
  await begun.promise;
  abort.abort();
  await expect(givenUp).rejects.toThrow('given up');
  answered.resolve();
  expect(await wanted).toBe(true);
  answered = Promise.withResolvers<void>();
  await expect(source.read(0, mine, abort.signal)).rejects.toThrow('given up');
  // The memory that it goes into stays for as long.
  const closed = source.close();
  answered.resolve();
  await closed;
  expect(fetched).toBe(2);
  expect(Buffer.compare(mine.bytes, Buffer.alloc(STRIPE_BYTES))).toBe(0);
  expect(Buffer.compare(other.bytes, Buffer.alloc(STRIPE_BYTES, 1))).toBe(0);
  memory.free();
  rmSync(folder, { recursive: true });
});
