/** What a ublk device says of itself to the kernel: the parameters of a disk. */
import type { DiskFacts } from '../../device/disk.ts';
import { UserError } from '../../errors.ts';
import { MAX_RANGE_SECTORS, maxZeroSectors } from '../limits.ts';
import { modeOf } from './modes.ts';
import type { UblkOptions } from './options.ts';
import { blockPath, type DeviceInfo, type DeviceParams } from './protocol.ts';

const PAGE_BYTES = 4096;

/** @param maxIoBytes what the kernel allows the device */
export function deviceParams(
  facts: DiskFacts,
  { stripeBytes, mode }: Pick<UblkOptions, 'stripeBytes' | 'mode'>,
  maxIoBytes: number,
): DeviceParams {
  const logicalBlock = Math.min(facts.logicalBlock, PAGE_BYTES);
  const physicalBlock = Math.max(facts.physicalBlock, logicalBlock);
  const writable = !facts.readOnly;
  return {
    readOnly: facts.readOnly,
    volatileCache: !facts.writeThrough && writable,
    fua: !facts.writeThrough && writable,
    logicalBlock,
    physicalBlock,
    minIo: physicalBlock,
    optimalIo: stripeBytes || largestPower(facts.optimalIo, physicalBlock),
    maxIoBytes,
    sectors: facts.sizeBytes / 512,
    maxDiscardSectors: writable && facts.canPunch ? MAX_RANGE_SECTORS : 0,
    maxWriteZeroesSectors: writable ? maxZeroSectors(facts) : 0,
    discardGranularity: physicalBlock,
    // Requests' memory is transferred itself; otherwise it is ours.
    dmaAlignment: mode === 'zero_copy' ? Math.max(facts.directMemoryAlign, 4) : 4,
  };
}

/** The largest power of two up to a size that may be none itself. */
function largestPower(bytes: number, least: number): number {
  return Math.max(2 ** Math.floor(Math.log2(Math.max(bytes, 1))), least);
}

/**
 * Compares a device that waits for its server with the disk that it is to be served from.
 * @throws UserError where another disk, or the same one changed, would show
 */
export function refuseOtherDisk(info: DeviceInfo, there: DeviceParams, now: DeviceParams): void {
  const differs = (what: string, was: string, is: string) => {
    throw new UserError(
      `'${blockPath(info.id)}', which this disk had before, has ${what} ${was} and can't be ` +
        `given ${is}; remove it with 'ubiblk ublk del ${info.id}'`,
    );
  };
  if (there.sectors !== now.sectors) {
    differs('a size of', `${there.sectors * 512} bytes`, `${now.sectors * 512}`);
  }
  if (there.logicalBlock !== now.logicalBlock) {
    differs('blocks of', `${there.logicalBlock} bytes`, `${now.logicalBlock}`);
  }
  if (there.readOnly !== now.readOnly) {
    const access = ({ readOnly }: DeviceParams) => (readOnly ? 'reading alone' : 'writing');
    differs('been made for', access(there), access(now));
  }
  if (there.volatileCache !== now.volatileCache) {
    const cache = ({ volatileCache }: DeviceParams) => (volatileCache ? 'false' : 'true');
    differs("been made with 'write_through:", `${cache(there)}'`, `'${cache(now)}'`);
  }
  // Their memory is what the disk is read and written from.
  if (modeOf(info.flags) === 'zero_copy' && there.dmaAlignment < now.dmaAlignment) {
    differs('memory aligned to', `${there.dmaAlignment} bytes`, `${now.dmaAlignment}`);
  }
}
