/**
 * Above a file with UBLK_F_USER_COPY: the data of requests is read from and written to the character
 * device (a request's `origin` is its tag), through a bounded number of buffers, so that a queue needs memory for what is in
 * work and not for all that could be.
 */
import { EIO } from '../../../ffi/errno.ts';
import { shim } from '../../../ffi/library.ts';
import { BufferPool, type Piece, type PieceCopier } from '../../device/buffer_pool.ts';
import {
  type BlockDevice,
  type BlockRequest,
  READ,
  type RequestTable,
  WRITE,
} from '../../device/request.ts';
import { bufferOffset } from './protocol.ts';

const SMALL_BYTES = 16 * 1024;
const SMALL_BUFFERS = 64;
const LARGE_BUFFERS = 8;

export class UserCopyLayer implements BlockDevice {
  private readonly small: BufferPool;
  private readonly large: BufferPool;
  private readonly smallBytes: number;

  /** @param maxIoBytes the longest request; it goes down in one piece */
  constructor(
    private readonly below: BlockDevice,
    requests: RequestTable,
    charFd: number,
    queue: number,
    depth: number,
    maxIoBytes: number,
  ) {
    const copier = new DeviceCopier(charFd, queue);
    const smalls = Math.min(depth, SMALL_BUFFERS);
    const larges = Math.min(depth, LARGE_BUFFERS);
    this.smallBytes = Math.min(SMALL_BYTES, maxIoBytes);
    this.small = new BufferPool(below, copier, requests, smalls, this.smallBytes);
    this.large = new BufferPool(below, copier, requests, larges, maxIoBytes);
  }

  get inFlight(): number {
    return this.below.inFlight;
  }

  submit(request: BlockRequest): void {
    if (request.op !== READ && request.op !== WRITE) this.below.submit(request);
    else if (request.length <= this.smallBytes) this.small.submit(request);
    else this.large.submit(request);
  }
}

class DeviceCopier implements PieceCopier {
  constructor(
    private readonly fd: number,
    private readonly queue: number,
  ) {}

  copyIn(piece: Piece, outer: BlockRequest): number {
    const { memory, length } = piece;
    return moved(shim.ubiblk_pread(this.fd, memory, length, this.place(piece, outer)), length);
  }

  copyOut(piece: Piece, outer: BlockRequest): number {
    const { memory, length } = piece;
    return moved(shim.ubiblk_pwrite(this.fd, memory, length, this.place(piece, outer)), length);
  }

  private place(piece: Piece, outer: BlockRequest): number {
    return bufferOffset(this.queue, outer.origin) + piece.at;
  }
}

function moved(result: number | bigint, length: number): number {
  if (Number(result) === length) return 0;
  return Number(result) < 0 ? Number(result) : -EIO;
}
