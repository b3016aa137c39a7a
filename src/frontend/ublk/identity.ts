/**
 * Which disk a device is of: 64 bits that the kernel keeps with the device for us (ublksrv_flags), so
 * that a server finds its device again after a crash.
 */
import { createHash } from 'node:crypto';
import { fstatSync } from 'node:fs';

/** The upper 16 bits of every device of ours: "ub". */
const OURS = 0x7562n;
const SHIFT = 48n;

/**
 * The bits of a disk.
 * @param fd the open data file, which is told by what it is, not by its name
 */
export function identityOf(deviceId: string, fd: number): bigint {
  const { dev, ino, rdev } = fstatSync(fd, { bigint: true });
  const file = rdev === 0n ? `file ${dev}:${ino}` : `device ${rdev}`;
  const hash = createHash('sha256').update(`${deviceId}\0${file}`).digest();
  return (OURS << SHIFT) | BigInt(`0x${hash.subarray(0, 6).toString('hex')}`);
}

/** Whether a device was made by ubiblk. */
export function isOurs(userFlags: bigint): boolean {
  return userFlags >> SHIFT === OURS;
}
