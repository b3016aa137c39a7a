/**
 * virtio-blk requests (virtio 1.2, 5.2.6) read from descriptor chains. A chain is a run of bytes the
 * device reads followed by a run it writes; where descriptors begin and end means nothing (2.7.4).
 *
 * Descriptors, indirect tables and headers are read once each and bounded before use. What a guest
 * does wrong in one request is that request's status; nothing here throws for it.
 */
import { shim } from '../../../ffi/library.ts';
import { NativeBuffer } from '../../../ffi/memory.ts';
import { IovecTable } from '../../../ffi/ring.ts';
import type { DiskFacts } from '../../device/disk.ts';
import {
  BlockRequest,
  DISCARD,
  FLUSH,
  READ,
  type RequestOwner,
  type RequestTable,
  WRITE,
  WRITE_ZEROES,
} from '../../device/request.ts';
import { MAX_RANGE_SECTORS, maxZeroSectors } from '../limits.ts';
import { MAX_RANGES } from './block_config.ts';
import type { GuestMemory } from './guest_memory.ts';
import {
  DESC_BYTES,
  DESC_F_INDIRECT,
  DESC_F_NEXT,
  DESC_F_WRITE,
  type Virtqueue,
} from './virtqueue.ts';

/** 5.2.6: request types and status bytes. */
const T_IN = 0;
const T_OUT = 1;
const T_FLUSH = 4;
const T_GET_ID = 8;
const T_DISCARD = 11;
const T_WRITE_ZEROES = 13;
export const S_OK = 0;
export const S_IOERR = 1;
export const S_UNSUPP = 2;

const HEADER_BYTES = 16;
const ID_BYTES = 20;
const RANGE_BYTES = 16;
const RANGE_F_UNMAP = 1;
/** Descriptors in one chain, and parts of data after regions have split them (UIO_MAXIOV). */
export const MAX_CHAIN = 1024;
const MAX_SAFE_SECTOR = 2 ** 44;

/** What `read` made of a chain. */
export const PARSED = 0;
/** Answered already: `status` says how. */
export const ANSWERED = 1;
/** No place for a status: the chain is given back with length 0. */
export const MALFORMED = 2;

const NO_VIEW = new DataView(new ArrayBuffer(0));

/** A virtio-blk request; its index in the queue's table is the head of its chain. */
export class VhostRequest extends BlockRequest {
  head = 0;
  /** Whether the head is with us: a driver may not make it available again. */
  busy = false;
  status = S_OK;
  /** Bytes of data the device has written when the request succeeds. */
  dataWritten = 0;
  statusView: DataView = NO_VIEW;
  statusOffset = 0;
  /** Ranges of a discard or write-zeroes request that are still to do, in the iovec table. */
  ranges = 0;
  range = 0;
}

/** The requests of one queue, one for each head, and the memory for their parts. */
export class RequestPool {
  requests: VhostRequest[] = [];

  constructor(
    private readonly owner: RequestOwner,
    private readonly table: RequestTable,
  ) {}

  /** Lets go of all requests, whatever state they are in; the next `reserve` makes new ones. */
  discard(): void {
    this.requests = [];
  }

  /** Makes requests for a ring of `size`, unless there are that many. None may be in flight. */
  reserve(size: number): void {
    if (this.requests.length >= size) return;
    const iovecs = new IovecTable(size * MAX_CHAIN);
    this.requests = Array.from({ length: size }, (_, head) => {
      const request = new VhostRequest(this.table.nextIndex, this.owner, iovecs);
      request.head = head;
      return this.table.add(request);
    });
  }
}

/** Reads chains of one queue into requests. */
export class RequestReader {
  /** Parts of the chain in hand: where the guest and where we have them; readable ones first. */
  private readonly partGuest = new Float64Array(MAX_CHAIN);
  private readonly partAddress = new Float64Array(MAX_CHAIN);
  private readonly partLength = new Float64Array(MAX_CHAIN);
  private readonly partBuffer = new Int32Array(MAX_CHAIN);
  private parts = 0;
  private readable = 0;
  /** The first readable part behind the header. */
  private first = 0;
  private headerView: DataView = NO_VIEW;
  private headerOffset = 0;
  private readonly scratch: NativeBuffer;
  private readonly scratchView: DataView;
  private readonly idAddress: number;

