/** The layers for debugging on top of a queue's stack: what they record, and what goes down. */
import { afterEach, beforeEach, expect, test } from 'bun:test';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { EIO } from '../../ffi/errno.ts';
import { FileDevice } from '../../src/device/file_device.ts';
import { IoLog, openIoLog } from '../../src/device/io_log.ts';
import { RecordLayer } from '../../src/device/record_layer.ts';
import {
  type BlockDevice,
  type BlockRequest,
  FLUSH,
  READ,
  RequestTable,
  WRITE,
  WRITE_ZEROES,
} from '../../src/device/request.ts';
import { queueStack } from '../../src/frontend/queue_stack.ts';
import { Log } from '../../src/log.ts';
import { diskFacts } from '../vhost/fake_guest.ts';
import { FakeEngine, Requester } from './fake_engine.ts';

const DISK_BYTES = 1 << 21;
const quiet = new Log({ level: 'error', format: 'human' }, 'test');

let folder: string;
let path: string;
let engine: FakeEngine;
let table: RequestTable;
let requester: Requester;

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'ubiblk-debug-'));
  path = join(folder, 'io.log');
  engine = new FakeEngine(DISK_BYTES);
  table = new RequestTable();
  requester = new Requester(table);
});

afterEach(() => {
  requester.free();
  rmSync(folder, { recursive: true });
});

function stack(more: Parameters<typeof diskFacts>[0]): BlockDevice {
  const facts = diskFacts({ fd: 0, sizeBytes: DISK_BYTES, ...more });
  const disk = { queue: 0, facts, lazy: null, ownMemory: false };
  return queueStack(disk, engine, null, table, null, () => {}, quiet);
}

function recorded(): string[] {
  const lines = readFileSync(path, 'utf8').split('\n');
  expect(lines.pop()).toBe('');
  const records: string[] = [];
  for (let i = 0; i < lines.length; i += 4) {
    const [kind, sector, length, hex] = lines.slice(i, i + 4);
    expect(hex.length).toBe(2 * Number(length));
    records.push(`${kind} ${sector} ${length} ${hex.slice(0, 4)}`);
  }
  return records;
}

test.each([
  [undefined, ['write', 'fdatasync', 'write']],
  [true, ['write', 'write']],
])('with skipSync %p a flush goes down or not; what is to be durable is so', (skipSync, kinds) => {
  const device = stack({ ...(skipSync && { skipSync }) });
  const run = (request: BlockRequest) => requester.run(device, engine, request);
  expect(run(requester.make(WRITE, 0, [[0, 512]]))).toBe(0);
  expect(run(requester.make(FLUSH, 0, []))).toBe(0);
  expect(run(requester.make(WRITE, 0, [[0, 512]], { durable: true }))).toBe(0);
  expect<string[]>(engine.calls.map(({ kind }) => kind)).toEqual(kinds);
  expect(engine.calls.at(-1)?.flags).not.toBe(0);
});

test('writes are recorded when they come, reads when they have succeeded, in one order', () => {
  const device = stack({ ioLog: openIoLog(path) });
  engine.disk.fill(0x77);
  requester.bytes.fill(0x11, 0, 4096);
  const read = requester.make(READ, 512, [[8192, 1024]]);
  const write = requester.make(WRITE, 8192, [[0, 512]]);
  const flush = requester.make(FLUSH, 0, []);
  for (const request of [read, write, flush]) device.submit(request);
  expect(recorded()).toEqual(['WRITE 16 512 1111']);
  // It may be answered, and reused, as soon as that is told.
  const told: string[][] = [];
  requester.completed = (request) => {
    requester.done.push(request);
    told.push(recorded());
  };
  engine.complete();
  expect(requester.done).toEqual([read, write, flush]);
  expect(told[0]).toEqual(['WRITE 16 512 1111', 'READ 1 1024 7777']);
  expect(recorded()).toEqual(told[0]);
});

test('what is in several parts of memory is recorded whole, also after transfers that fell short', () => {
  const device = stack({ ioLog: openIoLog(path) });
  for (let i = 0; i < DISK_BYTES; i++) engine.disk[i] = i >> 9;
  let calls = 0;
  engine.verdict = () => (calls++ === 0 ? 700 : undefined);
  const parts: [number, number][] = [
    [100, 600],
    [5000, 424],
    [9000, 1024],
  ];
  requester.run(device, engine, requester.make(READ, 512, parts));
  expect(calls).toBeGreaterThan(1);
  const hex = readFileSync(path, 'utf8').split('\n')[3];
  expect(hex).toBe(Buffer.from(engine.disk.subarray(512, 512 + 2048)).toString('hex'));
});

test('reads that fail are not recorded, and fail; writes that fail are', () => {
  const device = stack({ ioLog: openIoLog(path) });
  engine.verdict = () => -EIO;
  expect(requester.run(device, engine, requester.make(READ, 0, [[0, 512]]))).toBe(-EIO);
  expect(requester.run(device, engine, requester.make(WRITE, 0, [[0, 512]]))).toBe(-EIO);
  expect(recorded()).toEqual(['WRITE 0 512 0000']);
});

test('long zeroes are several records; long data is one', () => {
  const device = stack({ ioLog: openIoLog(path) });
  const length = (1 << 20) + 512;
  const zeroes = requester.make(WRITE_ZEROES, 512, [], { length });
  requester.run(device, engine, zeroes);
  requester.bytes.fill(0x22);
  requester.run(device, engine, requester.make(WRITE, 0, [[0, length]]));
  expect(recorded()).toEqual([
    'WRITE 1 1048576 0000',
    'WRITE 2049 512 0000',
    `WRITE 0 ${length} 2222`,
  ]);
});

test('a log ends with its last whole record when it can not be written', () => {
  const share = openIoLog(path);
  const file = new FileDevice(engine, diskFacts({ fd: 0, sizeBytes: DISK_BYTES }), table, () => {});
  const reasons: string[] = [];
  const log = new IoLog(share, (reason) => reasons.push(reason));
  const device = new RecordLayer(file, table, log);
  const write = () => requester.run(device, engine, requester.make(WRITE, 0, [[0, 512]]));
  expect(write()).toBe(0);
  // No descriptor of this process.
  (log as unknown as { fd: number }).fd = 1 << 20;
  expect(write()).toBe(0);
  expect(write()).toBe(0);
  expect(reasons).toEqual(['EBADF']);
  const other = new IoLog(share, (reason) => reasons.push(reason));
  requester.run(new RecordLayer(file, table, other), engine, requester.make(READ, 0, [[0, 512]]));
  expect(recorded()).toEqual(['WRITE 0 512 0000']);
});
