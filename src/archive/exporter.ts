/** Writes an archive's disk into a file, sparse, and goes on where a run before was interrupted. */
import { createHash } from 'node:crypto';
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
import { Lane } from '../../ffi/lane.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { errorName, UserError } from '../errors.ts';
import { syncFile, writeOutAt } from '../stripe/async_file.ts';
import { syncFolder } from './filesystem_head.ts';
import type { Slot } from './object_codec.ts';
import type { Archive } from './reader.ts';
import { Slots } from './slots.ts';

export interface ExportOptions {
  path: string;
  /** A file that is there is replaced. */
  force: boolean;
  signal: AbortSignal;
  progress: (doneBytes: number, totalBytes: number) => void;
}

export interface Exported {
  stripes: number;
  /** Stripes that were written, and that a run before had written. */
  written: number;
  kept: number;
}

const FILE_MODE = 0o600;
/** How often what is done is made durable and noted, in milliseconds. */
const NOTE_MS = 5000;
/** Of SHA-256 of what is exported. */
const IDENTITY_BYTES = 32;

/**
 * Writes the disk beside its place, makes it durable and gives it its name.
 * @throws UserError; what was written stays beside it, for a run that goes on with it
 */
export async function exportArchive(archive: Archive, options: ExportOptions): Promise<Exported> {
  const { path, force } = options;
  const there = look(path);
  if (there && !there.isFile()) {
    throw new UserError(`'${path}' is no regular file; name one, and copy it from there`);
  }
  if (there && !force) {
    throw new UserError(`'${path}' is there already; give --force to replace it, or another name`);
  }
  const part = PartialImage.open(path, archive);
  try {
    const exported = await new Exporter(archive, part, options).run();
    await part.commit();
    return exported;
  } finally {
    part.close();
  }
}

class Exporter {
  private done = 0;
  private written = 0;
  private kept = 0;

  constructor(
    private readonly archive: Archive,
    private readonly part: PartialImage,
    private readonly options: ExportOptions,
  ) {}

  async run(): Promise<Exported> {
    const { archive } = this;
    const slots = new Slots(archive.form, archive.store.parallel);
    try {
      const work = (stripe: number, slot: Slot) => this.write(stripe, slot);
      await slots.forEach(archive.stripes, work, this.options.signal, () => archive.store.giveUp());
    } catch (error) {
      // What went wrong first is what is told.
      await this.part.note().catch(() => {});
      throw error;
    } finally {
      slots.free();
    }
    return { stripes: archive.stripes, written: this.written, kept: this.kept };
  }

  private async write(stripe: number, slot: Slot): Promise<void> {
    const { archive, part } = this;
    const { stripeBytes, sizeBytes } = archive;
    const offset = stripe * stripeBytes;
    const length = Math.min(stripeBytes, sizeBytes - offset);
    if (part.has(stripe)) {
      this.kept++;
    } else {
      const object = archive.index.objectOf(stripe);
      if (object !== null) {
        // What the file has not been given yet is zeroes.
        if (await archive.load(stripe, object, slot)) {
          await part.write(slot.stripe.address, length, offset);
          this.written++;
        }
      }
      part.add(stripe);
    }
    this.done += length;
    this.options.progress(this.done, sizeBytes);
    await part.noteNow();
  }
}

/** The file that is being written, and the note of which stripes of which archive it has. */
class PartialImage {
  /** The page cache of a file takes one write after the other. */
  private readonly lane = new Lane('export', 1);
  private readonly file: { fd: number; bufferedFd: number; directOffsetAlign: number };
  /** A bit for each stripe that is there. */
  private readonly bits: Uint8Array;
  private notedMs = performance.now();
  private noting: Promise<void> | null = null;
  /** The kernel tells once that it lost something: what is noted after that could be missing. */
  private syncFailed = false;

  private constructor(
    private readonly path: string,
    private readonly partial: string,
    private readonly notePath: string,
    private readonly identity: Buffer,
    fd: number,
    { stripes, sizeBytes }: Archive,
  ) {
    this.file = { fd, bufferedFd: -1, directOffsetAlign: 1 };
    this.bits = new Uint8Array(Math.ceil(stripes / 8));
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

  static open(path: string, archive: Archive): PartialImage {
    openLibrary();
    const partial = `${path}.partial`;
    let fd = -1;
    try {
      fd = openSync(partial, constants.O_RDWR | constants.O_CREAT, FILE_MODE);
      if (!fstatSync(fd).isFile()) throw new Error('it is no regular file');
      if (shim.ubiblk_file_lock(fd, 0, 0, 1) < 0) {
        throw new Error('another run is writing it; wait for its end, or stop it');
      }
      return new PartialImage(path, partial, `${partial}.note`, identityOf(archive), fd, archive);
    } catch (error) {
      if (fd >= 0) closeSync(fd);
      throw new UserError(`'${partial}' can't be written: ${errorName(error)}`);
    }
  }

  has(stripe: number): boolean {
    return (this.bits[stripe >> 3] & (1 << (stripe & 7))) !== 0;
  }

  add(stripe: number): void {
    this.bits[stripe >> 3] |= 1 << (stripe & 7);
  }

  async write(address: number, length: number, offset: number): Promise<void> {
    try {
      await writeOutAt(this.lane, this.file, { address, length }, offset);
    } catch (error) {
      throw new UserError(`'${this.partial}' can't be written: ${errorName(error)}`);
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
    closeSync(this.file.fd);
    this.lane.close();
  }

  private async sync(): Promise<void> {
    if (this.syncFailed) throw new Error('a sync failed before');
    try {
      await syncFile(this.lane, this.file.fd);
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

/** What tells an archive's content from every other. */
function identityOf({ index, form, description }: Archive): Buffer {
  const hash = createHash('sha256').update(description.text);
  hash.update(JSON.stringify([form.stripeSectors, description.diskBytes]));
  const place = Buffer.alloc(4);
  for (let stripe = 0; stripe < index.stripes; stripe++) {
    const object = index.objectOf(stripe);
    if (object === null) continue;
    place.writeUInt32LE(stripe);
    hash.update(place).update(index.hashOf(object));
  }
  return hash.digest();
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
