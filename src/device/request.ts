import { IovecTable } from '../../ffi/ring.ts';

/** A request to a block device, and who is told when it is done. */

export const READ = 0;
export const WRITE = 1;
export const FLUSH = 2;
export const DISCARD = 3;
export const WRITE_ZEROES = 4;
export type BlockOp =
  | typeof READ
  | typeof WRITE
  | typeof FLUSH
  | typeof DISCARD
  | typeof WRITE_ZEROES;

const OP_NAMES = ['read', 'write', 'flush', 'discard', 'write zeroes'];

/** The word for an operation in messages. */
export function opName(op: BlockOp): string {
  return OP_NAMES[op] as string;
}

/** Is told once for every request submitted, possibly before `submit` returns. */
export interface RequestOwner {
  completed(request: BlockRequest): void;
  /** Is told instead where `BlockDevice.abandon` gave the request up. */
  abandoned?(request: BlockRequest): void;
}

/**
 * A layer of the block-device stack. Requests in flight together have no order; a flush covers the
 * writes whose completion was told before it was submitted.
 */
export interface BlockDevice {
  submit(request: BlockRequest): void;
  /** Requests submitted whose completion is still to come from outside; 0: no memory is touched. */
  readonly inFlight: number;
  /** Takes in what other threads have told; called whenever the queue's thread is awake. */
  receive?(): void;
  /** Gives up requests that wait for another thread's word; of zeroes, a part may be done. */
  abandon?(): void;
  /** Ends them with an I/O error instead. */
  failWaiting?(): void;
  /** After an error of our own, when nothing is in flight: forgets requests that it keeps. */
  reset?(): void;
}

/**
 * One request, made once and used again and again: nothing is allocated on the hot path. The
 * submitter fills the fields and leaves them alone until `owner.completed`.
 */
export class BlockRequest {
  op: BlockOp = READ;
  /** Bytes into the disk, a multiple of 512. */
  offset = 0;
  /** Bytes, a multiple of 512. */
  length = 0;
  /** Parts of the data in memory. With one, `address` is where it is; with more, see `iovec`. */
  segments = 0;
  address = 0;
  /** Place of the first part in `iovecs` where there are several. */
  iovec = 0;
  /** Of one segment: the number of the registered part of memory that it lies in, or -1. */
  buffer = -1;
  /** Where the data is for who keeps it elsewhere than in memory. */
  origin = 0;
  /** Low bits of all the parts' addresses, or-ed: how they are aligned. */
  addressBits = 0;
  /** Low bits of all the parts' lengths, or-ed. */
  lengthBits = 0;
  /** A write, discard or write-zeroes is on stable storage before it completes. */
  durable = false;
  /** A write-zeroes may give the space back. */
  unmap = false;
  /** 0 or -errno, once completed. */
  result = 0;
  /** Bytes done so far; for the layer that has the request. */
  transferred = 0;
  /** What the layer that has the request does with it at the moment. */
  stage = 0;
  attempts = 0;
  /** The next in a waiting list of the layer that has the request. */
  next: BlockRequest | null = null;

  /**
   * @param index of this request in its queue's RequestTable
   * @param iovecs where the parts of its data stand when there are several
   */
  constructor(
    readonly index: number,
    readonly owner: RequestOwner,
    public iovecs: IovecTable,
  ) {}

  /** Becomes a request for the same, with the same memory. */
  copy(from: BlockRequest): void {
    this.op = from.op;
    this.unmap = from.unmap;
    this.iovecs = from.iovecs;
    this.offset = from.offset;
    this.length = from.length;
    this.segments = from.segments;
    this.address = from.address;
    this.iovec = from.iovec;
    this.buffer = from.buffer;
    this.origin = from.origin;
    this.addressBits = from.addressBits;
    this.lengthBits = from.lengthBits;
    this.durable = from.durable;
  }
}

/** Is carried out on behalf of another request, which stays as it is meanwhile. */
export class StandIn extends BlockRequest {
  request: BlockRequest | null = null;
  private parts: IovecTable | null = null;
  private room = 0;

  for(request: BlockRequest): void {
    this.request = request;
    this.copy(request);
    const { segments, iovec, iovecs } = request;
    if (segments <= 1) return;
    // Who transfers a part of them changes the list.
    if (segments > this.room) {
      this.parts?.free();
      this.room = 2 * segments;
      this.parts = new IovecTable(this.room);
    }
    const parts = this.parts as IovecTable;
    for (let i = 0; i < segments; i++) {
      parts.set(i, iovecs.address(iovec + i), iovecs.length(iovec + i));
    }
    this.iovecs = parts;
    this.iovec = 0;
  }
}

/** All requests of one queue thread, by the index that completions carry. */
export class RequestTable {
  private readonly requests: BlockRequest[] = [];

  /** The index that the next request added must have. */
  get nextIndex(): number {
    return this.requests.length;
  }

  add<Request extends BlockRequest>(request: Request): Request {
    if (request.index !== this.requests.length) throw new Error('a request has a wrong index');
    this.requests.push(request);
    return request;
  }

  get(index: number): BlockRequest {
    return this.requests[index] as BlockRequest;
  }
}

/** A first-in first-out list of requests through their `next`. */
export class RequestList {
  private first: BlockRequest | null = null;
  private last: BlockRequest | null = null;

  push(request: BlockRequest): void {
    request.next = null;
    if (this.last) this.last.next = request;
    else this.first = request;
    this.last = request;
  }

  shift(): BlockRequest | null {
    const request = this.first;
    if (request) {
      this.first = request.next;
      if (!this.first) this.last = null;
      request.next = null;
    }
    return request;
  }
}
