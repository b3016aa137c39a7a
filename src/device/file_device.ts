/**
 * The bottom of the stack: a file or block device, through an engine that transfers, syncs and
 * allocates. Short transfers are continued, EINTR and EAGAIN retried, anything else is the request's
 * result.
 */
import { EAGAIN, EINTR, EIO, EOPNOTSUPP } from '../../ffi/errno.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import {
  BY_WORKER,
  IovecTable,
  OP_READ,
  OP_READV,
  OP_WRITE,
  OP_WRITEV,
  type RingHandler,
} from '../../ffi/ring.ts';
import type { DiskFacts } from './disk.ts';
import {
  type BlockDevice,
  type BlockRequest,
  DISCARD,
  FLUSH,
  READ,
  type RequestTable,
  WRITE,
} from './request.ts';

/** Registered files of a queue: the data file, and the same file without O_DIRECT. */
export const DATA_FILE = 0;
export const BUFFERED_FILE = 1;
export const FILES_PER_DISK = 2;

/** What does the I/O: a `Ring`, or the synchronous engine with the same shape. */
export interface FileEngine {
  /** Whether transfers go on side by side, so that a large one gains by being cut up. */
  readonly parallel?: boolean;
  addHandler(handler: RingHandler): number;
  /** @param buffer the registered part of memory that the data is in, -1 where it is in none */
  transfer(
    op: number,
    file: number,
    address: number,
    length: number,
    offset: number,
    rwFlags: number,
    handler: number,
    index: number,
    buffer: number,
  ): void;
  fdatasync(file: number, handler: number, index: number): void;
  fallocate(
    file: number,
    mode: number,
    offset: number,
    length: number,
    handler: number,
    index: number,
  ): void;
}

/** Is told of each request that fails, with -errno. */
export type FailureSink = (request: BlockRequest, result: number) => void;

/** include/uapi/linux/falloc.h */
const PUNCH_HOLE = 0x02 | 0x01;
const ZERO_RANGE = 0x10 | 0x01;
const RWF_DSYNC = 2;
const MAX_ATTEMPTS = 1000;
/** io_uring and the system calls move at most this much at once (MAX_RW_COUNT). */
const MAX_TRANSFER = 0x7ffff000;

const STAGE_TRANSFER = 0;
const STAGE_ALLOCATE = 1;
const STAGE_FILL = 2;
const STAGE_SYNC = 3;
const STAGE_PIECES = 4;
/** Most pieces that a transfer is cut into. */
const MAX_PIECES = 64;

const ZERO_PART = 65536;
const ZERO_PARTS = 64;

export class FileDevice implements BlockDevice, RingHandler {
  /** Requests handed to the engine and not yet completed. */
  inFlight = 0;
  private readonly handler: number;
  private canPunch: boolean;
  private canZeroRange: boolean;
  private zeroes: IovecTable | null = null;

  /**
   * @param engine where I/O goes; its registered files are DATA_FILE and BUFFERED_FILE
   * @param requests the queue's requests, to find the one that a completion is of
   * @param firstFile added to the files' numbers
   */
  constructor(
    private readonly engine: FileEngine,
    private readonly facts: DiskFacts,
    private readonly requests: RequestTable,
    private readonly onFailure: FailureSink,
    private readonly firstFile = 0,
  ) {
    this.handler = engine.addHandler(this);
    this.canPunch = facts.canPunch;
    this.canZeroRange = facts.canZeroRange;
  }

  submit(request: BlockRequest): void {
    this.inFlight++;
    request.transferred = 0;
    request.attempts = 0;
    switch (request.op) {
      case READ:
      case WRITE:
        if (this.isCut(request)) {
          this.transferPieces(request);
        } else {
          request.stage = STAGE_TRANSFER;
          this.transfer(request);
        }
        break;
      case FLUSH:
        this.sync(request);
        break;
      default:
        this.zero(request);
    }
  }