  /**
   * @param deviceId the answer to GET_ID, at most 20 bytes of UTF-8
   */
  constructor(
    private readonly memory: GuestMemory,
    private readonly queue: Virtqueue,
    private readonly facts: DiskFacts,
    deviceId: string,
  ) {
    this.scratch = new NativeBuffer(4096);
    this.scratchView = new DataView(this.scratch.window());
    this.idAddress = this.scratch.address + MAX_RANGES * RANGE_BYTES;
    const id = new Uint8Array(this.scratch.window(MAX_RANGES * RANGE_BYTES, ID_BYTES));
    id.set(new TextEncoder().encode(deviceId).subarray(0, ID_BYTES));
  }

  /** Gives the memory back. */
  close(): void {
    this.scratch.free();
  }

  /**
   * Reads the chain at `head`.
   * @returns PARSED: submit it; ANSWERED; MALFORMED
   */
  read(head: number, request: VhostRequest): number {
    request.status = S_OK;
    request.dataWritten = 0;
    request.statusView = NO_VIEW;
    request.result = 0;
    request.ranges = 0;
    this.parts = 0;
    this.readable = 0;
    this.first = 0;
    if (!this.walk(head) || !this.takeStatus(request)) return MALFORMED;
    return this.interpret(request);
  }

  /** Sets the fields of the next range of a discard or write-zeroes; false where none is left. */
  nextRange(request: VhostRequest): boolean {
    if (request.range >= request.ranges) return false;
    const i = request.head * MAX_CHAIN + request.range;
    request.offset = request.iovecs.address(i);
    request.length = request.iovecs.length(i);
    request.range++;
    return true;
  }

  /** Gathers the chain's parts; false where it breaks a rule of 2.7.5. */
  private walk(head: number): boolean {
    const queue = this.queue;
    const descriptors = queue.descriptors;
    let index = head;
    for (let count = 0; count < queue.size; count++) {
      const i = index * 4;
      const flags = descriptors[i + 3] & 0xffff;
      const next = descriptors[i + 3] >>> 16;
      const addressHigh = descriptors[i + 1];
      if (addressHigh >= 0x200000) return false;
      const address = descriptors[i] + addressHigh * 2 ** 32;
      const length = descriptors[i + 2];
      if ((flags & DESC_F_INDIRECT) !== 0) {
        // 2.7.5.3.1: not with NEXT, and only where it was negotiated.
        if (!queue.indirect || (flags & DESC_F_NEXT) !== 0) return false;
        return this.walkIndirect(address, length);
      }
      if (!this.addPart(address, length, (flags & DESC_F_WRITE) !== 0)) return false;
      if ((flags & DESC_F_NEXT) === 0) return true;
      if (next >= queue.size) return false;
      index = next;
    }
    // Longer than the table: it goes in a circle.
    return false;
  }

  private walkIndirect(tableAddress: number, tableLength: number): boolean {
    const count = tableLength / DESC_BYTES;
    if (count === 0 || count > MAX_CHAIN || !Number.isInteger(count)) return false;
    if (!this.memory.view(tableAddress, tableLength)) return false;
    const table = this.memory.dataView;
    const base = this.memory.offset;
    let index = 0;
    for (let steps = 0; steps < count; steps++) {
      const at = base + index * DESC_BYTES;
      const addressHigh = table.getUint32(at + 4, true);
      const flags = table.getUint16(at + 12, true);
      if (addressHigh >= 0x200000 || (flags & DESC_F_INDIRECT) !== 0) return false;
      const address = table.getUint32(at, true) + addressHigh * 2 ** 32;
      const next = table.getUint16(at + 14, true);
      const length = table.getUint32(at + 8, true);
      if (!this.addPart(address, length, (flags & DESC_F_WRITE) !== 0)) return false;
      if ((flags & DESC_F_NEXT) === 0) return true;
      if (next >= count) return false;
      index = next;
    }
    return false;
  }

