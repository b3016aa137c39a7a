/**
 * A layer for direct I/O: requests whose memory isn't aligned as the file needs it are copied to and
 * from aligned buffers; all others pass untouched.
 */
import { shim } from '../../ffi/library.ts';
import { BufferPool, type Piece, type PieceCopier } from './buffer_pool.ts';
import type { DiskFacts } from './disk.ts';
import { type BlockDevice, type BlockRequest, READ, type RequestTable, WRITE } from './request.ts';

const BUFFERS = 8;
const BUFFER_BYTES = 128 * 1024;

export class BounceLayer implements BlockDevice {
  private readonly pool: BufferPool;
  private readonly addressMask: number;
  private readonly lengthMask: number;

  constructor(
    private readonly below: BlockDevice,
    facts: DiskFacts,
    requests: RequestTable,
  ) {
    this.addressMask = facts.directMemoryAlign - 1;
    this.lengthMask = facts.directOffsetAlign - 1;
    this.pool = new BufferPool(below, plainCopier, requests, BUFFERS, BUFFER_BYTES);
  }

  /** Requests that wait here wait for others that are below. */
  get inFlight(): number {
    return this.below.inFlight;
  }

  submit(request: BlockRequest): void {
    const transfers = request.op === READ || request.op === WRITE;
    if (transfers && this.isCrooked(request)) this.pool.submit(request);
    else this.below.submit(request);
  }

  reset(): void {
    this.pool.reset();
    this.below.reset?.();
  }

  /**
   * Whether a request needs a buffer. One whose place on the disk isn't aligned doesn't: the file
   * takes it without O_DIRECT, which asks nothing of memory.
   */
  private isCrooked(request: BlockRequest): boolean {
    if (((request.offset | request.length) & this.lengthMask) !== 0) return false;
    return (
      (request.addressBits & this.addressMask) !== 0 || (request.lengthBits & this.lengthMask) !== 0
    );
  }
}

const plainCopier: PieceCopier = {
  copyIn(piece: Piece, outer: BlockRequest): number {
    if (outer.segments === 1) {
      return shim.ubiblk_memory_copy(piece.memory, outer.address + piece.at, piece.length);
    }
    const parts = outer.iovecs.addressOf(outer.iovec);
    const { segments } = outer;
    return shim.ubiblk_memory_gather(piece.memory, parts, segments, piece.at, piece.length);
  },

  copyOut(piece: Piece, outer: BlockRequest): number {
    if (outer.segments === 1) {
      return shim.ubiblk_memory_copy(outer.address + piece.at, piece.memory, piece.length);
    }
    const parts = outer.iovecs.addressOf(outer.iovec);
    const { segments } = outer;
    return shim.ubiblk_memory_scatter(parts, segments, piece.at, piece.memory, piece.length);
  },
};
