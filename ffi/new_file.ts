/**
 * A file that is there as a whole or not at all, for the owner's eyes only. It has no name until it is
 * complete and on stable storage, so that nothing is left of it whatever ends the process. File systems
 * that have no such files (O_TMPFILE) give it another name beside its place, which everything that ends
 * the process through its `exit` event takes away, and SIGKILL leaves.
 */
import {
  accessSync,
  closeSync,
  constants,
  fsync,
  fsyncSync,
  linkSync,
  openSync,
  realpathSync,
  renameSync,
  rmSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import { errorName, UserError } from '../src/errors.ts';
import { fileError } from './errno.ts';
import { openLibrary, shim } from './library.ts';

/** Not in node's constants; the rest of it is O_DIRECTORY. */
const O_TMPFILE = 0o20000000 | constants.O_DIRECTORY;
/** What kernels and file systems say that don't know it. */
const NO_TMPFILE = ['EOPNOTSUPP', 'EISDIR', 'EINVAL'];

const syncFile = promisify(fsync);

export class NewFile {
  /** Open for writing; closed by `commit` and `discard`. */
  readonly fd: number;
  readonly #path: string;
  readonly #target: string;
  /** Another name that it has. */
  #temporary: string | undefined;
  #open = true;
  readonly #atExit = () => this.discard();

  /**
   * Begins the file. A link at `path` stays, what it leads to will be replaced.
   * @param unnamed whether a file without a name is tried
   * @throws UserError where nothing can be written there
   */
  constructor(path: string, unnamed = true) {
    this.#path = path;
    this.#target = followLinks(path);
    const folder = dirname(this.#target);
    try {
      const fd = unnamed ? openUnnamed(folder) : undefined;
      if (fd === undefined) this.#temporary = temporaryName(folder);
      this.fd = fd ?? openSync(this.#temporary as string, 'wx', MODE);
    } catch (error) {
      throw new UserError(creationSentence(path, folder, errorName(error)));
    }
    process.on('exit', this.#atExit);
  }

  /** Syncs the file and gives it its name. @throws UserError where that fails */
  async commit(): Promise<void> {
    await this.#commit(() => {
      if (this.#temporary === undefined) {
        // What is there can only be replaced by something that has a name.
        const temporary = temporaryName(dirname(this.#target));
        linkUnnamed(this.fd, temporary);
        this.#temporary = temporary;
      }
      renameSync(this.#temporary, this.#target);
    });
  }

  /**
   * The same where nothing has the name yet.
   * @returns false where something has it, which stays as it is
   * @throws UserError where that fails
   */
  async commitAsNew(): Promise<boolean> {
    try {
      await this.#commit(() => {
        if (this.#temporary === undefined) linkUnnamed(this.fd, this.#target);
        else linkSync(this.#temporary, this.#target);
      });
      return true;
    } catch (error) {
      if (error instanceof UserError && error.cause === 'EEXIST') return false;
      throw error;
    }
  }

  async #commit(giveName: () => void): Promise<void> {
    if (!this.#open) throw new Error('the file has been given up');
    try {
      await syncFile(this.fd);
      // Opened before: what has its name must not be told to have failed for want of permission.
      const folder = openSync(dirname(this.#target), constants.O_RDONLY);
      try {
        giveName();
        this.discard();
        fsyncSync(folder);
      } finally {
        closeSync(folder);
      }
    } catch (error) {
      const cause = errorName(error);
      throw new UserError(`'${this.#path}' cannot be completed: ${cause}`, { cause });
    }
  }

  /** Removes what was written, unless it has its name already. */
  discard(): void {
    if (!this.#open) return;
    this.#open = false;
    process.off('exit', this.#atExit);
    if (this.#temporary !== undefined) rmSync(this.#temporary, { force: true });
    closeSync(this.fd);
  }
}

const MODE = 0o600;

/** @returns undefined where the file system has no files without a name */
function openUnnamed(folder: string): number | undefined {
  try {
    return openSync(folder, O_TMPFILE | constants.O_RDWR, MODE);
  } catch (error) {
    if (NO_TMPFILE.includes(errorName(error))) return undefined;
    throw error;
  }
}

/** @throws Error with a `code` */
function linkUnnamed(fd: number, path: string): void {
  openLibrary();
  const result = shim.ubiblk_file_link(fd, Buffer.from(`${path}\0`));
  if (result < 0) throw fileError('linkat', result);
}

function temporaryName(folder: string): string {
  const random = Buffer.from(crypto.getRandomValues(new Uint8Array(8))).toString('hex');
  return join(folder, `.ubiblk-${random}.tmp`);
}

/** Where the file is or will be. @throws UserError if one is there that must not be written */
function followLinks(path: string): string {
  let target: string;
  try {
    target = realpathSync(path);
  } catch (error) {
    if (errorName(error) === 'ENOENT') return path;
    throw new UserError(`'${path}' cannot be written: ${errorName(error)}`);
  }
  try {
    accessSync(target, constants.W_OK);
  } catch (error) {
    throw new UserError(`'${path}' is there and may not be written: ${errorName(error)}`);
  }
  return target;
}

function creationSentence(path: string, folder: string, code: string): string {
  switch (code) {
    case 'ENOENT':
      return `the folder '${folder}' of '${path}' does not exist; create it`;
    default:
      return `'${path}' cannot be made in its folder '${folder}': ${code}`;
  }
}
