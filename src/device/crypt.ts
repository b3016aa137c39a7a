/**
 * Encrypts what is written and decrypts what is read, sector by sector (AES-256-XTS, c/xts.h). The
 * cipher is the copy between a request's memory and an aligned buffer: a guest's memory is never
 * changed by a write, nothing below sees plaintext, and a transfer that is tried again has the same
 * ciphertext in its buffer.
 */
import { shim } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import { BufferPool, type Piece, type PieceCopier } from './buffer_pool.ts';
import {
  type BlockDevice,
  BlockRequest,
  DISCARD,
  FLUSH,
  READ,
  type RequestOwner,
  type RequestTable,
  WRITE,
  WRITE_ZEROES,
} from './request.ts';

/** Requests up to this length have buffers of their own, so that large ones don't hold them up. */
const SMALL_BYTES = 16 * 1024;
const SMALL_BUFFERS = 64;
/** A piece of a larger request stays in a processor's second cache while it is worked on. */
const LARGE_BYTES = 128 * 1024;
const LARGE_BUFFERS = 16;

/** Registers memory with the kernel; see Ring.registerMemory. */
export interface BufferRegistrar {
  registerMemory(parts: readonly { address: number; length: number }[]): boolean;
}

export class CryptLayer implements BlockDevice {
  private readonly small: BufferPool;
  private readonly large: BufferPool;

  /**
   * @param below the encrypted disk
   * @param xts what `expandXts` made of its keys; used until the last request is done
   * @param registrar what the buffers are registered with, null where that gains nothing
   * @throws Error (ENOMEM)
   */
  constructor(
    private readonly below: BlockDevice,
    xts: number,
    requests: RequestTable,
    registrar: BufferRegistrar | null,
  ) {
    const cipher = new Cipher(xts);
    this.small = new BufferPool(below, cipher, requests, SMALL_BUFFERS, SMALL_BYTES);
    this.large = new BufferPool(below, cipher, requests, LARGE_BUFFERS, LARGE_BYTES);
    if (registrar?.registerMemory([this.small.memory, this.large.memory])) {
      this.small.setRegistered(0);
      this.large.setRegistered(1);
    }
  }

  /** Requests that wait here wait for others that are below. */
  get inFlight(): number {
    return this.below.inFlight;
  }

  submit(request: BlockRequest): void {
    if (request.op === FLUSH) {
      this.below.submit(request);
    } else if (request.op === DISCARD) {
      // A hole would read as noise, and tell from outside what is in use: the hint isn't taken.
      request.result = 0;
      request.owner.completed(request);
    } else if (request.length <= SMALL_BYTES) {
      this.small.submit(request);
    } else {
      this.large.submit(request);
    }
  }

  reset(): void {
    this.small.reset();
    this.large.reset();
    this.below.reset?.();
  }
}

/** A request below an in-place layer, on behalf of the one above. */
class Ciphered extends BlockRequest {
  outer: BlockRequest | null = null;
}

/**
 * The same for requests whose data is in one piece of memory that nobody else sees, and that is given
 * up when a write is submitted: it is ciphered where it is.
 */
export class InPlaceCryptLayer implements BlockDevice, RequestOwner {
  private readonly free: Ciphered[] = [];

  /**
   * @param below the encrypted disk
   * @param copying takes what has no memory of its own: zeroes
   */
  constructor(
    private readonly below: BlockDevice,
    private readonly copying: CryptLayer,
    private readonly xts: number,
    private readonly requests: RequestTable,
  ) {}

  get inFlight(): number {
    return this.below.inFlight;
  }

  submit(outer: BlockRequest): void {
    const { op, offset, length, address } = outer;
    if (op !== READ && op !== WRITE) {
      this.copying.submit(outer);
      return;
    }
    if (op === WRITE) {
      const sector = offset / 512;
      outer.result = shim.ubiblk_xts_encrypt(this.xts, sector, length / 512, address, address);
      if (outer.result !== 0) {
        outer.owner.completed(outer);
        return;
      }
    }
    const { nextIndex } = this.requests;
    const request =
      this.free.pop() ?? this.requests.add(new Ciphered(nextIndex, this, outer.iovecs));
    request.outer = outer;
    request.copy(outer);
    this.below.submit(request);
  }

  completed(request: BlockRequest): void {
    const outer = (request as Ciphered).outer as BlockRequest;
    (request as Ciphered).outer = null;
    this.free.push(request as Ciphered);
    const { op, offset, length, address } = outer;
    outer.result = request.result;
    if (op === READ && request.result === 0) {
      const sector = offset / 512;
      outer.result = shim.ubiblk_xts_decrypt(this.xts, sector, length / 512, address, address);
    }
    outer.owner.completed(outer);
  }
}

class Cipher implements PieceCopier {
  /** Never written to: its pages take no memory. */
  private readonly zeroes = new NativeBuffer(LARGE_BYTES);

  constructor(private readonly xts: number) {}

  copyIn(piece: Piece, outer: BlockRequest): number {
    const { offset, length, memory, at } = piece;
    const sector = offset / 512;
    const sectors = length / 512;
    const zeroes = outer.op === WRITE_ZEROES;
    if (zeroes || outer.segments === 1) {
      const from = zeroes ? this.zeroes.address : outer.address + at;
      return shim.ubiblk_xts_encrypt(this.xts, sector, sectors, from, memory);
    }
    const parts = outer.iovecs.addressOf(outer.iovec);
    const { segments } = outer;
    const { xts } = this;
    return shim.ubiblk_xts_encrypt_parts(xts, sector, sectors, parts, segments, at, memory);
  }

  copyOut(piece: Piece, outer: BlockRequest): number {
    const { offset, length, memory, at } = piece;
    const sector = offset / 512;
    const sectors = length / 512;
    if (outer.segments === 1) {
      return shim.ubiblk_xts_decrypt(this.xts, sector, sectors, memory, outer.address + at);
    }
    const parts = outer.iovecs.addressOf(outer.iovec);
    const { segments } = outer;
    const { xts } = this;
    return shim.ubiblk_xts_decrypt_parts(xts, sector, sectors, memory, parts, segments, at);
  }
}
