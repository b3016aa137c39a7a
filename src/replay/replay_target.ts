/** What an I/O log is replayed onto: a disk, or a disk and a file of what has changed of it. */
import { closeSync, mkdtempSync, openSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { errorName, UserError } from '../errors.ts';

export interface ReplayTarget {
  /** Fills the buffer. @throws UserError where the disk ends before, or can't be read */
  read(bytes: Buffer, offset: number): void;
  /** @throws UserError where it can't be written */
  write(bytes: Buffer, offset: number): void;
  close(): void;
}

/** A file or block device, which writes go to; a file grows with them. */
export class DiskTarget implements ReplayTarget {
  /** @param fd open for reading and writing; closed by whoever has opened it */
  constructor(
    protected readonly fd: number,
    protected readonly path: string,
  ) {}

  read(bytes: Buffer, offset: number): void {
    const got = this.readSome(this.fd, bytes, offset);
    if (got < bytes.length) throw this.ended(offset + got);
  }

  write(bytes: Buffer, offset: number): void {
    this.writeAll(this.fd, bytes, offset);
  }

  close(): void {}

  /** @returns how many bytes there were */
  protected readSome(fd: number, bytes: Buffer, offset: number): number {
    try {
      for (let done = 0; done < bytes.length; ) {
        const got = readSync(fd, bytes, done, bytes.length - done, offset + done);
        if (got === 0) return done;
        done += got;
      }
      return bytes.length;
    } catch (error) {
      throw new UserError(`'${this.path}' cannot be read at offset ${offset}: ${errorName(error)}`);
    }
  }

  protected writeAll(fd: number, bytes: Buffer, offset: number): void {
    try {
      for (let done = 0; done < bytes.length; ) {
        done += writeSync(fd, bytes, done, bytes.length - done, offset + done);
      }
    } catch (error) {
      throw new UserError(
        `what is for offset ${offset} of '${this.path}' cannot be written: ${errorName(error)}`,
      );
    }
  }

  protected ended(offset: number): UserError {
    return new UserError(
      `'${this.path}' ends at offset ${offset}, where the log reads on; is it the right disk?`,
    );
  }
}

const SECTOR_BYTES = 512;
/** Bytes of the disk whose sectors have their bits in one array. */
const CHUNK_BYTES = 16 * 1024 * 1024;

/** A disk that isn't changed: writes go to a file without a name, and reads look there first. */
export class TrialTarget extends DiskTarget {
  private readonly changes: number;
  /** Which sectors are in the file of changes, a bit of each. */
  private readonly changed = new Map<number, Uint8Array>();
  private endBytes = 0;

  /** @throws UserError where there can't be such a file in the folder for temporary ones */
  constructor(fd: number, path: string) {
    super(fd, path);
    let folder: string | undefined;
    try {
      folder = mkdtempSync(join(tmpdir(), 'ubiblk-replay-'));
      this.changes = openSync(join(folder, 'changes'), 'wx+', 0o600);
    } catch (error) {
      throw new UserError(
        `no temporary file can be made in '${tmpdir()}': ${errorName(error)}; set TMPDIR`,
      );
    } finally {
      if (folder !== undefined) rmSync(folder, { recursive: true, force: true });
    }
  }

  override read(bytes: Buffer, offset: number): void {
    const got = this.readSome(this.fd, bytes, offset);
    const end = Math.max(offset + got, Math.min(this.endBytes, offset + bytes.length));
    if (end < offset + bytes.length) throw this.ended(end);
    // Behind the disk's end, before what was written there, a file has zeroes.
    bytes.fill(0, got);
    this.forChanged(offset, bytes.length, (from, to) => {
      this.readSome(this.changes, bytes.subarray(from - offset, to - offset), from);
    });
  }

  override write(bytes: Buffer, offset: number): void {
    if (bytes.length === 0) return;
    const end = offset + bytes.length;
    for (const edge of [offset, end]) if (edge % SECTOR_BYTES !== 0) this.bring(edge);
    this.writeAll(this.changes, bytes, offset);
    for (let at = sectorStart(offset); at < end; at += SECTOR_BYTES) this.mark(at);
    this.endBytes = Math.max(this.endBytes, end);
  }

  override close(): void {
    closeSync(this.changes);
  }

  /** Of a sector that is written in part the rest is what it was. */
  private bring(offset: number): void {
    const at = sectorStart(offset);
    if (this.isChanged(at)) return;
    const sector = Buffer.alloc(SECTOR_BYTES);
    this.readSome(this.fd, sector, at);
    this.writeAll(this.changes, sector, at);
  }

  private forChanged(offset: number, length: number, use: (from: number, to: number) => void) {
    const end = offset + length;
    for (let at = sectorStart(offset); at < end; at += SECTOR_BYTES) {
      if (!this.isChanged(at)) continue;
      let to = at + SECTOR_BYTES;
      while (to < end && this.isChanged(to)) to += SECTOR_BYTES;
      use(Math.max(at, offset), Math.min(to, end));
      at = to;
    }
  }

  private isChanged(at: number): boolean {
    const sector = (at % CHUNK_BYTES) / SECTOR_BYTES;
    const bits = this.changed.get(Math.floor(at / CHUNK_BYTES));
    return bits !== undefined && (bits[sector >> 3] & (1 << (sector & 7))) !== 0;
  }

  private mark(at: number): void {
    const chunk = Math.floor(at / CHUNK_BYTES);
    const sector = (at % CHUNK_BYTES) / SECTOR_BYTES;
    let bits = this.changed.get(chunk);
    if (!bits) {
      bits = new Uint8Array(CHUNK_BYTES / SECTOR_BYTES / 8);
      this.changed.set(chunk, bits);
    }
    bits[sector >> 3] |= 1 << (sector & 7);
  }
}

function sectorStart(offset: number): number {
  return offset - (offset % SECTOR_BYTES);
}
