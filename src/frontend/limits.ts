/** How much one request may ask for that needs no data. */
import type { DiskFacts } from '../device/disk.ts';

/** Sectors in one range of a discard or write-zeroes request (1 GiB). */
export const MAX_RANGE_SECTORS = 2 ** 21;
/** Of a disk whose zeroes must be written, each of them encrypted (4 MiB). */
const MAX_WRITTEN_ZERO_SECTORS = 2 ** 13;

/** Sectors in one range of a write-zeroes request. */
export function maxZeroSectors(facts: DiskFacts): number {
  return facts.xts === 0 ? MAX_RANGE_SECTORS : MAX_WRITTEN_ZERO_SECTORS;
}
