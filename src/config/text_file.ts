import { closeSync, fstatSync, openSync, readFileSync } from 'node:fs';
import { errorName, UserError } from '../errors.ts';

export interface TextFile {
  text: string;
  /** A regular file that its group or others may read, write or execute. */
  openToOthers: boolean;
}

/**
 * Reads a whole UTF-8 file; pipes work too. The bytes are overwritten after decoding.
 * @param what how errors call the file: `configuration file`
 * @throws UserError if it cannot be read or is not UTF-8
 */
export function readTextFile(path: string, what: string): TextFile {
  let bytes: Buffer;
  let openToOthers: boolean;
  try {
    const fd = openSync(path, 'r');
    try {
      const status = fstatSync(fd);
      openToOthers = status.isFile() && (status.mode & 0o077) !== 0;
      bytes = readFileSync(fd);
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    throw new UserError(`cannot read the ${what} '${path}': ${errorName(error)}`);
  }
  try {
    return { text: new TextDecoder('utf-8', { fatal: true }).decode(bytes), openToOthers };
  } catch {
    throw new UserError(`the ${what} '${path}' is not UTF-8 text`);
  } finally {
    bytes.fill(0);
  }
}
