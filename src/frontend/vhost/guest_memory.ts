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
}

/**
 * Views overlap, so that whatever starts in one and is no longer than this is wholly in it: an
 * indirect table of 1024 descriptors is 16 KiB.
 */
export const MAX_VIEWED = 65536;
const VIEW_SHIFT = 30;
const VIEW_STRIDE = 2 ** VIEW_SHIFT;

class Region {
  readonly views: DataView[] = [];
  readonly end: number;

  constructor(
    readonly start: number,
    readonly size: number,
    readonly address: number,
  ) {
    this.end = start + size;
    for (let at = 0; at < size; at += VIEW_STRIDE) {
      const length = Math.min(size - at, VIEW_STRIDE + MAX_VIEWED);
      this.views.push(new DataView(windowOver(address + at, length)));
    }
  }
}

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
    this.regions = regions
      .map((r) => new Region(r.guestAddress, r.size, r.address))
      .sort((a, b) => a.start - b.start);
    this.last = this.regions[0] ?? new Region(0, 0, 0);
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
