/**
 * A guest in this process: memory whose regions stand between canaries, a driver's side of a ring in
 * it, and the device's real classes on top. Whatever the driver says, the canaries must stay.
 */
import { openLibrary } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import type { DiskFacts } from '../../src/device/disk.ts';
import {
  type BlockDevice,
  type BlockRequest,
  READ,
  RequestTable,
  WRITE,
} from '../../src/device/request.ts';
import {
  RequestPool,
  RequestReader,
  type VhostRequest,
} from '../../src/frontend/vhost/block_request.ts';
import { GuestMemory, type MemoryRegion } from '../../src/frontend/vhost/guest_memory.ts';
import {
  DESC_BYTES,
  DESC_F_NEXT,
  DESC_F_WRITE,
  Virtqueue,
  type VirtqueueLayout,
} from '../../src/frontend/vhost/virtqueue.ts';
import { DriverQueue, driverQueueBytes, putDescriptor } from '../../src/probe/driver_queue.ts';

openLibrary();

export const PAGE = 4096;
const CANARY = 0xc7;

export interface RegionShape {
  guestAddress: number;
  size: number;
}

/** One page of canaries before, between and after the regions. */
export class FakeMemory {
  readonly regions: MemoryRegion[] = [];
  private readonly buffer: NativeBuffer;
  private readonly bytes: Uint8Array;

  constructor(shapes: readonly RegionShape[]) {
    const length = shapes.reduce((sum, { size }) => sum + size + PAGE, PAGE);
    this.buffer = new NativeBuffer(length);
    this.bytes = new Uint8Array(this.buffer.window());
    this.bytes.fill(CANARY);
    let at = PAGE;
    for (const { guestAddress, size } of shapes) {
      const address = this.buffer.address + at;
      const userAddress = 0x7000_0000_0000 + at;
      this.regions.push({ guestAddress, size, userAddress, address, pageBytes: PAGE });
      this.bytes.fill(0, at, at + size);
      at += size + PAGE;
    }
  }

  /** The whole of a region, from `offset` on. */
  window(offset: number, length: number, region = 0): ArrayBuffer {
    const { address } = this.regions[region];
    return this.buffer.window(address - this.buffer.address + offset, length);
  }

  /** Bytes at a guest physical address, which lie in one region. */
  at(guestAddress: number, length: number): Uint8Array {
    const i = this.regions.findIndex(
      (r) => guestAddress >= r.guestAddress && guestAddress + length <= r.guestAddress + r.size,
    );
    if (i < 0) throw new Error(`no region has ${length} bytes at ${guestAddress}`);
    const offset = guestAddress - this.regions[i].guestAddress;
    return new Uint8Array(this.window(offset, length, i));
  }

  view(guestAddress: number, length: number): DataView {
    const bytes = this.at(guestAddress, length);
    return new DataView(bytes.buffer, bytes.byteOffset, length);
  }

  /** Whether an address of this process and what follows is wholly in one region. */
  grants(address: number, length: number): boolean {
    return this.regions.some((r) => address >= r.address && address + length <= r.address + r.size);
  }

  get canariesStand(): boolean {
    let at = 0;
    for (const region of [...this.regions, null]) {
      const end = region ? region.address - this.buffer.address : this.bytes.length;
      for (; at < end; at++) if (this.bytes[at] !== CANARY) return false;
      if (region) at = end + region.size;
    }
    return true;
  }

  /** Everything, to be put back with `restore`. */
  save(): Uint8Array {
    return this.bytes.slice();
  }

  restore(saved: Uint8Array): void {
    this.bytes.set(saved);
  }

  free(): void {
    this.buffer.free();
  }
}

export function diskFacts(more: Partial<DiskFacts> = {}): DiskFacts {
  return {
    fd: -1,
    bufferedFd: -1,
    sizeBytes: 1 << 20,
    readOnly: false,
    writeThrough: false,
    direct: false,
    isBlockDevice: false,
    logicalBlock: 512,
    physicalBlock: 512,
    optimalIo: 0,
    directMemoryAlign: 1,
    pieceBytes: 1 << 19,
    directOffsetAlign: 1,
    canPunch: true,
    canZeroRange: true,
    xts: 0,
    ...more,
  };
}

/** Where the guest's memory begins, and where its first data stands behind the rings. */
export const GUEST_BASE = 0x1_0000_0000;
export const DATA = GUEST_BASE + 0x8000;
const REGION_BYTES = 0x40000;

export interface GuestOptions {
  size?: number;
  regions?: RegionShape[];
  eventIdx?: boolean;
  indirect?: boolean;
  facts?: Partial<DiskFacts>;
  deviceId?: string;
}

/** A part of a chain as a test writes it down. */
export interface TestPart {
  address: number | bigint;
  length: number;
  writable?: boolean;
}

export class FakeGuest {
  readonly memory: FakeMemory;
  readonly driver: DriverQueue;
  readonly layout: VirtqueueLayout;
  readonly queue: Virtqueue;
  readonly reader: RequestReader;
  readonly pool: RequestPool;
  readonly table = new RequestTable();
  readonly facts: DiskFacts;