  /** Adds a descriptor's memory; it may lie in several regions that follow each other. */
  private addPart(guestAddress: number, length: number, writable: boolean): boolean {
    // 2.7.4.2: what the device reads comes before what it writes.
    if (!writable && this.parts > this.readable) return false;
    let at = guestAddress;
    let left = length;
    while (left > 0) {
      if (this.parts === MAX_CHAIN || !this.memory.find(at)) return false;
      const part = left < this.memory.available ? left : this.memory.available;
      this.partGuest[this.parts] = at;
      this.partAddress[this.parts] = this.memory.address;
      this.partLength[this.parts] = part;
      this.partBuffer[this.parts] = this.memory.bufferOf(part);
      this.parts++;
      if (!writable) this.readable = this.parts;
      at += part;
      left -= part;
    }
    return true;
  }

  /** Takes the status byte, the last one that the device writes. */
  private takeStatus(request: VhostRequest): boolean {
    const last = this.parts - 1;
    if (last < this.readable) return false;
    const length = this.partLength[last] - 1;
    this.partLength[last] = length;
    if (length === 0) this.parts--;
    this.memory.view(this.partGuest[last] + length, 1);
    request.statusView = this.memory.dataView;
    request.statusOffset = this.memory.offset;
    return true;
  }

  private interpret(request: VhostRequest): number {
    if (!this.takeHeader()) return answer(request, S_IOERR);
    const type = this.headerView.getUint32(this.headerOffset, true);
    const sectorLow = this.headerView.getUint32(this.headerOffset + 8, true);
    const sectorHigh = this.headerView.getUint32(this.headerOffset + 12, true);
    switch (type) {
      case T_IN:
        return this.data(request, READ, sectorLow + sectorHigh * 2 ** 32);
      case T_OUT:
        return this.data(request, WRITE, sectorLow + sectorHigh * 2 ** 32);
      case T_FLUSH:
        request.op = FLUSH;
        return PARSED;
      case T_GET_ID:
        return this.giveId(request);
      case T_DISCARD:
        if (!this.facts.canPunch) return answer(request, S_UNSUPP);
        return this.takeRanges(request, DISCARD);
      case T_WRITE_ZEROES:
        return this.takeRanges(request, WRITE_ZEROES);
      default:
        return answer(request, S_UNSUPP);
    }
  }

  /** Takes the first 16 bytes that the device reads; sets `headerView`, `headerOffset`. */
  private takeHeader(): boolean {
    if (this.readable > 0 && this.partLength[0] >= HEADER_BYTES) {
      this.memory.view(this.partGuest[0], HEADER_BYTES);
      // A part of at least 16 bytes lies in one region: the view is never short.
      this.headerView = this.memory.dataView;
      this.headerOffset = this.memory.offset;
      this.first = this.dropFront(0, HEADER_BYTES);
      return true;
    }
    if (this.readableBytes(0) < HEADER_BYTES) return false;
    this.first = this.copyFront(0, this.scratch.address, HEADER_BYTES);
    this.headerView = this.scratchView;
    this.headerOffset = 0;
    return true;
  }

  private data(request: VhostRequest, op: typeof READ | typeof WRITE, sector: number): number {
    const from = op === READ ? this.readable : this.first;
    const to = op === READ ? this.parts : this.readable;
    let length = 0;
    let addressBits = 0;
    let lengthBits = 0;
    const count = to - from;
    if (count === 1) {
      const address = this.partAddress[from];
      length = this.partLength[from];
      request.segments = 1;
      request.address = address;
      request.buffer = this.partBuffer[from];
      addressBits = lowBits(address);
      lengthBits = lowBits(length);
    } else {
      const iovecs = request.iovecs;
      const base = request.head * MAX_CHAIN;
      let segments = 0;
      let lastEnd = -1;
      let lastLength = 0;
      for (let i = from; i < to; i++) {
        const address = this.partAddress[i];
        const part = this.partLength[i];
        length += part;
        if (address === lastEnd) {
          lastLength += part;
          iovecs.set(base + segments - 1, lastEnd + part - lastLength, lastLength);
        } else {
          addressBits |= lowBits(address);
          lastLength = part;
          iovecs.set(base + segments, address, part);
          segments++;
        }
        lengthBits |= lowBits(part);
        lastEnd = address + part;
      }
      request.segments = segments;
      request.iovec = base;
      request.buffer = -1;
      if (segments === 1) request.address = iovecs.address(base);
    }
    if (op === WRITE && this.facts.readOnly) return answer(request, S_IOERR);
    if (!this.isInside(sector, length)) return answer(request, S_IOERR);
    request.op = op;
    request.offset = sector * 512;
    request.length = length;
    request.addressBits = addressBits;
    request.lengthBits = lengthBits;
    request.dataWritten = op === READ ? length : 0;
    return PARSED;
  }

