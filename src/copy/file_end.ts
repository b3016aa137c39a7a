/** Files as ends of a copy: any file or block device to read, a new file to write. */
import { createHash } from 'node:crypto';
import { closeSync, fstatSync, ftruncateSync, openSync } from 'node:fs';
import { errnoName } from '../../ffi/errno.ts';
import { Lane } from '../../ffi/lane.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { NewFile } from '../../ffi/new_file.ts';
import { errorName, UserError } from '../errors.ts';
import type { Memory } from '../remote/channel.ts';
import { readAt, writeOutAt } from '../stripe/async_file.ts';
import { PartialImage, refuseExisting } from '../stripe/partial_image.ts';
import type { CopySource, CopyTarget, Extent } from './ends.ts';

const UNIT_BYTES = 1 << 20;
const THREADS = 8;
/** Looks at the file for one answer. */
const MOST_EXTENTS = 256;
/** struct ubiblk_file_facts of c/ubiblk.h begins with the size; it has so many 32-bit words. */
const FACTS_WORDS = 13;

export class FileSource implements CopySource {
  readonly unitBytes = UNIT_BYTES;
  readonly parallel = THREADS;
  private readonly lane = new Lane('source', THREADS);
  private readonly file: { fd: number; bufferedFd: number; directOffsetAlign: number };

  private constructor(
    readonly name: string,
    private readonly fd: number,
    readonly sizeBytes: number,
    readonly identity: string,
  ) {
    this.file = { fd, bufferedFd: -1, directOffsetAlign: 1 };
  }

  /** @throws UserError */
  static open(path: string): FileSource {
    openLibrary();
    let fd = -1;
    try {
      fd = openSync(path, 'r');
      const stat = fstatSync(fd, { bigint: true });
      const words = new Uint32Array(new ArrayBuffer(FACTS_WORDS * 4 + 4));
      const result = shim.ubiblk_file_facts(fd, words);
      if (result < 0)
        throw new Error(`it is neither a file nor a block device (${errnoName(result)})`);
      const sizeBytes = Number(new BigUint64Array(words.buffer, 0, 1)[0]);
      const { dev, ino, mtimeNs } = stat;
      return new FileSource(path, fd, sizeBytes, `file ${dev} ${ino} ${mtimeNs} ${sizeBytes}`);
    } catch (error) {
      if (fd >= 0) closeSync(fd);
      throw new UserError(`'${path}' can't be read: ${errorName(error)}`);
    }
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    return fileExtents(this.fd, offset, length);
  }

  async read(offset: number, { address }: Memory, length: number): Promise<boolean> {
    const count = await readAt(this.lane, this.file, { address, length }, offset).catch((error) => {
      throw new UserError(`'${this.name}' can't be read: ${errorName(error)}`);
    });
    if (count < length)
      throw new UserError(`'${this.name}' has become shorter while it was copied`);
    return true;
  }

  async close(): Promise<void> {
    this.lane.close();
    closeSync(this.fd);
  }
}

/** The data and holes of a file, from an offset on. */
export function fileExtents(fd: number, offset: number, length: number): Extent[] {
  const extents: Extent[] = [];
  const end = offset + length;
  for (let at = offset; at < end && extents.length < MOST_EXTENTS; ) {
    const run = Number(shim.ubiblk_file_extent(fd, at, end));
    extents.push({ length: Math.abs(run), zero: run < 0 });
    at += Math.abs(run);
  }
  return extents;
}

/** A file that is made anew, or that an interrupted run has begun. */
export class FileTarget implements CopyTarget {
  readonly isZero = true;
  readonly sectorBytes = 1;

  private constructor(
    readonly name: string,
    private readonly image: PartialImage,
    readonly roomBytes: number,
    private readonly unitBytes: number,
  ) {}

  /** @throws UserError where something is there and `force` doesn't say that it goes */
  static open(path: string, source: CopySource, force: boolean): FileTarget {
    refuseExisting(path, force);
    const { sizeBytes, unitBytes, identity } = source;
    const parts = Math.ceil(sizeBytes / unitBytes);
    const hash = createHash('sha256').update(`${identity}\n${unitBytes}`).digest();
    const image = PartialImage.open(path, { identity: hash, parts, sizeBytes });
    return new FileTarget(path, image, sizeBytes, unitBytes);
  }

  has(offset: number): boolean {
    return this.image.has(offset / this.unitBytes);
  }

  async write(offset: number, { address }: Memory, length: number): Promise<void> {
    await this.image.write(address, length, offset);
  }

  async zero(): Promise<void> {}

  async done(offset: number): Promise<void> {
    this.image.add(offset / this.unitBytes);
    await this.image.noteNow();
  }

  async commit(): Promise<void> {
    await this.image.commit();
  }

  async giveUp(): Promise<void> {
    await this.image.note();
  }

  async close(): Promise<void> {
    this.image.close();
  }
}

/** A file that is made of a stream: nobody can go on with it, so it has no name until all of it is there. */
export class StreamFileTarget implements CopyTarget {
  readonly isZero = true;
  readonly roomBytes = Number.MAX_SAFE_INTEGER;
  readonly sectorBytes = 1;
  private readonly lane = new Lane('target', 1);
  private readonly file: NewFile;
  private readonly facts: { fd: number; bufferedFd: number; directOffsetAlign: number };

  /** @throws UserError where something is there and `force` doesn't say that it goes */
  constructor(
    readonly name: string,
    force: boolean,
  ) {
    refuseExisting(name, force);
    this.file = new NewFile(name);
    this.facts = { fd: this.file.fd, bufferedFd: -1, directOffsetAlign: 1 };
  }

  has(): boolean {
    return false;
  }

  async write(offset: number, { address }: Memory, length: number): Promise<void> {
    await writeOutAt(this.lane, this.facts, { address, length }, offset).catch((error) => {
      throw new UserError(`'${this.name}' can't be written: ${errorName(error)}`);
    });
  }

  async zero(): Promise<void> {}

  async done(): Promise<void> {}

  async commit(sizeBytes: number): Promise<void> {
    // Zeroes at its end were not written.
    ftruncateSync(this.file.fd, sizeBytes);
    await this.file.commit();
  }

  async giveUp(): Promise<void> {}

  async close(): Promise<void> {
    this.file.discard();
    this.lane.close();
  }
}