  constructor(options: GuestOptions = {}) {
    const { size = 16, eventIdx = true, indirect = true, deviceId = 'disk-7' } = options;
    const regions = options.regions ?? [{ guestAddress: GUEST_BASE, size: REGION_BYTES }];
    if (driverQueueBytes(size) > DATA - GUEST_BASE) throw new Error('the ring is too large');
    this.facts = diskFacts(options.facts);
    this.memory = new FakeMemory(regions);
    this.driver = new DriverQueue(this.memory, 0, size, eventIdx);
    const { address } = this.memory.regions[0];
    this.layout = {
      size,
      descriptors: address + this.driver.descriptorsAt,
      available: address + this.driver.availableAt,
      used: address + this.driver.usedAt,
      nextAvailable: 0,
      eventIdx,
      indirect,
    };
    this.queue = new Virtqueue(this.layout);
    const memory = new GuestMemory(this.memory.regions);
    this.reader = new RequestReader(memory, this.queue, this.facts, deviceId);
    this.pool = new RequestPool({ completed: () => {} }, this.table);
    this.pool.reserve(size);
  }

  /** Reads the chain at `head`, as the queue would. */
  read(head: number): { outcome: number; request: VhostRequest } {
    const request = this.pool.requests[head];
    return { outcome: this.reader.read(head, request), request };
  }

  /** Writes a chain from descriptor `head` on and reads it. */
  readChain(parts: readonly TestPart[], head = 0): { outcome: number; request: VhostRequest } {
    this.writeChain(head, parts);
    return this.read(head);
  }

  writeChain(head: number, parts: readonly TestPart[]): void {
    putChain(this.driver.descriptors, head, parts, head);
  }

  /** Writes an indirect table and a descriptor that points to it. */
  writeIndirect(head: number, table: number, parts: readonly TestPart[]): void {
    putChain(this.memory.view(table, parts.length * DESC_BYTES), 0, parts, 0);
    this.driver.writeDescriptor(head, table, parts.length * DESC_BYTES, 4, 0);
  }

  /** Writes a request header. */
  header(address: number, type: number, sector: number | bigint): void {
    putHeader(this.memory.view(address, 16), 0, type, sector);
  }

  status(request: VhostRequest): number {
    return request.statusView.getUint8(request.statusOffset);
  }

  free(): void {
    this.reader.close();
    this.memory.free();
  }
}

export function putHeader(view: DataView, at: number, type: number, sector: number | bigint): void {
  view.setUint32(at, type, true);
  view.setUint32(at + 4, 0, true);
  view.setBigUint64(at + 8, BigInt(sector), true);
}

function putChain(
  table: DataView,
  first: number,
  parts: readonly TestPart[],
  number: number,
): void {
  parts.forEach(({ address, length, writable }, i) => {
    const last = i + 1 === parts.length;
    const flags = (writable ? DESC_F_WRITE : 0) | (last ? 0 : DESC_F_NEXT);
    const at = (first + i) * DESC_BYTES;
    putDescriptor(table, at, address, length, flags, last ? 0 : number + i + 1);
  });
}

/** The parts of a request's data as the device is given them: addresses of this process. */
export function partsOf(request: BlockRequest): { address: number; length: number }[] {
  if (request.segments === 1) return [{ address: request.address, length: request.length }];
  return Array.from({ length: request.segments }, (_, i) => ({
    address: request.iovecs.address(request.iovec + i),
    length: request.iovecs.length(request.iovec + i),
  }));
}

/** What a device was asked to do. */
export interface Asked {
  op: number;
  offset: number;
  length: number;
  durable: boolean;
  unmap: boolean;
  parts: { address: number; length: number }[];
}

/**
 * Keeps what it is given until `finish` is called, and holds it against the rules: inside the disk,
 * whole sectors, addresses that were granted.
 */
export class RecordingDevice implements BlockDevice {
  readonly asked: Asked[] = [];
  readonly open: BlockRequest[] = [];
  readonly wrong: string[] = [];
  /** Makes the next submission throw, as an error of our own would. */
  throwNext = false;

  constructor(
    private readonly memory: FakeMemory,
    private readonly facts: DiskFacts,
  ) {}

  get inFlight(): number {
    return this.open.length;
  }

  submit(request: BlockRequest): void {
    if (this.throwNext) {
      this.throwNext = false;
      throw new Error('made to fail');
    }
    const { op, offset, length, durable, unmap } = request;
    const transfers = op === READ || op === WRITE;
    const parts = transfers ? partsOf(request) : [];
    this.asked.push({ op, offset, length, durable, unmap, parts });
    if (this.open.includes(request)) this.wrong.push('a request in flight is submitted again');
    if (op !== 2) {
      if (length <= 0 || length % 512 !== 0 || offset % 512 !== 0) this.wrong.push('no sectors');
      if (offset < 0 || offset + length > this.facts.sizeBytes) this.wrong.push('outside the disk');
    }
    const sum = parts.reduce((all, part) => all + part.length, 0);
    if (transfers && sum !== length) this.wrong.push(`parts of ${sum} bytes for ${length}`);
    for (const part of parts) {
      if (!this.memory.grants(part.address, part.length)) this.wrong.push('outside the guest');
    }
    this.open.push(request);
  }

  /** Completes the open request of the given place. */
  finish(place: number, result = 0): void {
    const [request] = this.open.splice(place, 1);
    request.result = result;
    request.owner.completed(request);
  }
}
