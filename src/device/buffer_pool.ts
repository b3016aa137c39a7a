/**
 * Takes requests apart into pieces that go through a bounded number of aligned buffers. What gets
 * between a request's memory and a buffer is somebody else's: a copy, or a cipher. A request that finds
 * no buffer free waits; those that wait take turns piece by piece, so that none is held up by a large
 * one before it.
 */
import { NativeBuffer } from '../../ffi/memory.ts';
import { IovecTable } from '../../ffi/ring.ts';
import {
  type BlockDevice,
  BlockRequest,
  READ,
  RequestList,
  type RequestOwner,
  type RequestTable,
  WRITE,
} from './request.ts';

/** A part of a request: a request of its own on an aligned buffer. */
export class Piece extends BlockRequest {
  outer: BlockRequest | null = null;
  memory = 0;
  /** Bytes of the outer request's data that come before this piece. */
  at = 0;
}

/** Moves data between a request's memory and a piece's buffer; both return 0 or -errno. */
export interface PieceCopier {
  /** Fills the buffer with what is to be written. */
  copyIn(piece: Piece, outer: BlockRequest): number;
  /** Takes what was read out of the buffer. */
  copyOut(piece: Piece, outer: BlockRequest): number;
}

const STAGE_WAITING = 0;
/** All pieces have been submitted, or one has failed and no more will be. */
const STAGE_SUBMITTED = 1;

export class BufferPool implements RequestOwner {
  private readonly free: Piece[] = [];
  private readonly waiting = new RequestList();
  /** What is below may complete a piece before its submission returns: the loop goes on by itself. */
  private feeding = false;

  private readonly pieces: Piece[] = [];
  private readonly buffers: NativeBuffer;

  /**
   * @param below takes the pieces
   * @param count of buffers, of `pieceBytes` each
   * @throws Error (ENOMEM)
   */
  constructor(
    private readonly below: BlockDevice,
    private readonly copier: PieceCopier,
    requests: RequestTable,
    count: number,
    private readonly pieceBytes: number,
  ) {
    const noParts = new IovecTable(1);
    this.buffers = new NativeBuffer(count * pieceBytes);
    for (let i = 0; i < count; i++) {
      const piece = requests.add(new Piece(requests.nextIndex, this, noParts));
      piece.memory = this.buffers.address + i * pieceBytes;
      piece.segments = 1;
      this.pieces.push(piece);
      this.free.push(piece);
    }
  }

  /** The memory of all buffers. */
  get memory(): { address: number; length: number } {
    return this.buffers;
  }

  /** From now on the buffers are in the registered part of memory with this number. */
  setRegistered(buffer: number): void {
    for (const piece of this.pieces) piece.buffer = buffer;
  }

  /** Takes a read, a write, or a write-zeroes whose zeroes `copyIn` makes. */
  submit(outer: BlockRequest): void {
    outer.transferred = 0;
    outer.attempts = 0;
    outer.result = 0;
    outer.stage = STAGE_WAITING;
    this.waiting.push(outer);
    this.feed();
  }

  completed(request: BlockRequest): void {
    const piece = request as Piece;
    const outer = piece.outer as BlockRequest;
    let { result } = piece;
    if (result === 0 && outer.op === READ) result = this.copier.copyOut(piece, outer);
    if (result !== 0) outer.result = result;
    piece.outer = null;
    this.free.push(piece);
    outer.attempts--;
    this.finishIfDone(outer);
    this.feed();
  }

  /** See BlockDevice.reset. */
  reset(): void {
    while (this.waiting.shift()) {}
    this.free.length = 0;
    for (const piece of this.pieces) {
      piece.outer = null;
      this.free.push(piece);
    }
  }

  private feed(): void {
    if (this.feeding) return;
    this.feeding = true;
    try {
      this.feedWaiting();
    } finally {
      this.feeding = false;
    }
  }

  private feedWaiting(): void {
    while (this.free.length > 0) {
      const outer = this.waiting.shift();
      if (!outer) return;
      if (outer.result === 0) {
        this.startPiece(outer);
      } else {
        outer.stage = STAGE_SUBMITTED;
        this.finishIfDone(outer);
      }
    }
  }

  private startPiece(outer: BlockRequest): void {
    const piece = this.free.pop() as Piece;
    const left = outer.length - outer.transferred;
    piece.outer = outer;
    piece.at = outer.transferred;
    piece.op = outer.op === READ ? READ : WRITE;
    piece.offset = outer.offset + outer.transferred;
    piece.length = left < this.pieceBytes ? left : this.pieceBytes;
    piece.durable = outer.durable;
    piece.address = piece.memory;
    outer.transferred += piece.length;
    outer.attempts++;
    if (outer.transferred < outer.length) this.waiting.push(outer);
    else outer.stage = STAGE_SUBMITTED;
    piece.result = piece.op === WRITE ? this.copier.copyIn(piece, outer) : 0;
    if (piece.result === 0) this.below.submit(piece);
    else this.completed(piece);
  }

  private finishIfDone(outer: BlockRequest): void {
    if (outer.stage === STAGE_SUBMITTED && outer.attempts === 0) outer.owner.completed(outer);
  }
}
