/**
 * The nodes of users' devices in /dev. Whose a device is only the driver knows, so they are root's until
 * `ubiblk ublk owner --apply` has given them away.
 */
import {
  chmodSync,
  chownSync,
  closeSync,
  constants,
  fstatSync,
  lstatSync,
  openSync,
} from 'node:fs';
import { basename, join } from 'node:path';
import { errorName, UserError } from '../../errors.ts';
import type { UblkControl } from './control.ts';
import { blockPath, charPath, type DeviceInfo, hasFeature } from './protocol.ts';

/** Of Linux on x86-64: opens a node's name alone, not its device. */
const O_PATH = 0x200000;
const NODE_MODE = 0o600;
/** Each of them is for a device that came in the place of another one meanwhile. */
const ATTEMPTS = 100;

interface Node {
  path: string;
  fd: number;
}

/**
 * Gives the nodes of an unprivileged device, and of no other, to its owner alone. There may be no device.
 * @param folder where the nodes are
 * @throws UserError where this user can't give anything away
 */
export function giveNodes(
  control: Pick<UblkControl, 'infoIfAllowed'>,
  id: number,
  folder = '/dev',
): void {
  for (let attempt = 0; attempt < ATTEMPTS; attempt++) {
    // Before the question: a node made after it may be of another user's device with the same number.
    const nodes = [charPath(id), blockPath(id)].flatMap((path) =>
      open(join(folder, basename(path))),
    );
    try {
      const info = control.infoIfAllowed(id);
      if (!info || !hasFeature(info.flags, 'UNPRIVILEGED_DEV')) return;
      for (const node of nodes) give(node, info);
      if (nodes.every(isInPlace)) return;
    } finally {
      for (const { fd } of nodes) closeSync(fd);
    }
  }
}

function open(path: string): Node[] {
  let fd: number;
  try {
    fd = openSync(path, O_PATH | constants.O_NOFOLLOW);
  } catch (error) {
    if (errorName(error) === 'ENOENT') return [];
    throw error;
  }
  const stat = fstatSync(fd);
  if (stat.isCharacterDevice() || stat.isBlockDevice()) return [{ path, fd }];
  closeSync(fd);
  return [];
}

function give({ path, fd }: Node, { ownerUid, ownerGid }: DeviceInfo): void {
  const node = `/proc/self/fd/${fd}`;
  try {
    chmodSync(node, NODE_MODE);
    chownSync(node, ownerUid, ownerGid);
  } catch (error) {
    const why = errorName(error);
    throw new UserError(`'${path}' can't be given to user ${ownerUid} (${why}): run as root`);
  }
}

/** Whether no other node has taken its name. */
function isInPlace({ path, fd }: Node): boolean {
  try {
    return lstatSync(path).ino === fstatSync(fd).ino;
  } catch (error) {
    if (errorName(error) === 'ENOENT') return true;
    throw error;
  }
}
