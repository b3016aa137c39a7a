/**
 * A file that is there as a whole or not at all: written under another name beside its place, for the
 * owner's eyes only, and renamed when it is complete and on stable storage. Whatever ends the process
 * through its `exit` event takes an incomplete one along.
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
import { errorName, UserError } from './errors.ts';

const syncFile = promisify(fsync);

export class NewFile {
  /** Open for writing; closed by `commit` and `discard`. */
  readonly fd: number;
  readonly #path: string;
  readonly #target: string;
  #temporary: string | undefined;
  readonly #atExit = () => this.discard();

  /**
   * Begins the file. A link at `path` stays, what it leads to will be replaced.
   * @throws UserError where nothing can be written there
   */
  constructor(path: string) {
    this.#path = path;
    this.#target = followLinks(path);
    const folder = dirname(this.#target);
    const random = Buffer.from(crypto.getRandomValues(new Uint8Array(8))).toString('hex');
    const temporary = join(folder, `.ubiblk-${random}.tmp`);
    try {
      this.fd = openSync(temporary, 'wx', 0o600);
    } catch (error) {
      throw new UserError(creationSentence(path, folder, errorName(error)));
    }
    this.#temporary = temporary;
    process.on('exit', this.#atExit);
  }

  /** Syncs the file and gives it its name. @throws UserError where that fails */
  async commit(): Promise<void> {
    await this.#commit(renameSync);
  }

  /**
   * The same where nothing has the name yet.
   * @returns false where something has it, which stays as it is
   * @throws UserError where that fails
   */
  async commitAsNew(): Promise<boolean> {
    try {
      await this.#commit(linkSync);
      return true;
    } catch (error) {
      if (error instanceof UserError && error.cause === 'EEXIST') return false;
      throw error;
    }
  }

  async #commit(rename: (from: string, to: string) => void): Promise<void> {
    if (this.#temporary === undefined) throw new Error('the file has been given up');
    try {
      await syncFile(this.fd);
      // Opened before: what has its name must not be told to have failed for want of permission.
      const folder = openSync(dirname(this.#target), constants.O_RDONLY);
      try {
        rename(this.#temporary, this.#target);
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
    if (this.#temporary === undefined) return;
    rmSync(this.#temporary, { force: true });
    this.#end();
  }

  #end(): void {
    this.#temporary = undefined;
    process.off('exit', this.#atExit);
    closeSync(this.fd);
  }
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