  ringCompleted(index: number, result: number): void {
    const request = this.requests.get(index);
    if (request.stage === STAGE_PIECES) {
      this.pieceTransferred(request, result);
      return;
    }
    if (result < 0 && this.tryAgain(request, result)) return;
    if (request.stage === STAGE_TRANSFER) this.transferred(request, result);
    else if (request.stage === STAGE_FILL) this.filled(request, result);
    else if (request.stage === STAGE_ALLOCATE) this.allocated(request, result);
    else this.finish(request, result);
  }

  /**
   * Whether a transfer is cut into pieces that go on side by side. Direct I/O larger than what the
   * device takes at once would be begun, refused and begun again by a worker thread; a large copy
   * from the page cache would keep one processor busy while others have nothing to do.
   */
  private isCut(request: BlockRequest): boolean {
    const { direct, pieceBytes } = this.facts;
    return (
      this.engine.parallel === true &&
      request.segments === 1 &&
      request.length > pieceBytes &&
      request.length <= pieceBytes * MAX_PIECES &&
      (direct || request.op === READ)
    );
  }

  private transferPieces(request: BlockRequest): void {
    const { direct, pieceBytes } = this.facts;
    const { address, offset, length, index, buffer } = request;
    const read = request.op === READ;
    const file = this.fileFor(request);
    const rwFlags = request.durable && !read ? RWF_DSYNC : 0;
    const count = Math.ceil(length / pieceBytes);
    request.stage = STAGE_PIECES;
    request.attempts = count;
    // The last piece may complete the request before `transfer` returns: it is not touched after.
    for (let i = 0; i < count; i++) {
      const at = i * pieceBytes;
      const helped = !direct && i % 2 === 1 ? BY_WORKER : 0;
      this.engine.transfer(
        (read ? OP_READ : OP_WRITE) | helped,
        file,
        address + at,
        Math.min(pieceBytes, length - at),
        offset + at,
        rwFlags,
        this.handler,
        index,
        buffer,
      );
    }
  }

  /** Counts a piece; where one fell short, all is done once more, in one go that sees why. */
  private pieceTransferred(request: BlockRequest, result: number): void {
    if (result > 0) request.transferred += result;
    if (--request.attempts > 0) return;
    if (request.transferred === request.length) {
      this.finish(request, 0);
      return;
    }
    request.transferred = 0;
    request.stage = STAGE_TRANSFER;
    this.transfer(request);
  }

  private transfer(request: BlockRequest): void {
    const read = request.op === READ;
    const one = request.segments === 1;
    const length = request.length - request.transferred;
    this.engine.transfer(
      read ? (one ? OP_READ : OP_READV) : one ? OP_WRITE : OP_WRITEV,
      this.fileFor(request),
      one ? request.address : request.iovecs.addressOf(request.iovec),
      one ? (length > MAX_TRANSFER ? MAX_TRANSFER : length) : request.segments,
      request.offset + request.transferred,
      request.durable && !read ? RWF_DSYNC : 0,
      this.handler,
      request.index,
      one ? request.buffer : -1,
    );
  }

  private transferred(request: BlockRequest, result: number): void {
    if (result === request.length - request.transferred) {
      this.finish(request, 0);
    } else if (result < 0) {
      this.finish(request, result);
    } else if (result === 0) {
      // The file ends here: it was cut after it was opened.
      this.finish(request, -EIO);
    } else {
      request.transferred += result;
      if (request.segments === 1) request.address += result;
      else skipBytes(request, result);
      this.transfer(request);
    }
  }

  /** The file that takes a request's offset and length: not every one suits direct I/O. */
  private fileFor(request: BlockRequest): number {
    const mask = this.facts.directOffsetAlign - 1;
    const suits = mask <= 511 || ((request.offset | request.length) & mask) === 0;
    return this.firstFile + (suits ? DATA_FILE : BUFFERED_FILE);
  }

  private sync(request: BlockRequest): void {
    request.stage = STAGE_SYNC;
    if (this.facts.writeThrough || this.facts.readOnly) this.finish(request, 0);
    else this.engine.fdatasync(this.firstFile + DATA_FILE, this.handler, request.index);
  }

