/**
 * Makes the metadata file of a disk, or makes one anew. A new file gets its name when it is complete. One
 * that is there, or a device, is written in place: its first sector goes first and comes last, so that
 * what was left half-way is no metadata file.
 */
import {
  fchmodSync,
  fstatSync,
  fsync,
  ftruncateSync,
  lstatSync,
  readSync,
  type Stats,
  statSync,
} from 'node:fs';
import { promisify } from 'node:util';
import { EOPNOTSUPP, errnoName } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { NewFile } from '../../ffi/new_file.ts';
import { type Disk, type DiskFacts, openDisk } from '../device/disk.ts';
import { errorName, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { MetadataFile, readMetadata } from './metadata_file.ts';
import {
  countStripes,
  METADATA_SECTOR,
  MetadataError,
  type MetadataLayout,
} from './metadata_layout.ts';
import { FETCHED, WRITTEN } from './shared_state.ts';

export interface NewMetadata {
  path: string;
  layout: MetadataLayout;
  /** One for each stripe. */
  headers: Uint8Array;
  /** Size of the disk, in bytes. */
  diskBytes: number;
  /** Handle of the disk's expanded keys; 0: the file is plain. */
  xts: number;
  /** Overwrites whatever is there. */
  force: boolean;
  /** Is told in bytes how much is written. */
  progress: (doneBytes: number, totalBytes: number) => void;
}

/** How long `init` waits for a lock: a server that was killed may be ending; a person waits. */
export const LOCK_WAIT_MS = 2000;
const PIECE_BYTES = 1 << 20;
const MODE = 0o600;
const MODE_BITS = 0o7777;

const syncWhole = promisify(fsync);

/**
 * Writes a disk's metadata file as a whole and puts it on stable storage.
 * @throws UserError where it can't be written, is in use, or holds what would be lost
 */
export async function initMetadata(metadata: NewMetadata, log: Log): Promise<void> {
  const { path } = metadata;
  const status = statusOf(path);
  try {
    if (status === undefined) await makeNew(metadata);
    else await rewrite(metadata, log);
  } catch (error) {
    if (error instanceof UserError || (error as NodeJS.ErrnoException).code === undefined)
      throw error;
    throw new UserError(`'${path}' can't be written: ${errorName(error)}`);
  }
}

function statusOf(path: string): Stats | undefined {
  try {
    const status = statSync(path, { throwIfNoEntry: false });
    if (status === undefined && lstatSync(path, { throwIfNoEntry: false }) !== undefined) {
      throw new UserError(
        `'${path}' is a symbolic link that leads nowhere; remove it, or make what it names`,
      );
    }
    return status;
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(`'${path}' can't be examined: ${errorName(error)}`);
  }
}

async function makeNew(metadata: NewMetadata): Promise<void> {
  openLibrary();
  const { path, layout, xts } = metadata;
  const file = new NewFile(path);
  const facts = {
    fd: file.fd,
    bufferedFd: -1,
    directOffsetAlign: 1,
    logicalBlock: METADATA_SECTOR,
    writeThrough: false,
  };
  const map = new MetadataFile(facts, xts);
  try {
    fchmodSync(file.fd, MODE);
    reserve(file.fd, path, 0, layout.sizeBytes);
    await writeRange(map, metadata, 0, layout.sizeBytes, layout.sizeBytes);
    if (!(await file.commitAsNew())) {
      throw new UserError(`'${path}' has been made by another process meanwhile; try again`);
    }
  } finally {
    map.close();
    file.discard();
  }
}

async function rewrite(metadata: NewMetadata, log: Log): Promise<void> {
  const { path, layout, xts, force, diskBytes } = metadata;
  const options = { path, ioEngine: 'sync', directIo: false, writeThrough: false } as const;
  const disk = await openDisk({ ...options, lockWaitMs: LOCK_WAIT_MS, anySize: true }, log);
  const { facts } = disk;
  const file = new MetadataFile(facts, xts);
  try {
    if (facts.readOnly) throw new UserError(`'${path}' may not be written; allow it`);
    if (!force) await refuseLoss(disk, file, diskBytes);
    const sizeBytes = facts.isBlockDevice ? deviceSize(disk, layout) : makeRoom(disk, layout, log);
    const { unitBytes } = file;
    await file.write(0, new Uint8Array(unitBytes));
    await file.sync();
    await writeRange(file, metadata, unitBytes, sizeBytes, sizeBytes);
    await file.sync();
    await writeRange(file, metadata, 0, unitBytes, sizeBytes);
    await syncWhole(facts.fd);
  } finally {
    file.close();
    disk.close();
  }
}

/** @throws UserError unless what is in the file is nothing, or a map that says nothing */
async function refuseLoss(
  { path, facts }: Disk,
  file: MetadataFile,
  diskBytes: number,
): Promise<void> {
  if (await isBlank(facts, file)) return;
  const way = 'give another metadata_path, or overwrite it with --force';
  try {
    const { headers } = await readMetadata(file, facts.sizeBytes, diskBytes);
    const [fetched, written] = [countStripes(headers, FETCHED), countStripes(headers, WRITTEN)];
    if (fetched + written === 0) return;
    throw new UserError(
      `'${path}' records ${fetched} fetched and ${written} written stripes, which would be forgotten; ` +
        way,
    );
  } catch (error) {
    if (!(error instanceof MetadataError)) throw error;
    throw new UserError(
      `'${path}' holds something that would be lost: it ${error.message}; ${way}`,
    );
  }
}

/** Whether the first sector is zeroes, encrypted or not: nothing is there, or what a stopped run left. */
async function isBlank(facts: DiskFacts, file: MetadataFile): Promise<boolean> {
  const isZero = (bytes: Uint8Array) => bytes.every((byte) => byte === 0);
  const raw = new Uint8Array(Math.min(METADATA_SECTOR, facts.sizeBytes));
  readSync(facts.fd, raw, 0, raw.length, 0);
  if (isZero(raw)) return true;
  const plain = await file.read(0, file.unitBytes);
  return plain.length > 0 && isZero(plain.subarray(0, METADATA_SECTOR));
}

function deviceSize({ path, facts }: Disk, layout: MetadataLayout): number {
  if (facts.sizeBytes >= layout.sizeBytes) return facts.sizeBytes;
  throw new UserError(
    `'${path}' has ${facts.sizeBytes} bytes, but the metadata of ${layout.stripes} stripes takes ` +
      `${layout.sizeBytes}; give a larger device, or larger stripes (-s)`,
  );
}

/** Grows a file where it must, and closes it to others. @returns its size */
function makeRoom({ path, facts }: Disk, layout: MetadataLayout, log: Log): number {
  const whole = Math.ceil(facts.sizeBytes / METADATA_SECTOR) * METADATA_SECTOR;
  const sizeBytes = Math.max(whole, layout.sizeBytes);
  reserve(facts.fd, path, facts.sizeBytes, sizeBytes);
  ftruncateSync(facts.fd, sizeBytes);
  try {
    if ((fstatSync(facts.fd).mode & MODE_BITS) !== MODE) fchmodSync(facts.fd, MODE);
  } catch (error) {
    log.warn(`'${path}' keeps its mode, others may use it: ${errorName(error)}`);
  }
  return sizeBytes;
}

/** Sees that there is room before anything is overwritten. */
function reserve(fd: number, path: string, oldBytes: number, bytes: number): void {
  const result = shim.ubiblk_fallocate(fd, 0, 0, bytes);
  if (result >= 0 || result === -EOPNOTSUPP) return;
  ftruncateSync(fd, oldBytes);
  throw new UserError(`'${path}' can't be given ${bytes} bytes: ${errnoName(result)}`);
}

async function writeRange(
  file: MetadataFile,
  { layout, headers, progress }: NewMetadata,
  start: number,
  end: number,
  totalBytes: number,
): Promise<void> {
  const piece = new Uint8Array(Math.min(PIECE_BYTES, end - start));
  for (let at = start; at < end; at += piece.length) {
    const part = piece.subarray(0, Math.min(piece.length, end - at));
    layout.encode(headers, at, part);
    await file.write(at, part);
    progress(at + part.length, totalBytes);
  }
}