  /** 5.2.6.2: whole sectors, at least one, none past the end. */
  private isInside(sector: number, length: number): boolean {
    return (
      length > 0 &&
      (length & 511) === 0 &&
      sector <= MAX_SAFE_SECTOR &&
      sector * 512 + length <= this.facts.sizeBytes
    );
  }

  private giveId(request: VhostRequest): number {
    let room = 0;
    for (let i = this.readable; i < this.parts; i++) room += this.partLength[i];
    if (room < ID_BYTES) return answer(request, S_IOERR);
    let done = 0;
    for (let i = this.readable; done < ID_BYTES; i++) {
      const part = Math.min(this.partLength[i], ID_BYTES - done);
      shim.ubiblk_memory_copy(this.partAddress[i], this.idAddress + done, part);
      done += part;
    }
    request.dataWritten = ID_BYTES;
    return answer(request, S_OK);
  }

  /** The ranges of a discard or write-zeroes, 5.2.6: all are checked before the first is done. */
  private takeRanges(request: VhostRequest, op: typeof DISCARD | typeof WRITE_ZEROES): number {
    const bytes = this.readableBytes(this.first);
    const count = bytes / RANGE_BYTES;
    if (this.facts.readOnly || count === 0 || !Number.isInteger(count) || count > MAX_RANGES) {
      return answer(request, S_IOERR);
    }
    this.copyFront(this.first, this.scratch.address, bytes);
    const view = this.scratchView;
    const base = request.head * MAX_CHAIN;
    const most = op === DISCARD ? MAX_RANGE_SECTORS : maxZeroSectors(this.facts);
    let flags = 0;
    for (let i = 0; i < count; i++) {
      const at = i * RANGE_BYTES;
      const sector = view.getUint32(at, true) + view.getUint32(at + 4, true) * 2 ** 32;
      const sectors = view.getUint32(at + 8, true);
      const rangeFlags = view.getUint32(at + 12, true);
      const allowed = op === DISCARD ? 0 : RANGE_F_UNMAP;
      if ((rangeFlags & ~allowed) !== 0) return answer(request, S_UNSUPP);
      if (sectors > most || !this.isInside(sector, sectors * 512)) {
        return answer(request, S_IOERR);
      }
      // Ranges are done under one rule: the space is given back where all of them allow it.
      flags = i === 0 ? rangeFlags : flags & rangeFlags;
      request.iovecs.set(base + i, sector * 512, sectors * 512);
    }
    request.op = op;
    request.unmap = flags === RANGE_F_UNMAP;
    request.ranges = count;
    request.range = 0;
    this.nextRange(request);
    return PARSED;
  }

  private readableBytes(from: number): number {
    let bytes = 0;
    for (let i = from; i < this.readable; i++) bytes += this.partLength[i];
    return bytes;
  }

  /** Takes `count` bytes off the part `i`; returns the first part that is left. */
  private dropFront(i: number, count: number): number {
    const length = this.partLength[i] - count;
    if (length === 0) return i + 1;
    this.partAddress[i] += count;
    this.partGuest[i] += count;
    this.partLength[i] = length;
    return i;
  }

  /** Copies and takes `count` readable bytes, from part `from` on; they are there. */
  private copyFront(from: number, to: number, count: number): number {
    let i = from;
    let done = 0;
    while (done < count) {
      const part = Math.min(this.partLength[i], count - done);
      shim.ubiblk_memory_copy(to + done, this.partAddress[i], part);
      done += part;
      i = this.dropFront(i, part);
    }
    return i;
  }
}

function answer(request: VhostRequest, status: number): number {
  request.status = status;
  return ANSWERED;
}

/** The bits below 4096, which is as far as any alignment asked for reaches. */
function lowBits(value: number): number {
  return value - Math.floor(value / 4096) * 4096;
}