  /** Zeroes a range: by deallocating it where that is asked for or may be, else by writing zeroes. */
  private zero(request: BlockRequest): void {
    const mayUnmap = request.op === DISCARD || request.unmap;
    const blockMask = this.facts.logicalBlock - 1;
    const whole =
      !this.facts.isBlockDevice || ((request.offset | request.length) & blockMask) === 0;
    request.stage = STAGE_ALLOCATE;
    if (whole && mayUnmap && this.canPunch) this.allocate(request, PUNCH_HOLE);
    else if (request.op === DISCARD) this.finish(request, 0);
    else if (whole && this.canZeroRange) this.allocate(request, ZERO_RANGE);
    else this.fill(request);
  }

  private allocate(request: BlockRequest, mode: number): void {
    this.engine.fallocate(
      this.firstFile + DATA_FILE,
      mode,
      request.offset,
      request.length,
      this.handler,
      request.index,
    );
  }

  private allocated(request: BlockRequest, result: number): void {
    if (result === -EOPNOTSUPP) {
      // What was offered at the start no longer holds (a changed mount): don't ask again.
      if ((request.op === DISCARD || request.unmap) && this.canPunch) this.canPunch = false;
      else this.canZeroRange = false;
      this.zero(request);
    } else if (result === 0 && (request.durable || this.facts.writeThrough)) {
      request.stage = STAGE_SYNC;
      this.engine.fdatasync(this.firstFile + DATA_FILE, this.handler, request.index);
    } else {
      this.finish(request, result);
    }
  }

  private fill(request: BlockRequest): void {
    request.stage = STAGE_FILL;
    const zeroes = this.zeroTable();
    const left = request.length - request.transferred;
    const parts = Math.min(ZERO_PARTS, Math.floor(left / ZERO_PART));
    const offset = request.offset + request.transferred;
    this.engine.transfer(
      parts > 0 ? OP_WRITEV : OP_WRITE,
      this.fileFor(request),
      parts > 0 ? zeroes.addressOf(0) : zeroes.address(0),
      parts > 0 ? parts : left,
      offset,
      request.durable ? RWF_DSYNC : 0,
      this.handler,
      request.index,
      -1,
    );
  }

  private filled(request: BlockRequest, result: number): void {
    if (result <= 0) {
      this.finish(request, result === 0 ? -EIO : result);
      return;
    }
    request.transferred += result;
    if (request.transferred < request.length) this.fill(request);
    else this.finish(request, 0);
  }

  private zeroTable(): IovecTable {
    if (!this.zeroes) {
      const page = new NativeBuffer(ZERO_PART);
      this.zeroes = new IovecTable(ZERO_PARTS);
      for (let i = 0; i < ZERO_PARTS; i++) this.zeroes.set(i, page.address, ZERO_PART);
    }
    return this.zeroes;
  }

  private tryAgain(request: BlockRequest, result: number): boolean {
    if ((result !== -EINTR && result !== -EAGAIN) || request.attempts++ >= MAX_ATTEMPTS) {
      return false;
    }
    if (request.stage === STAGE_TRANSFER) this.transfer(request);
    else if (request.stage === STAGE_FILL) this.fill(request);
    else if (request.stage === STAGE_ALLOCATE) this.zero(request);
    else this.engine.fdatasync(this.firstFile + DATA_FILE, this.handler, request.index);
    return true;
  }

  private finish(request: BlockRequest, result: number): void {
    this.inFlight--;
    request.result = result;
    if (result < 0) this.onFailure(request, result);
    request.owner.completed(request);
  }
}

/** Takes the first `count` bytes off a request's parts; fewer than they hold. */
function skipBytes(request: BlockRequest, count: number): void {
  const iovecs = request.iovecs;
  let left = count;
  while (left >= iovecs.length(request.iovec)) {
    left -= iovecs.length(request.iovec);
    request.iovec++;
    request.segments--;
  }
  const address = iovecs.address(request.iovec) + left;
  iovecs.set(request.iovec, address, iovecs.length(request.iovec) - left);
  // The last part alone is a transfer from one address.
  request.address = address;
}
