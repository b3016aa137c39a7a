/** Makes an archive of a disk. */
import { Lane } from '../../ffi/lane.ts';
import type { ArchiveKek } from '../config/device_config.ts';
import { expandXts, freeXts } from '../crypto/xts.ts';
import type { DiskFacts } from '../device/disk.ts';
import { UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { readAt, readDataAt } from '../stripe/async_file.ts';
import type { StripeSource } from '../stripe/interfaces.ts';
import { FETCHED, HAS_SOURCE, WRITTEN } from '../stripe/shared_state.ts';
import { describeCompression, sameCompression } from './compression.ts';
import {
  completeText,
  DESCRIPTION_NAME,
  type Description,
  newDescription,
  parseDescription,
  type Shape,
  sha256Hex,
  wipeDescription,
} from './description.ts';
import { encodeJsonIndex } from './json_index.ts';
import type { ObjectForm, Slot } from './object_codec.ts';
import { named } from './reader.ts';
import { Slots } from './slots.ts';
import { INDEX_NAMES, isSweepNote, NOTE_NAME, type ObjectStore, type Run } from './store.ts';
import { objectName, StripeIndex } from './stripe_index.ts';
import { encodeMapping } from './stripe_mapping.ts';

/** The disk that is archived. */
export interface ArchivedDisk {
  facts: DiskFacts;
  diskBytes: number;
  stripeBytes: number;
  /** What is where, a byte for each stripe; where writes weren't recorded, what may have been written counts. */
  headers: Uint8Array;
  /** Of stripes that aren't on the disk. */
  source: StripeSource | null;
}

export interface WriteOptions {
  shape: Omit<Shape, 'stripeSectors' | 'diskBytes'>;
  encrypted: boolean;
  kek: ArchiveKek;
  /** An archive that is there is replaced. */
  force: boolean;
  /** An interrupted run is gone on with. */
  resume: boolean;
  signal: AbortSignal;
  progress: (doneBytes: number, totalBytes: number) => void;
}

export interface Written {
  stripes: number;
  archived: number;
  zeroes: number;
  objects: number;
  /** Of those, how many were there already. */
  kept: number;
  /** Bytes of all objects, and of the description and the index. */
  objectBytes: number;
  headBytes: number;
}

/** Threads that read the disk. */
const READ_THREADS = 8;

/**
 * Archives a disk: its data first, then the description, then the index.
 * @throws UserError where something can't be read or put, or another archive is in the way. What was put
 *   stays, for a run that goes on with it
 */
export async function writeArchive(
  disk: ArchivedDisk,
  store: ObjectStore,
  options: WriteOptions,
  log: Log,
): Promise<Written> {
  const { diskBytes, stripeBytes } = disk;
  const shape = { ...options.shape, stripeSectors: stripeBytes / 512, diskBytes };
  // Before anything is made there.
  if (!options.force) await existingHead(store, false);
  const run = await store.begin();
  try {
    if (isSweepNote(run.left)) {
      throw new UserError(
        `what is unused in ${store.name} is being deleted; wait for the end of that, or, where it was ` +
          "interrupted, run 'ubiblk archive gc --delete' again",
      );
    }
    // Another run may have ended meanwhile.
    const existing = await existingHead(store, options.force);
    const description = chooseDescription(shape, existing, run, store, options, log);
    const xts = description.keys ? expandXts(description.keys) : 0;
    try {
      await run.note(description.text);
      // Where the head can't be switched in one moment, the archive that is there keeps its keys.
      const before = existing && !store.switches ? existing.indexDigest : null;
      const written = await new Writer(disk, store, run, description, xts, before, options).run();
      await run.end();
      return written;
    } finally {
      freeXts(xts);
      wipeDescription(description);
    }
  } finally {
    run.leave();
  }
}

/** The head of an archive that is there. */
interface Head {
  description: Uint8Array;
  indexDigest: string;
}

/**
 * Null where there is no archive that can be read.
 * @throws UserError where there is one, and none is to be replaced
 */
async function existingHead(store: ObjectStore, replace: boolean): Promise<Head | null> {
  const description = await store.get(DESCRIPTION_NAME);
  if (!description) return null;
  for (const name of Object.values(INDEX_NAMES)) {
    const index = await store.get(name);
    if (!index) continue;
    if (replace) return { description, indexDigest: sha256Hex(index) };
    throw new UserError(
      `there is an archive in ${store.name} already; give --force to replace it, or another place`,
    );
  }
  return null;
}

/** What the objects of this run are made with: the keys of a run before, or new ones. */
function chooseDescription(
  shape: Shape,
  existing: Head | null,
  { left }: Run,
  store: ObjectStore,
  { encrypted, kek, resume }: WriteOptions,
  log: Log,
): Description {
  const reuse = (name: string, stored: Uint8Array, remedy: string) => {
    const description = named(store, name, () => parseDescription(stored, kek));
    const difference = differenceOf(description, shape, encrypted);
    if (!difference) return description;
    wipeDescription(description);
    throw new UserError(`${difference}; ${remedy}`);
  };
  if (existing && !store.switches) {
    return reuse(
      DESCRIPTION_NAME,
      existing.description,
      `in ${store.name} an archive can only be replaced by one of the same kind: choose another prefix`,
    );
  }
  if (left && resume) {
    return reuse(NOTE_NAME, left, 'go on with the same options, or leave out --resume');
  }
  if (resume) log.info(`no run was interrupted in ${store.name}: this one begins anew`);
  return newDescription(shape, encrypted, kek);
}

function differenceOf(description: Description, shape: Shape, encrypted: boolean): string | null {
  const was = (what: string, before: unknown, now: unknown) =>
    before === now ? null : `the run before was made with ${what} ${before}, this one with ${now}`;
  const { compression } = shape;
  const described = describeCompression(description.compression);
  return (
    was('format', description.format, shape.format) ??
    (sameCompression(description.compression, compression)
      ? null
      : was('compression', described, describeCompression(compression))) ??
    was('encryption', description.keys !== null, encrypted) ??
    was('stripes of sectors:', description.stripeSectors, shape.stripeSectors) ??
    was('a disk of bytes:', description.diskBytes, shape.diskBytes)
  );
}

class Writer {
  private readonly index: StripeIndex;
  private readonly form: ObjectForm;
  private readonly lane = new Lane('disk', READ_THREADS);
  private readonly abort = new AbortController();
  private doneBytes = 0;
  private kept = 0;
  private objectBytes = 0;
  /** The object of a stripe of zeroes, once there is one, where all are equal. */
  private zero: Uint8Array | null = null;

  constructor(
    private readonly disk: ArchivedDisk,
    private readonly store: ObjectStore,
    private readonly stored: Run,
    private readonly description: Description,
    private readonly xts: number,
    /** The digest of the index that is replaced, where the keys stay. */
    private readonly before: string | null,
    private readonly options: WriteOptions,
  ) {
    const { stripeSectors, compression } = description;
    this.form = { stripeSectors, compression, xts };
    this.index = new StripeIndex(disk.headers.length);
  }

  async run(): Promise<Written> {
    const { disk, form, store, index } = this;
    const slots = new Slots(form, store.parallel);
    const failed = () => {
      this.abort.abort();
      store.giveUp();
    };
    try {
      const work = (stripe: number, slot: Slot) => this.archive(stripe, slot);
      await slots.forEach(disk.headers.length, work, this.options.signal, failed);
    } finally {
      slots.free();
      this.lane.close();
    }
    const headBytes = await this.commit();
    return {
      stripes: index.stripes,
      archived: index.listed,
      zeroes: index.zeroes,
      objects: index.objects,
      kept: this.kept,
      objectBytes: this.objectBytes,
      headBytes,
    };
  }

  /** @returns bytes of the description and the index */
  private async commit(): Promise<number> {
    const { description, before } = this;
    const { format, hmacKey } = description;
    const index = hmacKey
      ? encodeMapping(this.index, hmacKey, this.xts)
      : encodeJsonIndex(this.index);
    const digest = sha256Hex(index);
    const text = completeText(description, [digest]);
    const meanwhile = before === null ? null : completeText(description, [before, digest]);
    const indexName = INDEX_NAMES[format];
    await this.store.commit({ description: text, meanwhile, indexName, index });
    return Buffer.byteLength(text) + index.length;
  }

  private async archive(stripe: number, slot: Slot): Promise<void> {
    const header = this.disk.headers[stripe];
    if ((header & (WRITTEN | HAS_SOURCE)) !== 0) {
      // What was written to is on the disk, whatever else is said of it.
      const onDisk = (header & (WRITTEN | FETCHED)) !== 0;
      const hasData = onDisk
        ? await this.readDisk(stripe, slot)
        : await this.readSource(stripe, slot);
      await this.put(stripe, slot, onDisk, hasData);
    }
    const { stripeBytes, diskBytes } = this.disk;
    this.doneBytes = Math.min(this.doneBytes + stripeBytes, diskBytes);
    this.options.progress(this.doneBytes, diskBytes);
  }

  /** Bytes of a stripe that are on the disk; the last one may be partial. */
  private lengthOf(stripe: number): number {
    const { stripeBytes, diskBytes } = this.disk;
    return Math.min(stripeBytes, diskBytes - stripe * stripeBytes);
  }

  /** @returns false where it is a hole, and then the slot isn't touched */
  private async readDisk(stripe: number, { stripe: buffer }: Slot): Promise<boolean> {
    const { facts, stripeBytes } = this.disk;
    const length = this.lengthOf(stripe);
    const to = { address: buffer.address, length };
    // A hole of an encrypted disk is noise, and of a block device none is known.
    const read = facts.xts !== 0 || facts.isBlockDevice ? readAt : readDataAt;
    let count: number | null;
    try {
      count = await read(this.lane, facts, to, stripe * stripeBytes);
    } catch (error) {
      throw new UserError(
        `stripe ${stripe} of the disk can't be read: ${(error as Error).message}`,
      );
    }
    if (count === null) return false;
    if (count < length) {
      throw new UserError(`the disk became shorter while stripe ${stripe} of it was read`);
    }
    buffer.bytes.fill(0, length);
    return true;
  }

  private async readSource(stripe: number, { stripe: buffer }: Slot): Promise<boolean> {
    const { source } = this.disk;
    if (!source) throw new Error(`stripe ${stripe} has no source`);
    const length = this.lengthOf(stripe);
    const part = { address: buffer.address, bytes: buffer.bytes.subarray(0, length) };
    try {
      if (!(await source.read(stripe, part, this.abort.signal))) return false;
    } catch (error) {
      const reason = (error as Error).message;
      throw new UserError(`stripe ${stripe} can't be had from ${source.description}: ${reason}`);
    }
    buffer.bytes.fill(0, length);
    return true;
  }

  /** @param onDisk whether the slot's bytes are as on the disk; else they are plain */
  private async put(stripe: number, slot: Slot, onDisk: boolean, hasData: boolean): Promise<void> {
    const { index, store, form, disk } = this;
    const skipZero = this.description.format === 2;
    if (!hasData) {
      if (skipZero) return index.addZero(stripe);
      if (this.zero) return void index.add(stripe, this.zero);
      slot.stripe.bytes.fill(0);
    }
    const { xts } = disk.facts;
    const cipher =
      xts !== 0 && onDisk && hasData
        ? { xts, sector: stripe * form.stripeSectors, lengthBytes: this.lengthOf(stripe) }
        : null;
    const sealed = await slot.seal(stripe, cipher, skipZero);
    if (!sealed) return index.addZero(stripe);
    const { hash, object } = sealed;
    if (!hasData && form.xts === 0) this.zero = hash;
    if (!index.add(stripe, hash)) return;
    this.objectBytes += object.bytes.length;
    const name = objectName(hash);
    if (this.stored.begun && (await store.holds(name, object.bytes))) this.kept++;
    else await store.put(name, object);
  }
}
