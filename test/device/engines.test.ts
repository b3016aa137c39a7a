/** Both engines on real files: what they read and write, and what they say where they can't. */
import { afterAll, afterEach, beforeEach, expect, test } from 'bun:test';
import {
  closeSync,
  constants,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { EBADF, EIO } from '../../ffi/errno.ts';
import { openLibrary } from '../../ffi/library.ts';
import { RING_SETUPS, Ring } from '../../ffi/ring.ts';
import { BounceLayer } from '../../src/device/bounce.ts';
import { FileDevice, type FileEngine } from '../../src/device/file_device.ts';
import {
  type BlockDevice,
  DISCARD,
  FLUSH,
  READ,
  RequestTable,
  WRITE,
  WRITE_ZEROES,
} from '../../src/device/request.ts';
import { SyncEngine } from '../../src/device/sync_engine.ts';
import { Random, seed } from '../random.ts';
import { diskFacts } from '../vhost/fake_guest.ts';
import { Requester } from './fake_engine.ts';

openLibrary();

const DISK_BYTES = 1 << 20;
const folder = mkdtempSync(join(tmpdir(), 'ubiblk-engines-'));
const path = join(folder, 'disk.raw');

afterAll(() => rmSync(folder, { recursive: true, force: true }));

interface Made {
  engine: FileEngine;
  /** Waits for everything submitted. */
  complete(requester: Requester, count: number): void;
  close(): void;
}

const MAKERS: Record<string, (fds: number[]) => Made> = {
  sync: (fds) => ({ engine: new SyncEngine(fds), complete: () => {}, close: () => {} }),
};
for (const { name } of RING_SETUPS) {
  MAKERS[`io_uring ${name}`] = (fds) => {
    const ring = new Ring(8, 32, name);
    ring.registerFiles(fds);
    const complete = (requester: Requester, count: number) => {
      while (requester.done.length < count) {
        ring.enter(1, 5_000_000);
        ring.reap();
      }
    };
    return { engine: ring, complete, close: () => ring.close() };
  };
}

let fd = -1;
let made: Made;
let table: RequestTable;
let requester: Requester;

function open(maker: string, flags = constants.O_RDWR): FileDevice {
  fd = openSync(path, flags);
  made = MAKERS[maker]([fd, fd]);
  return new FileDevice(made.engine, diskFacts({ sizeBytes: DISK_BYTES }), table, () => {});
}

/** Runs one request to its end. */
function run(device: BlockDevice, ...make: Parameters<Requester['make']>): number {
  const request = requester.make(...make);
  const count = requester.done.length + 1;
  device.submit(request);
  made.complete(requester, count);
  return request.result;
}

beforeEach(() => {
  const random = new Random(3);
  const bytes = new Uint8Array(DISK_BYTES);
  for (let i = 0; i < DISK_BYTES; i++) bytes[i] = random.next();
  writeFileSync(path, bytes);
  table = new RequestTable();
  requester = new Requester(table);
});

afterEach(() => {
  made.close();
  requester.free();
  closeSync(fd);
});

for (const maker of Object.keys(MAKERS)) {
  test(`${maker}: reads and writes of one part and of several`, () => {
    const device = open(maker);
    const expected = readFileSync(path);
    for (const parts of [
      [[0, 4096]],
      [
        [8192, 512],
        [0, 1024],
        [5000, 512],
      ],
    ] as [number, number][][]) {
      expect(run(device, READ, 512, parts)).toBe(0);
      const length = parts.reduce((sum, [, bytes]) => sum + bytes, 0);
      const there = expected.subarray(512, 512 + length);
      expect(Buffer.compare(requester.gather(parts), there)).toBe(0);
      for (const durable of [false, true]) {
        requester.bytes.fill(durable ? 0x11 : 0x22, 0, 16384);
        expect(run(device, WRITE, 65536, parts, { durable })).toBe(0);
        expected.set(requester.gather(parts), 65536);
        expect(Buffer.compare(readFileSync(path), expected)).toBe(0);
      }
    }
    expect(run(device, FLUSH, 0, [])).toBe(0);
    expect(device.inFlight).toBe(0);
  });

  test(`${maker}: zeroing and discarding`, () => {
    const device = open(maker);
    const expected = readFileSync(path);
    expect(run(device, WRITE_ZEROES, 512, [], { length: 1024, durable: true })).toBe(0);
    expected.fill(0, 512, 1536);
    expect(run(device, DISCARD, 65536, [], { length: 65536 })).toBe(0);
    expected.fill(0, 65536, 131072);
    expect(Buffer.compare(readFileSync(path), expected)).toBe(0);
    expect(statSync(path).blocks * 512).toBeLessThanOrEqual(DISK_BYTES - 65536 + 8192);
  });

  test(`${maker}: more requests at once than the ring has entries`, () => {
    const device = open(maker);
    const expected = readFileSync(path);
    for (let i = 0; i < 200; i++) {
      const at = i * 4096;
      device.submit(requester.make(READ, at, [[at, 4096]]));
    }
    made.complete(requester, 200);
    expect(requester.done.every(({ result }) => result === 0)).toBe(true);
    const read = requester.bytes.subarray(0, 200 * 4096);
    expect(Buffer.compare(read, expected.subarray(0, 200 * 4096))).toBe(0);
  });

  test(`${maker}: a file that was cut, and one that may not be written`, () => {
    const device = open(maker);
    ftruncateSync(fd, 65536 + 512);
    expect(run(device, READ, 65536, [[0, 4096]])).toBe(-EIO);
    expect(
      run(device, READ, 65536, [
        [0, 512],
        [4096, 512],
      ]),
    ).toBe(-EIO);
    expect(run(device, READ, 65536, [[0, 512]])).toBe(0);
    made.close();
    closeSync(fd);
    const readOnly = open(maker, constants.O_RDONLY);
    expect(run(readOnly, WRITE, 0, [[0, 512]])).toBe(-EBADF);
    expect(run(readOnly, DISCARD, 0, [], { length: 512 })).toBe(-EBADF);
  });

  test(`${maker}: memory of any alignment reaches a file opened for direct I/O (${seed})`, () => {
    const random = new Random(seed);
    open(maker, constants.O_RDWR);
    made.close();
    closeSync(fd);
    fd = openSync(path, constants.O_RDWR | directIfPossible());
    made = MAKERS[maker]([fd, fd]);
    const facts = diskFacts({
      sizeBytes: DISK_BYTES,
      direct: true,
      directMemoryAlign: 512,
      directOffsetAlign: 512,
    });
    const file = new FileDevice(made.engine, facts, table, () => {});
    const device = new BounceLayer(file, facts, table);
    const expected = readFileSync(path);
    for (let round = 0; round < 60; round++) {
      const odd = random.pick([1, 100, 300, 511, 512]);
      const at = random.below(1 << 20);
      const rest = 512 * (1 + random.below(600));
      const parts: [number, number][] = [
        [at, odd],
        [at + (1 << 20), rest - odd],
      ].filter(([, length]) => length > 0) as [number, number][];
      const offset = 512 * random.below((DISK_BYTES - rest) / 512);
      if (random.chance(2)) {
        for (const [start, length] of parts) {
          for (let i = 0; i < length; i += 7) requester.bytes[start + i] = random.next();
        }
        expect(run(device, WRITE, offset, parts)).toBe(0);
        expected.set(requester.gather(parts), offset);
      } else {
        expect(run(device, READ, offset, parts)).toBe(0);
        const there = expected.subarray(offset, offset + rest);
        expect(Buffer.compare(requester.gather(parts), there)).toBe(0);
      }
    }
    expect(Buffer.compare(readFileSync(path), expected)).toBe(0);
  });
}

/** O_DIRECT, unless the temporary folder's file system has no such thing. */
function directIfPossible(): number {
  try {
    closeSync(openSync(path, constants.O_RDWR | constants.O_DIRECT));
    return constants.O_DIRECT;
  } catch {
    return 0;
  }
}
