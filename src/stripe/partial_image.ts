/**
 * An image that is written beside its place, with a note of what of it is there already, so that a run
 * that was interrupted is gone on with; it gets its name when all of it is durable.
 */
import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  type Stats,
  statSync,
  writeFileSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { Lane, type Part } from '../../ffi/lane.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { errorName, UserError } from '../errors.ts';
import { type FileFacts, syncFile, writeOutAt } from './async_file.ts';
import { syncFolder } from './sync_folder.ts';

const FILE_MODE = 0o600;
/** How often what is done is made durable and noted, in milliseconds. */
const NOTE_MS = 5000;
/** Of SHA-256 of what the image is made from. */
const IDENTITY_BYTES = 32;

/** Whole ones of these go past the page cache; for smaller ones storage would have to be waited for too often. */
const DIRECT_BYTES = 1 << 20;
const DIRECT_THREADS = 4;

/** What an image is made of, and from. */
export interface ImageParts {
  /** IDENTITY_BYTES that tell the content from every other. */
  identity: Buffer;
  /** Each is there or isn't. */
  parts: number;
  sizeBytes: number;
  /**
   * What is written comes from page-aligned memory: it may go past the page cache, which costs less, and takes
   * no memory from others for what nobody may read soon.
   */
  aligned?: boolean;
}

/**
 * Refuses a place that is taken.
 * @throws UserError
 */
export function refuseExisting(path: string, force: boolean): void {
  const there = look(path);
  if (there && !there.isFile()) {
    throw new UserError(`'${path}' is no regular file; name one, and copy it from there`);
  }
  if (there && !force) {
    throw new UserError(`'${path}' is there already; give --force to replace it, or another name`);
  }
}

export class PartialImage {
  private readonly identity: Buffer;
  private readonly lane: Lane;
  /** -1 where all goes through the page cache. */
  private readonly directFd: number;
  /** Where the next write goes. */
  private file: FileFacts;
  /** A bit for each part that is there. */
  private readonly bits: Uint8Array;
  private notedMs = performance.now();
  private noting: Promise<void> | null = null;
  /** The kernel tells once that it lost something: what is noted after that could be missing. */
  private syncFailed = false;

  private constructor(
    private readonly path: string,
    private readonly partial: string,
    private readonly notePath: string,
    private readonly fd: number,
    { identity, parts, sizeBytes, aligned = false }: ImageParts,
  ) {
    this.identity = identity;
    this.directFd = aligned ? openDirect(fd) : -1;
    // The page cache of a file takes one write after the other.
    this.lane = new Lane('image', this.directFd < 0 ? 1 : DIRECT_THREADS);
    this.file =
      this.directFd < 0
        ? buffered(fd)
        : { fd: this.directFd, bufferedFd: fd, directOffsetAlign: DIRECT_BYTES };
    this.bits = new Uint8Array(Math.ceil(parts / 8));
    const note = readNote(notePath);
    const mine = note?.subarray(0, IDENTITY_BYTES).equals(identity) ?? false;
    // A file of another size isn't the one that the note is of.
    const whole = fstatSync(fd).size === sizeBytes;
    if (note && mine && whole && note.length === IDENTITY_BYTES + this.bits.length) {
      this.bits.set(note.subarray(IDENTITY_BYTES));
      return;
    }
    this.removeNote();
    ftruncateSync(fd, 0);
    ftruncateSync(fd, sizeBytes);
  }

  /**
   * Begins an image, or goes on with one of the same content.
   * @throws UserError where it can't be written, or another process is at it
   */
  static open(path: string, parts: ImageParts): PartialImage {
    openLibrary();
    const partial = `${path}.partial`;
    let fd = -1;
    try {
      fd = openSync(partial, constants.O_RDWR | constants.O_CREAT, FILE_MODE);
      if (!fstatSync(fd).isFile()) throw new Error('it is no regular file');
      if (shim.ubiblk_file_lock(fd, 0, 0, 1) < 0) {
        throw new Error('another run is writing it; wait for its end, or stop it');
      }
      return new PartialImage(path, partial, `${partial}.note`, fd, parts);
    } catch (error) {
      if (fd >= 0) closeSync(fd);
      throw new UserError(`'${partial}' can't be written: ${errorName(error)}`);
    }
  }

  has(part: number): boolean {
    return (this.bits[part >> 3] & (1 << (part & 7))) !== 0;
  }

  add(part: number): void {
    this.bits[part >> 3] |= 1 << (part & 7);
  }

  async write(address: number, length: number, offset: number): Promise<void> {
    try {
      await this.writeOut({ address, length }, offset);
    } catch (error) {
      throw new UserError(`'${this.partial}' can't be written: ${errorName(error)}`);
    }
  }

  private async writeOut(from: Part, offset: number): Promise<void> {
    const { file } = this;
    try {
      await writeOutAt(this.lane, file, from, offset);
    } catch (error) {
      // Servers of file systems may let a file be opened so that they can't write to.
      if (file.fd === this.fd || (error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
      this.file = buffered(this.fd);
      await writeOutAt(this.lane, this.file, from, offset);
    }
  }

  /** Notes what is there, where that is due. */
  async noteNow(): Promise<void> {
    if (performance.now() - this.notedMs >= NOTE_MS) await this.note();
  }

  /** What is there is durable, and then noted. */
  async note(): Promise<void> {
    this.noting ??= this.noteOnce().finally(() => {
      this.noting = null;
    });
    await this.noting;
  }

  private async noteOnce(): Promise<void> {
    this.notedMs = performance.now();
    const bits = this.bits.slice();
    const temporary = `${this.notePath}.tmp`;
    try {
      await this.sync();
      writeFileSync(temporary, Buffer.concat([this.identity, bits]), {
        mode: FILE_MODE,
        flush: true,
      });
      renameSync(temporary, this.notePath);
    } catch (error) {
      rmSync(temporary, { force: true });
      throw new UserError(`'${this.notePath}' can't be written: ${errorName(error)}`);
    }
  }

  /** Makes it durable and gives it its name. @throws UserError */
  async commit(): Promise<void> {
    try {
      await this.sync();
      this.removeNote();
      renameSync(this.partial, this.path);
      syncFolder(dirname(this.path));
    } catch (error) {
      throw new UserError(`'${this.path}' can't be completed: ${errorName(error)}`);
    }
  }

  close(): void {
    closeSync(this.fd);
    if (this.directFd >= 0) closeSync(this.directFd);
    this.lane.close();
  }

  private async sync(): Promise<void> {
    if (this.syncFailed) throw new Error('a sync failed before');
    try {
      await syncFile(this.lane, this.fd);
    } catch (error) {
      this.syncFailed = true;
      throw error;
    }
  }

  /** It must never be there with a file that it isn't of, which then would seem to have what it lacks. */
  private removeNote(): void {
    rmSync(this.notePath, { force: true });
    syncFolder(dirname(this.notePath));
  }
}

function buffered(fd: number): FileFacts {
  return { fd, bufferedFd: -1, directOffsetAlign: 1 };
}

/** Another description of the file, with O_DIRECT; -1 where its file system has none. */
function openDirect(fd: number): number {
  try {
    return openSync(`/proc/self/fd/${fd}`, constants.O_RDWR | constants.O_DIRECT);
  } catch {
    return -1;
  }
}

/** Undefined where there is nothing, or what it is can't be seen: who writes is told then. */
function look(path: string): Stats | undefined {
  try {
    return statSync(path, { throwIfNoEntry: false });
  } catch {
    return undefined;
  }
}

function readNote(path: string): Buffer | null {
  try {
    return readFileSync(path);
  } catch {
    return null;
  }
}
