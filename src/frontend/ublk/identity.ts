/**
 * Which disk a device is of: 64 bits that the kernel keeps with the device for us (ublksrv_flags), so
 * that a server finds its device again after a crash.
 */
import { createHash, randomBytes } from 'node:crypto';
import { fstatSync } from 'node:fs';
import { openLibrary, shim } from '../../../ffi/library.ts';

/** The upper 16 bits of every device of ours: "ub". */
const OURS = 0x7562n;
const SHIFT = 48n;

/**
 * The bits of a disk.
 * @param fd the open data file, which is told by what it is, not by its name
 */
export function identityOf(deviceId: string, fd: number): bigint {
  openLibrary();
  const { dev, ino, rdev } = fstatSync(fd, { bigint: true });
  // The number of a file that is gone is used again.
  const birth = shim.ubiblk_file_birth(fd);
  const file = rdev === 0n ? `file ${dev}:${ino}:${birth}` : `device ${rdev}`;
  const hash = createHash('sha256').update(`${deviceId}\0${file}`).digest();
  return (OURS << SHIFT) | BigInt(`0x${hash.subarray(0, 6).toString('hex')}`);
}

/** Bits that no disk has: of a device that nobody will look for. */
export function randomIdentity(): bigint {
  return (OURS << SHIFT) | (randomBytes(8).readBigUInt64LE() >> 16n);
}

/** Whether a device was made by ubiblk. */
export function isOurs(userFlags: bigint): boolean {
  return userFlags >> SHIFT === OURS;
}
