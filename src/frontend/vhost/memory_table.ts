/** The memory that a frontend has given us, mapped; as the control thread keeps it. */
import { errnoName } from '../../../ffi/errno.ts';
import { shim } from '../../../ffi/library.ts';
import type { MemoryRegion } from './guest_memory.ts';
import { MAX_MEMORY_SLOTS, ProtocolError, readU64 } from './protocol.ts';

/** A region in a message: guest address, size, the frontend's address, offset in its file. */
export const REGION_BYTES = 32;

/** What was mapped, and what to unmap. */
export interface Mapping {
  /** Of the byte that was asked for. */
  address: number;
  base: number;
  mapped: number;
  pageBytes: number;
}

type MappedRegion = MemoryRegion & Mapping;

export class MemoryTable {
  private readonly mapped: MappedRegion[] = [];

  get regions(): readonly MemoryRegion[] {
    return this.mapped;
  }

  /**
   * Maps the region described at a place of a message.
   * @param fd of its file, which stays the caller's
   * @throws ProtocolError
   */
  add(payload: DataView, at: number, fd: number): void {
    const guestAddress = readU64(payload, at);
    const size = readU64(payload, at + 8);
    const userAddress = readU64(payload, at + 16);
    const offset = readU64(payload, at + 24);
    if (this.mapped.length >= MAX_MEMORY_SLOTS) throw new ProtocolError('too many memory regions');
    if (size === 0) throw new ProtocolError('a memory region of no size');
    if (guestAddress + size > Number.MAX_SAFE_INTEGER) {
      throw new ProtocolError('a memory region beyond what any guest has');
    }
    for (const other of this.mapped) {
      const end = other.guestAddress + other.size;
      if (guestAddress < end && other.guestAddress < guestAddress + size) {
        throw new ProtocolError('memory regions that overlap');
      }
    }
    const mapping = mapShared(fd, offset, size, 'a memory region');
    this.mapped.push({ guestAddress, size, userAddress, ...mapping });
  }

  /** Unmaps the region described at a place of a message. @throws ProtocolError */
  remove(payload: DataView, at: number): void {
    const guestAddress = readU64(payload, at);
    const size = readU64(payload, at + 8);
    const userAddress = readU64(payload, at + 16);
    const index = this.mapped.findIndex(
      (r) => r.guestAddress === guestAddress && r.size === size && r.userAddress === userAddress,
    );
    if (index < 0) throw new ProtocolError('a memory region to remove that was never added');
    for (const region of this.mapped.splice(index, 1)) unmapShared(region);
  }

  /** Unmaps all regions. */
  clear(): void {
    for (const region of this.mapped.splice(0)) unmapShared(region);
  }

  /**
   * The address in this process of what the frontend has at one of its own.
   * @throws ProtocolError where no region holds all of it, or it isn't aligned
   */
  translate(userAddress: number, length: number, align: number): number {
    for (const region of this.mapped) {
      const at = userAddress - region.userAddress;
      if (at < 0 || at + length > region.size) continue;
      const address = region.address + at;
      if (address % align !== 0) throw new ProtocolError('a ring that is not aligned');
      return address;
    }
    throw new ProtocolError('a ring outside the memory table');
  }
}

/** Maps a part of a frontend's memory file. @throws ProtocolError */
export function mapShared(fd: number, offset: number, size: number, what: string): Mapping {
  const mapping = new BigUint64Array(3);
  const address = shim.ubiblk_memory_map_shared(fd, offset, size, mapping) as number;
  if (address < 0) {
    throw new ProtocolError(
      `${what} of ${size} bytes at ${offset} of its file can't be mapped: ${errnoName(address)}`,
    );
  }
  return {
    address,
    base: Number(mapping[0]),
    mapped: Number(mapping[1]),
    pageBytes: Number(mapping[2]),
  };
}

export function unmapShared(mapping: Mapping): void {
  shim.ubiblk_memory_unmap_shared(mapping.base, mapping.mapped);
}
