import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { Secret } from '../crypto/secret.ts';
import { errorName, UserError } from '../errors.ts';
import { VeiledText } from './veiled_text.ts';

const usualBytes = 4096;
/** A configuration has hardly a hundredth of it. */
const maxBytes = 65536;

export interface TextFile {
  /** For the caller to wipe. */
  text: VeiledText;
  /** A regular file that its group or others may read, write or execute. */
  openToOthers: boolean;
}

/**
 * Reads a whole UTF-8 file, straight into secret memory; pipes work too.
 * @param what how errors call the file: `configuration file`
 * @throws UserError if it cannot be read, is not UTF-8, or has 64 KiB or more
 */
export function readTextFile(path: string, what: string): TextFile {
  let bytes: Secret;
  let openToOthers: boolean;
  try {
    const fd = openSync(path, 'r');
    try {
      const status = fstatSync(fd);
      openToOthers = status.isFile() && (status.mode & 0o077) !== 0;
      bytes = readAll(fd);
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    throw new UserError(`cannot read the ${what} '${path}': ${errorName(error)}`);
  }
  try {
    return { text: new VeiledText(bytes), openToOthers };
  } catch {
    throw new UserError(`the ${what} '${path}' is not UTF-8 text`);
  }
}

function readAll(fd: number): Secret {
  let room = new Secret(usualBytes);
  try {
    let used = 0;
    for (;;) {
      const got = readSync(fd, room.reveal(), used, room.lengthBytes - used, null);
      if (got === 0) {
        return beginning(room, used, used);
      }
      used += got;
      if (used === room.lengthBytes) {
        if (used === maxBytes) {
          throw new Error(`it has ${maxBytes / 1024} KiB or more`);
        }
        const larger = beginning(room, used, used * 2);
        room.wipe();
        room = larger;
      }
    }
  } finally {
    room.wipe();
  }
}

/** A copy of the first `usedBytes` of a secret. */
function beginning(secret: Secret, usedBytes: number, lengthBytes: number): Secret {
  const copy = new Secret(lengthBytes);
  copy.reveal().set(secret.reveal().subarray(0, usedBytes));
  return copy;
}
