/**
 * A guest's memory as a queue thread sees it: regions of guest physical addresses, mapped here.
 *
 * Every address and length comes from the guest. Nothing is handed out that isn't wholly inside a
 * region. Data is passed on by its address in this process; headers and rings are read through
 * DataViews, which check their bounds once more.
 */
import { windowOver } from '../../../ffi/memory.ts';

/** A region as the frontend described it and as it is mapped here; plain numbers. */
export interface MemoryRegion {
  guestAddress: number;
  size: number;
  /** The frontend's own virtual address, which ring addresses are given in. */
  userAddress: number;
  /** Where it is mapped in this process. */
  address: number;
  /** Bytes of its pages: above 4096 where they are huge ones, which are pinned by nature. */
  pageBytes: number;
}

/** Registers memory with the kernel, so that a transfer needn't pin its pages; see Ring. */
export interface MemoryRegistrar {
  /** Registers parts of at most 1 GiB; false where the kernel has no room for them. */
  registerMemory(parts: readonly { address: number; length: number }[]): boolean;
  unregisterMemory(): void;
}

/**
 * Views overlap, so that whatever starts in one and is no longer than this is wholly in it: an
 * indirect table of 1024 descriptors is 16 KiB.
 */
export const MAX_VIEWED = 65536;
/** Also the largest part that can be registered (io_uring_register(2)). */
const VIEW_STRIDE = 2 ** 30;

class Region {
  readonly views: DataView[] = [];
  readonly start: number;
  readonly end: number;
  readonly address: number;
  /** The number of its first registered part, -1 where it isn't registered. */
  firstBuffer = -1;

  constructor(readonly mapped: MemoryRegion) {
    const { guestAddress, size, address } = mapped;
    this.start = guestAddress;
    this.address = address;
    this.end = guestAddress + size;
    for (let at = 0; at < size; at += VIEW_STRIDE) {
      const length = Math.min(size - at, VIEW_STRIDE + MAX_VIEWED);
      this.views.push(new DataView(windowOver(address + at, length)));
    }
  }
}

const NO_REGION = new Region({
  guestAddress: 0,
  size: 0,
  userAddress: 0,
  address: 0,
  pageBytes: 4096,
});

export class GuestMemory {
  /** Of the last `find`: the address in this process, and the bytes from there to the region's end. */
  address = 0;
  available = 0;
  /** Of the last `view`: the view and the place in it. */
  dataView: DataView = new DataView(new ArrayBuffer(0));
  offset = 0;
  private readonly regions: Region[];
  private last: Region;

  constructor(regions: readonly MemoryRegion[]) {
    this.regions = regions.map((region) => new Region(region)).sort((a, b) => a.start - b.start);
    this.last = this.regions[0] ?? NO_REGION;
  }

  /**
   * Registers what is made of huge pages. Ordinary pages are left alone: registering would pin all of
   * a guest's memory, which takes ballooning and overcommit away from its host.
   * @returns bytes registered
   */
  register(registrar: MemoryRegistrar): number {
    const parts: { address: number; length: number }[] = [];
    const huge = this.regions.filter((region) => region.mapped.pageBytes > 4096);
    const firsts = huge.map(({ mapped }) => {
      const first = parts.length;
      for (let at = 0; at < mapped.size; at += VIEW_STRIDE) {
        const length = Math.min(mapped.size - at, VIEW_STRIDE);
        parts.push({ address: mapped.address + at, length });
      }
      return first;
    });
    if (parts.length === 0 || !registrar.registerMemory(parts)) return 0;
    huge.forEach((region, i) => {
      region.firstBuffer = firsts[i];
    });
    return parts.reduce((sum, part) => sum + part.length, 0);
  }

  /** Looks a guest physical address up; false where no region has it. Sets `address`, `available`. */
  find(guestAddress: number): boolean {
    let region = this.last;
    if (guestAddress < region.start || guestAddress >= region.end) {
      const found = this.search(guestAddress);
      if (!found) return false;
      region = found;
      this.last = found;
    }
    this.address = region.address + (guestAddress - region.start);
    this.available = region.end - guestAddress;
    return true;
  }

  /** The registered part that holds `length` bytes from the last `find` on, -1 where none does. */
  bufferOf(length: number): number {
    const { firstBuffer, address } = this.last;
    if (firstBuffer < 0) return -1;
    const inRegion = this.address - address;
    const part = Math.floor(inRegion / VIEW_STRIDE);
    return inRegion + length <= (part + 1) * VIEW_STRIDE ? firstBuffer + part : -1;
  }

  /**
   * Makes `length` bytes (at most MAX_VIEWED) at a guest physical address readable; false where they
   * aren't all in one region. Sets `dataView`, `offset` and what `find` sets.
   */
  view(guestAddress: number, length: number): boolean {
    if (!this.find(guestAddress) || this.available < length) return false;
    const inRegion = guestAddress - this.last.start;
    const index = Math.floor(inRegion / VIEW_STRIDE);
    this.dataView = this.last.views[index];
    this.offset = inRegion - index * VIEW_STRIDE;
    return true;
  }

  private search(guestAddress: number): Region | null {
    let low = 0;
    let high = this.regions.length - 1;
    while (low <= high) {
      const middle = (low + high) >> 1;
      const region = this.regions[middle];
      if (guestAddress < region.start) high = middle - 1;
      else if (guestAddress >= region.end) low = middle + 1;
      else return region;
    }
    return null;
  }
}
