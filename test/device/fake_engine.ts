/** A disk in memory behind the interface of the I/O engines, which fails as it is told. */
import { openLibrary } from '../../ffi/library.ts';
import { NativeBuffer, windowOver } from '../../ffi/memory.ts';
import {
  BY_WORKER,
  IovecTable,
  OP_READ,
  OP_READV,
  OP_WRITE,
  type RingHandler,
} from '../../ffi/ring.ts';
import type { FileEngine } from '../../src/device/file_device.ts';
import {
  type BlockDevice,
  type BlockOp,
  BlockRequest,
  type RequestOwner,
  type RequestTable,
} from '../../src/device/request.ts';

openLibrary();

/** What stands in a request's address where its parts are in iovecs. */
const STALE_ADDRESS = 0xdead_0000;

/** What the engine was asked to do. */
export interface Call {
  kind: 'read' | 'write' | 'fdatasync' | 'fallocate';
  file: number;
  offset: number;
  length: number;
  /** RWF_* of a transfer, mode of a fallocate. */
  flags: number;
  /** A worker thread is asked to do it. */
  byWorker?: boolean;
}

/**
 * Decides on a call: the bytes to move (fewer: a short transfer), 0 or -errno; undefined: all of it.
 */
export type Verdict = (call: Call, number: number) => number | undefined;

export class FakeEngine implements FileEngine {
  readonly disk: Uint8Array;
  readonly calls: Call[] = [];
  verdict: Verdict = () => undefined;
  parallel = false;
  batch = 0;
  private readonly handlers: RingHandler[] = [];
  private readonly completions: [handler: number, index: number, result: number][] = [];

  constructor(sizeBytes: number) {
    this.disk = new Uint8Array(sizeBytes);
  }

  addHandler(handler: RingHandler): number {
    return this.handlers.push(handler) - 1;
  }

  transfer(
    flaggedOp: number,
    file: number,
    address: number,
    length: number,
    offset: number,
    rwFlags: number,
    handler: number,
    index: number,
  ): void {
    const byWorker = (flaggedOp & BY_WORKER) !== 0;
    const op = flaggedOp & ~BY_WORKER;
    const read = op === OP_READ || op === OP_READV;
    const vectored = op !== OP_READ && op !== OP_WRITE;
    const parts = vectored ? iovecsAt(address, length) : [[address, length]];
    const total = parts.reduce((sum, [, bytes]) => sum + bytes, 0);
    const kind = read ? 'read' : 'write';
    const call = { kind, file, offset, length: total, flags: rwFlags, byWorker } as const;
    const result = this.judge(call) ?? total;
    let left = Math.max(result, 0);
    let at = offset;
    for (const [from, bytes] of parts) {
      if (from === STALE_ADDRESS) throw new Error('a transfer at an address of no request');
      const part = Math.min(bytes, left);
      if (part === 0) continue;
      const memory = new Uint8Array(windowOver(from, part));
      if (read) memory.set(this.disk.subarray(at, at + part));
      else this.disk.set(memory, at);
      at += part;
      left -= part;
    }
    this.completions.push([handler, index, result]);
  }

  fdatasync(file: number, handler: number, index: number): void {
    const result = this.judge({ kind: 'fdatasync', file, offset: 0, length: 0, flags: 0 }) ?? 0;
    this.completions.push([handler, index, result]);
  }

  fallocate(
    file: number,
    mode: number,
    offset: number,
    length: number,
    handler: number,
    index: number,
  ): void {
    const result = this.judge({ kind: 'fallocate', file, offset, length, flags: mode }) ?? 0;
    if (result === 0) this.disk.fill(0, offset, offset + length);
    this.completions.push([handler, index, result]);
  }

  /** Tells of everything done, until nothing more comes of it. */
  complete(): void {
    for (let next = this.completions.shift(); next; next = this.completions.shift()) {
      const [handler, index, result] = next;
      this.handlers[handler].ringCompleted(index, result, false);
    }
  }

  private judge(call: Call): number | undefined {
    return this.verdict(call, this.calls.push(call) - 1);
  }
}

function iovecsAt(address: number, count: number): [address: number, length: number][] {
  const words = new BigUint64Array(windowOver(address, count * 16));
  return Array.from({ length: count }, (_, i) => [Number(words[2 * i]), Number(words[2 * i + 1])]);
}

/** Requests of a test, one at a time or several, with memory for their data. */
export class Requester implements RequestOwner {
  readonly done: BlockRequest[] = [];
  readonly memory = new NativeBuffer(1 << 22);
  readonly bytes = new Uint8Array(this.memory.window());
  private readonly iovecs = new IovecTable(4096);
  private nextIovec = 0;

  constructor(private readonly table: RequestTable) {}

  completed(request: BlockRequest): void {
    this.done.push(request);
  }

  /** @param parts places of the data in `bytes`; none for requests without data */
  make(
    op: BlockOp,
    offset: number,
    parts: readonly (readonly [at: number, length: number])[],
    more: Partial<BlockRequest> = {},
  ): BlockRequest {
    const request = this.table.add(new BlockRequest(this.table.nextIndex, this, this.iovecs));
    const length = parts.reduce((sum, [, bytes]) => sum + bytes, 0);
    const bits = (values: number[]) => values.reduce((all, value) => all | (value % 4096), 0);
    const addresses = parts.map(([at]) => this.memory.address + at);
    const iovec = this.nextIovec;
    this.nextIovec += parts.length;
    parts.forEach(([, bytes], i) => {
      this.iovecs.set(iovec + i, addresses[i], bytes);
    });
    // Where there are several parts the address is whatever the request before had there.
    const address = parts.length === 1 ? addresses[0] : STALE_ADDRESS;
    return Object.assign(request, {
      op,
      offset,
      length,
      segments: parts.length,
      address,
      iovec,
      addressBits: bits(addresses),
      lengthBits: bits(parts.map(([, bytes]) => bytes)),
      ...more,
    });
  }

  /** Submits a request, lets it finish, and returns its result. */
  run(device: BlockDevice, engine: { complete(): void }, request: BlockRequest): number {
    const before = this.done.length;
    device.submit(request);
    engine.complete();
    if (this.done.length !== before + 1) {
      throw new Error(`completed ${this.done.length - before} times`);
    }
    return request.result;
  }

  /** The bytes of parts, one behind the other. */
  gather(parts: readonly (readonly [at: number, length: number])[]): Uint8Array {
    return Buffer.concat(parts.map(([at, length]) => this.bytes.subarray(at, at + length)));
  }

  free(): void {
    this.iovecs.free();
    this.memory.free();
  }
}
