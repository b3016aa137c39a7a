/**
 * Memory outside JavaScript's heap: page-aligned buffers that C and the kernel may keep, and windows
 * (typed arrays) over memory at a known address.
 *
 * An address is a number: exact below 2^53, far above what a process can map. A window does not own
 * what it shows: it must be let go before the memory is unmapped.
 */
import { type Pointer, toArrayBuffer } from 'bun:ffi';
import { failed } from './errno.ts';
import { shim } from './library.ts';

const TWO_32 = 2 ** 32;

/** A window of `length` bytes at `address`; `length` stays below 4 GiB. */
export function windowOver(address: number, length: number): ArrayBuffer {
  return toArrayBuffer(address as Pointer, 0, length);
}

/** Page-aligned zeroed memory that lives until `free`. */
export class NativeBuffer {
  readonly address: number;
  readonly length: number;

  /**
   * @param length bytes; pages that are never touched cost nothing
   * @throws Error (ENOMEM) where the address space or memory limit is used up
   */
  constructor(length: number) {
    const address = shim.ubiblk_memory_map(length) as number;
    if (address < 0) throw failed('mmap', address);
    this.address = address;
    this.length = length;
  }

  /** A window over a part of this buffer. */
  window(offset = 0, length = this.length - offset): ArrayBuffer {
    return windowOver(this.address + offset, length);
  }

  free(): void {
    shim.ubiblk_memory_unmap(this.address, this.length);
  }
}

/** The low 32 bits of an address or a byte offset. */
export function low32(value: number): number {
  return value - Math.floor(value / TWO_32) * TWO_32;
}

/** The bits of an address or a byte offset above the low 32. */
export function high32(value: number): number {
  return Math.floor(value / TWO_32);
}
