/** What a device says of its disk, and which disks may not take its place. */
import { expect, test } from 'bun:test';
import type { UblkMode } from '../../src/config/device_config.ts';
import type { DiskFacts } from '../../src/device/disk.ts';
import { deviceParams, refuseOtherDisk } from '../../src/frontend/ublk/params.ts';
import {
  type DeviceInfo,
  type DeviceParams,
  featureBits,
} from '../../src/frontend/ublk/protocol.ts';
import { diskFacts } from '../vhost/fake_guest.ts';

const info = { id: 7, flags: 0n } as DeviceInfo;

function params(facts: Partial<DiskFacts>, stripeBytes = 0, mode: UblkMode = 'copy'): DeviceParams {
  return deviceParams(diskFacts({ fd: 3, ...facts }), { stripeBytes, mode }, 1 << 20);
}

test('a plain disk with a cache', () => {
  const facts = { sizeBytes: 64 << 20, physicalBlock: 4096, optimalIo: 65536 };
  expect(params({ ...facts, directMemoryAlign: 512 })).toEqual({
    readOnly: false,
    volatileCache: true,
    fua: true,
    logicalBlock: 512,
    physicalBlock: 4096,
    minIo: 4096,
    optimalIo: 65536,
    maxIoBytes: 1 << 20,
    sectors: (64 << 20) / 512,
    maxDiscardSectors: 1 << 21,
    maxWriteZeroesSectors: 1 << 21,
    discardGranularity: 4096,
    dmaAlignment: 4,
  });
});

test('odd sizes are kept to the sector, also those that 32 bits do not hold', () => {
  for (const sectors of [1, 7, 2 ** 31 + 1, 2 ** 40 + 3]) {
    expect(params({ sizeBytes: sectors * 512 }).sectors).toBe(sectors);
  }
});

test('a write-through disk has no cache, and needs no FUA', () => {
  expect(params({ writeThrough: true })).toMatchObject({ volatileCache: false, fua: false });
});

test('a read-only disk has no cache and offers nothing that writes', () => {
  expect(params({ readOnly: true })).toMatchObject({
    readOnly: true,
    volatileCache: false,
    fua: false,
    maxDiscardSectors: 0,
    maxWriteZeroesSectors: 0,
    discardGranularity: 512,
  });
});

test('an encrypted disk has no discard, and zeroes no more at once than it is to write', () => {
  const encrypted = params({ xts: 1, canPunch: false });
  expect(encrypted).toMatchObject({ maxDiscardSectors: 0, maxWriteZeroesSectors: 1 << 13 });
});

test('a file that cannot be punched has no discard, but zeroes', () => {
  const whole = params({ canPunch: false });
  expect(whole).toMatchObject({ maxDiscardSectors: 0, maxWriteZeroesSectors: 1 << 21 });
});

test.each([
  ['a stripe comes first', { optimalIo: 65536 }, 1 << 20, 1 << 20],
  ['no power of two is rounded down', { optimalIo: 3 * 65536 }, 0, 2 * 65536],
  ['no size at all is the physical block', { optimalIo: 0, physicalBlock: 4096 }, 0, 4096],
  ['less than a block is the block', { optimalIo: 512, physicalBlock: 4096 }, 0, 4096],
])('the optimal size: %s', (_, facts, stripeBytes, expected) => {
  expect(params(facts, stripeBytes).optimalIo).toBe(expected);
});

test('no block is larger than the driver allows, and none physical smaller than logical', () => {
  expect(params({ logicalBlock: 65536, physicalBlock: 65536 })).toMatchObject({
    logicalBlock: 4096,
    physicalBlock: 65536,
  });
  expect(params({ logicalBlock: 4096, physicalBlock: 512 }).physicalBlock).toBe(4096);
});

test('what memory must be aligned to comes from the disk, where it is the request’s own', () => {
  expect(params({ directMemoryAlign: 4096 }).dmaAlignment).toBe(4);
  const zeroCopy = (directMemoryAlign: number) =>
    params({ directMemoryAlign }, 0, 'zero_copy').dmaAlignment;
  expect([1, 4, 512, 4096].map(zeroCopy)).toEqual([4, 4, 512, 4096]);
});

const disk = { sizeBytes: 64 << 20 };

test.each([
  ['nothing', {}, {}],
  ['the alignment of memory', disk, { ...disk, directMemoryAlign: 4096 }],
  ['discard', disk, { ...disk, canPunch: false }],
])('a disk that has changed by %s goes on', (_, was, is) => {
  refuseOtherDisk(info, params(was), params(is));
});

test.each([
  [disk, { sizeBytes: 32 << 20 }, "has a size of 67108864 bytes and can't be given 33554432; "],
  [
    disk,
    { ...disk, logicalBlock: 4096, physicalBlock: 4096 },
    "has blocks of 512 bytes and can't be given 4096; ",
  ],
  [
    disk,
    { ...disk, readOnly: true },
    "has been made for writing and can't be given reading alone; ",
  ],
  [
    { ...disk, readOnly: true },
    disk,
    "has been made for reading alone and can't be given writing; ",
  ],
  [
    disk,
    { ...disk, writeThrough: true },
    "has been made with 'write_through: false' and can't be given 'true'; ",
  ],
  [
    { ...disk, writeThrough: true },
    disk,
    "has been made with 'write_through: true' and can't be given 'false'; ",
  ],
])('a disk that is another one now is refused (%#)', (was, is, sentence) => {
  const refused = () => refuseOtherDisk(info, params(was), params(is));
  expect(refused).toThrow(
    `'/dev/ublkb7', which this disk had before, ${sentence}remove it with 'ubiblk ublk del 7'`,
  );
});

test('memory that the disk is written from must be aligned as the disk needs it now', () => {
  const zeroCopy = { ...info, flags: featureBits('SUPPORT_ZERO_COPY', 'AUTO_BUF_REG') };
  const aligned = (directMemoryAlign: number) =>
    params({ ...disk, directMemoryAlign }, 0, 'zero_copy');
  refuseOtherDisk(zeroCopy, aligned(4096), aligned(512));
  expect(() => refuseOtherDisk(zeroCopy, aligned(512), aligned(4096))).toThrow(
    "has memory aligned to 512 bytes and can't be given 4096; ",
  );
});
