/** Data that is fetched from the character device and returned to it; a file stands in for the device. */
import { afterEach, beforeEach, expect, test } from 'bun:test';
import { closeSync, ftruncateSync, readSync, writeSync } from 'node:fs';
import { EBADF, EIO } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { windowOver } from '../../ffi/memory.ts';
import { IovecTable } from '../../ffi/ring.ts';
import {
  type BlockDevice,
  type BlockOp,
  type BlockRequest,
  DISCARD,
  FLUSH,
  READ,
  RequestTable,
  WRITE,
} from '../../src/device/request.ts';
import { bufferOffset } from '../../src/frontend/ublk/protocol.ts';
import { UblkRequest } from '../../src/frontend/ublk/queue.ts';
import { UserCopyLayer } from '../../src/frontend/ublk/user_copy.ts';

const QUEUE = 2;
const DEPTH = 128;
const MAX_IO = 1 << 20;

/** Keeps what it is given. */
class Below implements BlockDevice {
  readonly open: BlockRequest[] = [];
  /** The data of writes as they came. */
  readonly data: Buffer[] = [];

  get inFlight(): number {
    return this.open.length;
  }

  submit(request: BlockRequest): void {
    const { op, address, length } = request;
    this.open.push(request);
    if (op === WRITE) this.data.push(Buffer.from(Buffer.from(windowOver(address, length))));
  }

  finish(result = 0): void {
    const request = this.open.shift() as BlockRequest;
    request.result = result;
    request.owner.completed(request);
  }
}

let below: Below;
let layer: UserCopyLayer;
let table: RequestTable;
let charFd: number;
let done: [tag: number, result: number][];
let given: number[];

function build(): void {
  layer = new UserCopyLayer(below, table, charFd, QUEUE, DEPTH, MAX_IO);
}

beforeEach(() => {
  openLibrary();
  below = new Below();
  table = new RequestTable();
  done = [];
  given = [];
  charFd = shim.ubiblk_memory_memfd(Buffer.from('ublkc\0'), 4096);
  ftruncateSync(charFd, bufferOffset(QUEUE, DEPTH));
  build();
});

afterEach(() => closeSync(charFd));

const owner = {
  completed: (request: BlockRequest) => {
    done.push([(request as UblkRequest).tag, request.result]);
  },
  abandoned: (request: BlockRequest) => {
    given.push((request as UblkRequest).tag);
  },
};
const noParts = () => new IovecTable(1);

function ask(op: BlockOp, tag: number, offset: number, length: number, durable = false): void {
  const request = table.add(new UblkRequest(tag, table.nextIndex, owner, noParts()));
  request.origin = tag;
  layer.submit(Object.assign(request, { op, offset, length, durable, segments: 1 }));
}

function pattern(length: number, start: number): Buffer {
  return Buffer.from(Uint8Array.from({ length }, (_, i) => start + i * 7));
}

test.each([512, 4096, 16384, 16896, MAX_IO])(
  'what is written is fetched from its tag of its queue (%i bytes)',
  (length) => {
    for (const tag of [0, 5, DEPTH - 1]) {
      writeSync(charFd, pattern(length, tag), 0, length, bufferOffset(QUEUE, tag));
      ask(WRITE, tag, tag * MAX_IO, length, tag === 5);
    }
    expect(below.open.map(({ offset, durable }) => [offset, durable])).toEqual([
      [0, false],
      [5 * MAX_IO, true],
      [(DEPTH - 1) * MAX_IO, false],
    ]);
    for (const [i, tag] of [0, 5, DEPTH - 1].entries()) {
      expect(Buffer.compare(below.data[i], pattern(length, tag))).toBe(0);
    }
    while (below.open.length > 0) below.finish();
    expect(done).toEqual([
      [0, 0],
      [5, 0],
      [DEPTH - 1, 0],
    ]);
  },
);

test.each([512, 16384, MAX_IO])('what was read is returned to its tag (%i bytes)', (length) => {
  ask(READ, 9, 4096, length);
  const [{ address }] = below.open;
  Buffer.from(windowOver(address, length)).set(pattern(length, 3));
  below.finish();
  expect(done).toEqual([[9, 0]]);
  const there = Buffer.alloc(length);
  readSync(charFd, there, 0, length, bufferOffset(QUEUE, 9));
  expect(Buffer.compare(there, pattern(length, 3))).toBe(0);
});

test('a read that fails returns nothing', () => {
  const kept = pattern(4096, 1);
  writeSync(charFd, kept, 0, 4096, bufferOffset(QUEUE, 9));
  ask(READ, 9, 0, 4096);
  Buffer.from(windowOver(below.open[0].address, 4096)).fill(0xee);
  below.finish(-EIO);
  expect(done).toEqual([[9, -EIO]]);
  const there = Buffer.alloc(4096);
  readSync(charFd, there, 0, 4096, bufferOffset(QUEUE, 9));
  expect(Buffer.compare(there, kept)).toBe(0);
});

test('what the kernel does not hand out fails, and is not written', () => {
  // Behind the file's end there is nothing to be had: a transfer that falls short.
  ftruncateSync(charFd, bufferOffset(QUEUE, 1) + 100);
  ask(WRITE, 1, 0, 512);
  expect(done).toEqual([[1, -EIO]]);
  expect(below.open).toEqual([]);
});

test('an error of the device is the error of the request', () => {
  closeSync(charFd);
  try {
    ask(WRITE, 1, 0, 512);
    ask(READ, 2, 0, 512);
    below.finish();
    expect(done).toEqual([
      [1, -EBADF],
      [2, -EBADF],
    ]);
  } finally {
    charFd = shim.ubiblk_memory_memfd(Buffer.from('ublkc\0'), 4096);
  }
});

test('more requests than buffers all have their turn, and large ones hold no small one up', () => {
  for (let tag = 0; tag < 20; tag++) ask(READ, tag, 0, MAX_IO);
  expect(below.open.length).toBe(8);
  for (let tag = 20; tag < 120; tag++) ask(READ, tag, 0, 4096);
  expect(below.open.length).toBe(8 + 64);
  while (below.open.length > 0) below.finish();
  expect(done.map(([tag]) => tag).sort((a, b) => a - b)).toEqual(
    Array.from({ length: 120 }, (_, tag) => tag),
  );
  expect(done.every(([, result]) => result === 0)).toBe(true);
});

test('what moves no data goes down as it is', () => {
  ask(FLUSH, 3, 0, 0);
  ask(DISCARD, 4, 8192, 1 << 30);
  expect(below.open.map(({ op, offset, length }) => [op, offset, length])).toEqual([
    [FLUSH, 0, 0],
    [DISCARD, 8192, 1 << 30],
  ]);
  while (below.open.length > 0) below.finish();
  expect(done.map(([tag]) => tag)).toEqual([3, 4]);
});
