/**
 * A metadata file on disk: read as a whole once, then written unit by unit. With keys it is encrypted
 * like the data, its sectors numbered from the file's start. It is opened, and locked, as the data file is.
 */
import { Lane } from '../../ffi/lane.ts';
import { shim } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import { cipherXts } from '../crypto/xts.ts';
import { type Disk, type DiskFacts, openDisk } from '../device/disk.ts';
import { errorName, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { type FileFacts, readAt, syncFile, writeAt } from './async_file.ts';
import type { MetadataStore } from './interfaces.ts';
import {
  checkMetadataSize,
  METADATA_SECTOR,
  MetadataError,
  type MetadataLayout,
  metadataExtent,
  parseMetadata,
} from './metadata_layout.ts';

export interface MetadataOptions {
  /** O_DIRECT, where the file system has it. */
  directIo: boolean;
  /** O_DSYNC: every write is durable before it completes. */
  writeThrough: boolean;
  /** Handle of the disk's expanded keys (`expandXts`), which stays the caller's; 0: the file is plain. */
  xts: number;
}

/** What is transferred at once, and ciphered: a fraction of a millisecond of the main thread. */
const PIECE_BYTES = 1 << 20;

const remedy = "make it with 'ubiblk metadata init'";

/** The plain bytes of an open file, whatever they are. */
export class MetadataFile implements MetadataStore {
  readonly unitBytes: number;
  /** Metadata is written in order anyway. */
  private readonly lane = new Lane('metadata', 1);

  /** @param facts of the open file; `logicalBlock` makes the unit */
  constructor(
    private readonly facts: FileFacts & Pick<DiskFacts, 'logicalBlock' | 'writeThrough'>,
    private readonly xts: number,
  ) {
    this.unitBytes = Math.max(METADATA_SECTOR, facts.logicalBlock);
  }

  /**
   * Reads a part, both of whose ends are multiples of the unit.
   * @returns less where the file ends before, in whole sectors
   * @throws Error with a `code`
   */
  async read(offset: number, length: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(length);
    for (let at = 0; at < length; at += PIECE_BYTES) {
      const size = Math.min(PIECE_BYTES, length - at);
      const count = await inPiece(size, async (buffer, window) => {
        const count = await readAt(this.lane, this.facts, buffer, offset + at);
        const whole = count - (count % METADATA_SECTOR);
        this.cipher(shim.ubiblk_xts_decrypt, offset + at, whole, buffer);
        bytes.set(window.subarray(0, whole), at);
        return whole;
      });
      if (count < size) return bytes.subarray(0, at + count);
    }
    return bytes;
  }

  async write(offset: number, data: Uint8Array): Promise<void> {
    for (let at = 0; at < data.length; at += PIECE_BYTES) {
      const part = data.subarray(at, at + PIECE_BYTES);
      await inPiece(part.length, async (buffer, window) => {
        window.set(part);
        this.cipher(shim.ubiblk_xts_encrypt, offset + at, part.length, buffer);
        await writeAt(this.lane, this.facts, buffer, offset + at);
      });
    }
  }

  async sync(): Promise<void> {
    if (!this.facts.writeThrough) await this.settle();
  }

  /** Whatever the file holds is on stable storage, also what others wrote. */
  async settle(): Promise<void> {
    await syncFile(this.lane, this.facts.fd);
  }

  /** Ends its thread; the file is the caller's. */
  close(): void {
    this.lane.close();
  }

  private cipher(
    work: typeof shim.ubiblk_xts_encrypt,
    offset: number,
    length: number,
    { address }: NativeBuffer,
  ): void {
    if (this.xts === 0 || length === 0) return;
    cipherXts(work, this.xts, offset, length, address, address);
  }
}

async function inPiece<T>(
  length: number,
  use: (buffer: NativeBuffer, window: Uint8Array) => Promise<T>,
): Promise<T> {
  const buffer = new NativeBuffer(length);
  try {
    return await use(buffer, new Uint8Array(buffer.window()));
  } finally {
    buffer.free();
  }
}

/** A metadata file that belongs to a disk. */
export interface OpenMetadata {
  readonly layout: MetadataLayout;
  /** One byte for each stripe of the disk, as they were in the file; the caller's own. */
  readonly headers: Uint8Array;
  readonly store: MetadataStore;
  /** Gives the lock back. */
  close(): Promise<void>;
}

/**
 * Opens and reads a disk's metadata file.
 * @param use `serve`: for writing, locked for this process alone, for which it waits up to 10 s; `look`:
 *   for reading, without a lock, beside a server
 * @throws UserError where it is missing, in use, damaged, or can't be this disk's
 */
export async function openMetadata(
  path: string,
  options: MetadataOptions & { diskBytes: number; use: 'serve' | 'look' },
  log: Log,
): Promise<OpenMetadata> {
  const { directIo, writeThrough, xts, diskBytes, use } = options;
  const look = use === 'look' ? { readOnly: true, lockWaitMs: null } : {};
  const disk = await openDisk(
    { path, directIo, writeThrough, ioEngine: 'sync', remedy, ...look },
    log,
  );
  const store = new MetadataFile(disk.facts, xts);
  const close = async () => {
    store.close();
    disk.close();
  };
  try {
    if (use === 'serve' && disk.facts.readOnly) {
      throw new UserError(
        `'${path}' may not be written, but a server records there what becomes of the disk's stripes; ` +
          'allow it',
      );
    }
    // What a server wrote that was killed may be in the cache alone; guests' data will rely on it.
    if (use === 'serve') await settle(path, store);
    const parsed = await load(disk, store, diskBytes, use === 'look' ? 2 : 1);
    return { ...parsed, store, close };
  } catch (error) {
    await close();
    throw error;
  }
}

async function settle(path: string, file: MetadataFile): Promise<void> {
  try {
    await file.settle();
  } catch (error) {
    throw new UserError(`'${path}' can't be made durable: ${errorName(error)}`);
  }
}

/** @param attempts a server may be writing just what is read */
async function load(
  { path, facts }: Disk,
  file: MetadataFile,
  diskBytes: number,
  attempts: number,
): Promise<{ layout: MetadataLayout; headers: Uint8Array }> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await readMetadata(file, facts.sizeBytes, diskBytes);
    } catch (error) {
      if (!(error instanceof MetadataError)) {
        throw new UserError(`'${path}' can't be read: ${errorName(error)}`);
      }
      if (attempt === attempts) throw new UserError(`'${path}' ${error.message}`);
    }
  }
}

/**
 * Reads as much of a file as a disk's map takes.
 * @param sizeBytes of the file
 * @throws MetadataError where it isn't a map of this disk's, or an Error with a `code`
 */
export async function readMetadata(
  file: MetadataFile,
  sizeBytes: number,
  diskBytes: number,
): Promise<{ layout: MetadataLayout; headers: Uint8Array }> {
  checkMetadataSize(sizeBytes);
  const { unitBytes } = file;
  const first = await file.read(0, unitBytes);
  const extent = Math.min(metadataExtent(first.subarray(0, METADATA_SECTOR), diskBytes), sizeBytes);
  const bytes = await file.read(0, Math.ceil(extent / unitBytes) * unitBytes);
  return parseMetadata(bytes, diskBytes);
}
