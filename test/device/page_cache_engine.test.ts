/** The engine for files in the page cache: what it does at once, and what it leaves to the ring. */
import { afterAll, afterEach, beforeEach, expect, test } from 'bun:test';
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FileDevice } from '../../src/device/file_device.ts';
import { PageCacheEngine } from '../../src/device/page_cache_engine.ts';
import { READ, RequestTable, WRITE } from '../../src/device/request.ts';
import { SyncEngine } from '../../src/device/sync_engine.ts';
import { diskFacts } from '../vhost/fake_guest.ts';
import { FakeEngine, Requester } from './fake_engine.ts';

const DISK_BYTES = 1 << 20;
const folder = mkdtempSync(join(tmpdir(), 'ubiblk-page-cache-'));
const path = join(folder, 'disk.raw');
afterAll(() => rmSync(folder, { recursive: true, force: true }));

let ring: FakeEngine;
let requester: Requester;
let device: FileDevice;
let fd: number;

beforeEach(() => {
  writeFileSync(path, new Uint8Array(DISK_BYTES).fill(0x11));
  fd = openSync(path, 'r+');
  // The ring is a disk of its own with other bytes, which shows who has read.
  ring = new FakeEngine(DISK_BYTES);
  ring.disk.fill(0x22);
  const table = new RequestTable();
  requester = new Requester(table);
  const engine = new PageCacheEngine(ring, new SyncEngine([fd]), [fd]);
  const facts = diskFacts({ direct: false, sizeBytes: DISK_BYTES });
  device = new FileDevice(engine, facts, table, () => {});
});

afterEach(() => {
  closeSync(fd);
  requester.free();
});

/** Submits a read; who has answered: 'cache' at once, 'ring' once it completes. */
function read(): string {
  const done = requester.done.length;
  requester.bytes.fill(0, 0, 4096);
  device.submit(requester.make(READ, 0, [[0, 4096]]));
  const atOnce = requester.done.length > done;
  ring.complete();
  expect(requester.done.length).toBe(done + 1);
  expect(requester.bytes[4095]).toBe(atOnce ? 0x11 : 0x22);
  return atOnce ? 'cache' : 'ring';
}

test('the first read of a batch is answered at once, the others go to the ring', () => {
  ring.batch = 1;
  expect([read(), read(), read()]).toEqual(['cache', 'ring', 'ring']);
  ring.batch = 2;
  expect([read(), read()]).toEqual(['cache', 'ring']);
});

test('a write is done at once, a durable one by the ring', () => {
  requester.bytes.fill(0x33, 0, 4096);
  device.submit(requester.make(WRITE, 0, [[0, 4096]]));
  expect(requester.done.length).toBe(1);
  expect(ring.calls).toEqual([]);
  device.submit(requester.make(WRITE, 0, [[0, 4096]], { durable: true }));
  expect(requester.done.length).toBe(1);
  ring.complete();
  expect(requester.done.length).toBe(2);
  expect(ring.calls.length).toBe(1);
});
