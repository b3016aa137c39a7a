/**
 * A layer for direct I/O: requests whose memory isn't aligned as the file needs it go through aligned
 * buffers, piece by piece; all others pass untouched. The buffers are bounded: a request that finds
 * none free waits for its turn.
 */
import { shim } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import { IovecTable } from '../../ffi/ring.ts';
import type { DiskFacts } from './disk.ts';
import {
  type BlockDevice,
  BlockRequest,
  READ,
  RequestList,
  type RequestOwner,
  type RequestTable,
  WRITE,
} from './request.ts';

const BUFFERS = 8;
const BUFFER_BYTES = 128 * 1024;

/** An aligned buffer, and the request that fills or drains it for an outer one. */
class Bounce extends BlockRequest {
  outer: BlockRequest | null = null;
  memory = 0;
  /** While a piece is being submitted: what is below may complete it at once. */
  submitting = false;
  /** It did, and there is another piece to do. */
  more = false;
}

export class BounceLayer implements BlockDevice, RequestOwner {
  private readonly free: Bounce[] = [];
  private readonly waiting = new RequestList();
  private readonly addressMask: number;
  private readonly lengthMask: number;

  constructor(
    private readonly below: BlockDevice,
    facts: DiskFacts,
    requests: RequestTable,
  ) {
    this.addressMask = facts.directMemoryAlign - 1;
    this.lengthMask = facts.directOffsetAlign - 1;
    const noParts = new IovecTable(1);
    const memory = new NativeBuffer(BUFFERS * BUFFER_BYTES);
    for (let i = 0; i < BUFFERS; i++) {
      const bounce = requests.add(new Bounce(requests.nextIndex, this, noParts));
      bounce.memory = memory.address + i * BUFFER_BYTES;
      bounce.segments = 1;
      this.free.push(bounce);
    }
  }

  /** Requests that wait here wait for others that are below. */
  get inFlight(): number {
    return this.below.inFlight;
  }

  submit(request: BlockRequest): void {
    if ((request.op !== READ && request.op !== WRITE) || !this.isCrooked(request)) {
      this.below.submit(request);
      return;
    }
    request.transferred = 0;
    const bounce = this.free.pop();
    if (bounce) this.start(bounce, request);
    else this.waiting.push(request);
  }

  completed(request: BlockRequest): void {
    const bounce = request as Bounce;
    const outer = bounce.outer as BlockRequest;
    if (bounce.result === 0) {
      if (outer.op === READ) copyOut(bounce, outer);
      outer.transferred += bounce.length;
      if (outer.transferred < outer.length) {
        if (bounce.submitting) bounce.more = true;
        else this.transfer(bounce);
        return;
      }
    }
    outer.result = bounce.result;
    const next = this.waiting.shift();
    if (next) this.start(bounce, next);
    else this.free.push(bounce);
    outer.owner.completed(outer);
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

  private start(bounce: Bounce, outer: BlockRequest): void {
    bounce.outer = outer;
    this.transfer(bounce);
  }

  /** Submits the next piece, and those after it in turn: in a loop, for they may be thousands. */
  private transfer(bounce: Bounce): void {
    bounce.submitting = true;
    do {
      bounce.more = false;
      this.piece(bounce, bounce.outer as BlockRequest);
    } while (bounce.more);
    bounce.submitting = false;
  }

  private piece(bounce: Bounce, outer: BlockRequest): void {
    const left = outer.length - outer.transferred;
    bounce.op = outer.op;
    bounce.offset = outer.offset + outer.transferred;
    bounce.length = left < BUFFER_BYTES ? left : BUFFER_BYTES;
    bounce.durable = outer.durable;
    bounce.address = bounce.memory;
    if (outer.op === WRITE) copyIn(bounce, outer);
    this.below.submit(bounce);
  }
}

function copyIn(bounce: Bounce, outer: BlockRequest): void {
  const { segments, transferred } = outer;
  if (segments === 1) {
    shim.ubiblk_memory_copy(bounce.memory, outer.address + transferred, bounce.length);
  } else {
    const iov = outer.iovecs.addressOf(outer.iovec);
    shim.ubiblk_memory_gather(bounce.memory, iov, segments, transferred, bounce.length);
  }
}

function copyOut(bounce: Bounce, outer: BlockRequest): void {
  const { segments, transferred } = outer;
  if (segments === 1) {
    shim.ubiblk_memory_copy(outer.address + transferred, bounce.memory, bounce.length);
  } else {
    const iov = outer.iovecs.addressOf(outer.iovec);
    shim.ubiblk_memory_scatter(iov, segments, transferred, bounce.memory, bounce.length);
  }
}
