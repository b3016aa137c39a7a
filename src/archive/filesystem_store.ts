/** An archive in a folder. */
import {
  closeSync,
  fstatSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { opendir, readFile, stat, unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { EAGAIN, ENOENT, ENOTDIR, errnoName } from '../../ffi/errno.ts';
import { Lane } from '../../ffi/lane.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { errorName, UserError } from '../errors.ts';
import type { StripeBuffer } from '../stripe/interfaces.ts';
import { recoverHead, replaceHead } from './filesystem_head.ts';
import { type Commit, NOTE_NAME, type ObjectStore, type Run, type StoredObject } from './store.ts';
import { DATA_PREFIX, parseHash } from './stripe_index.ts';

const PARALLEL = 8;
const TEMPORARY = /^\.[0-9a-f]+\.tmp$/;
const FOLDER_MODE = 0o700;
const FILE_MODE = 0o600;

export class FilesystemStore implements ObjectStore {
  readonly name: string;
  readonly parallel = PARALLEL;
  readonly switches = true;
  readonly locks = true;
  private readonly lane = new Lane('archive', PARALLEL);
  /** Files that have no name of theirs yet. */
  private readonly temporary = new Set<string>();
  private temporaryCount = 0;
  /** Open from before the first write on: of writes that were lost, syncfs tells who was there then. */
  private syncFd = -1;
  private readonly atExit = () => {
    for (const path of this.temporary) rmSync(path, { force: true });
  };

  /** @param description for messages, as the reference system has it */
  constructor(
    private readonly path: string,
    readonly description: string,
  ) {
    openLibrary();
    this.name = `'${path}'`;
    process.on('exit', this.atExit);
  }

  async get(name: string): Promise<Uint8Array | null> {
    try {
      return await readFile(this.at(name));
    } catch (error) {
      if (isMissing(error)) return null;
      throw this.failure('read', name, error);
    }
  }

  async fetch(name: string, { address, bytes }: StripeBuffer): Promise<number | null> {
    const path = this.at(name);
    const size = await this.lane.readFile(path, { address, length: bytes.length });
    if (size === -ENOENT || size === -ENOTDIR) return null;
    if (size < 0) throw this.failure('read', name, systemError(size));
    if (size > bytes.length) throw new UserError(tooLong(path, size, bytes.length));
    return size;
  }

  async put(name: string, { address, bytes }: StripeBuffer): Promise<void> {
    const temporary = this.at(
      `${DATA_PREFIX}.${process.pid.toString(16)}${this.temporaryCount++}.tmp`,
    );
    this.temporary.add(temporary);
    const from = { address, length: bytes.length };
    const result = await this.lane.makeFile(temporary, this.at(name), from);
    this.temporary.delete(temporary);
    if (result < 0) throw this.failure('written', name, systemError(result));
  }

  async holds(name: string, bytes: Uint8Array): Promise<boolean> {
    try {
      const length = await this.lengthOf(name);
      return length === bytes.length && Buffer.compare(await readFile(this.at(name)), bytes) === 0;
    } catch (error) {
      if (isMissing(error)) return false;
      throw this.failure('read', name, error);
    }
  }

  async *list(): AsyncGenerator<StoredObject> {
    try {
      for await (const { name } of await opendir(this.at(DATA_PREFIX))) {
        if (!parseHash(name)) continue;
        const lengthBytes = await this.lengthOf(DATA_PREFIX + name);
        // Somebody may delete it meanwhile.
        if (lengthBytes !== null) yield { hash: name, lengthBytes };
      }
    } catch (error) {
      if (!isMissing(error)) throw this.failure('listed', DATA_PREFIX, error);
    }
  }

  async remove(hashes: string[]): Promise<void> {
    for (const hash of hashes) {
      try {
        await unlink(this.at(DATA_PREFIX + hash));
      } catch (error) {
        if (!isMissing(error)) throw this.failure('removed', DATA_PREFIX + hash, error);
      }
    }
  }

  async begin(): Promise<Run> {
    try {
      mkdirSync(this.at(DATA_PREFIX), { recursive: true, mode: FOLDER_MODE });
      const run = FolderRun.begin(this.path, this.at(NOTE_NAME));
      try {
        if (this.syncFd < 0) this.syncFd = openSync(this.at(DATA_PREFIX), 'r');
        recoverHead(this.path);
        run.begun = await this.removeTemporary();
        return run;
      } catch (error) {
        run.leave();
        throw error;
      }
    } catch (error) {
      if (error instanceof UserError) throw error;
      throw new UserError(`the archive ${this.name} can't be written: ${errorName(error)}`);
    }
  }

  async commit(commit: Commit): Promise<void> {
    try {
      await this.syncAll();
      replaceHead(this.path, commit);
    } catch (error) {
      throw new UserError(`the archive ${this.name} can't be completed: ${errorName(error)}`);
    }
  }

  giveUp(): void {
    // Nothing here takes long.
  }

  close(): void {
    process.off('exit', this.atExit);
    this.lane.close();
    if (this.syncFd >= 0) closeSync(this.syncFd);
    this.syncFd = -1;
  }

  private at(name: string): string {
    return join(this.path, name);
  }

  private async lengthOf(name: string): Promise<number | null> {
    try {
      return (await stat(this.at(name))).size;
    } catch (error) {
      if (isMissing(error)) return null;
      throw error;
    }
  }

  /** One call for all objects: a sync of each would cost more than to write it. */
  private async syncAll(): Promise<void> {
    const result = await this.lane.syncAll(this.syncFd);
    if (result < 0) throw systemError(result);
  }

  /** Of runs that were killed. @returns whether there are any files of data */
  private async removeTemporary(): Promise<boolean> {
    let any = false;
    for (const folder of [this.path, this.at(DATA_PREFIX)]) {
      for await (const { name } of await opendir(folder)) {
        if (TEMPORARY.test(name)) await unlink(join(folder, name));
        else if (folder !== this.path) any = true;
      }
    }
    return any;
  }

  private failure(how: string, name: string, error: unknown): UserError {
    if (error instanceof UserError) return error;
    const verb = how === 'read' ? "can't be read" : `can't be ${how}`;
    return new UserError(`'${this.at(name)}' ${verb}: ${errorName(error)}`);
  }
}

/** The note is the lock, too. */
class FolderRun implements Run {
  begun = false;
  private ended = false;

  private constructor(
    private readonly path: string,
    private readonly fd: number,
    readonly left: Uint8Array | null,
  ) {}

  static begin(folder: string, path: string): FolderRun {
    for (;;) {
      const fd = openSync(path, 'a+', FILE_MODE);
      const result = shim.ubiblk_file_lock(fd, 0, 0, 1);
      if (result === -EAGAIN) {
        closeSync(fd);
        throw new UserError(
          `another run is writing to the archive '${folder}'; wait for its end, or stop it`,
        );
      }
      if (result < 0) {
        closeSync(fd);
        throw systemError(result);
      }
      // The run before may have taken it away between these two calls.
      if (statSync(path, { throwIfNoEntry: false })?.ino === fstatSync(fd).ino) {
        const left = readFileSync(path);
        return new FolderRun(path, fd, left.length > 0 ? left : null);
      }
      closeSync(fd);
    }
  }

  async note(description: string): Promise<void> {
    // Never without it for a moment: it has the only copy of the keys.
    if (this.left && Buffer.compare(this.left, Buffer.from(description)) === 0) return;
    ftruncateSync(this.fd, 0);
    writeSync(this.fd, description);
    fsyncSync(this.fd);
  }

  async end(): Promise<void> {
    unlinkSync(this.path);
    this.ended = true;
  }

  leave(): void {
    // What was never written to is no note.
    if (!this.ended && fstatSync(this.fd).size === 0) rmSync(this.path, { force: true });
    closeSync(this.fd);
  }
}

function systemError(result: number): Error {
  return Object.assign(new Error(), { code: errnoName(result) });
}

function isMissing(error: unknown): boolean {
  const code = errorName(error);
  return code === 'ENOENT' || code === 'ENOTDIR';
}

function tooLong(path: string, size: number, most: number): string {
  return `'${path}' has ${size} bytes, more than the ${most} that a stripe takes: it is damaged`;
}
