/** The link that gives a device a name of the user's choice (`--device-symlink`). */
import {
  lstatSync,
  mkdirSync,
  readlinkSync,
  renameSync,
  type Stats,
  symlinkSync,
  unlinkSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { errorName, UserError } from '../../errors.ts';

/**
 * Refuses what could only fail when the device is there.
 * @throws UserError where the path is a directory, or a file that is no link, or can't be looked at
 */
export function checkLinkPlace(path: string): void {
  const there = lookAt(path);
  if (there === undefined || there.isSymbolicLink()) return;
  const what = there.isDirectory() ? 'a directory' : 'a file and no symbolic link';
  throw new UserError(`'${path}' is ${what}; remove it or choose another path for the link`);
}

function lookAt(path: string): Stats | undefined {
  try {
    return lstatSync(path, { throwIfNoEntry: false });
  } catch (error) {
    throw new UserError(`'${path}' can't be a link: ${errorName(error)}; choose another path`);
  }
}

/**
 * Makes the link, or replaces the one that is there in one step.
 * @throws UserError
 */
export function makeLink(path: string, target: string): void {
  const temporary = join(dirname(path), `.${basename(path)}.${process.pid}.tmp`);
  try {
    mkdirSync(dirname(path), { recursive: true });
    unlinkIfThere(temporary);
    symlinkSync(target, temporary);
    checkLinkPlace(path);
    renameSync(temporary, path);
  } catch (error) {
    unlinkIfThere(temporary);
    if (error instanceof UserError) throw error;
    throw new UserError(`the link '${path}' can't be made: ${errorName(error)}`);
  }
}

/** Removes the link where it still leads to the device. */
export function removeLink(path: string, target: string): void {
  try {
    if (readlinkSync(path) === target) unlinkSync(path);
  } catch {
    // It is gone, or something else has taken its place.
  }
}

function unlinkIfThere(path: string): void {
  try {
    unlinkSync(path);
  } catch {
    // What keeps the link from being made is told by the step that makes it.
  }
}
