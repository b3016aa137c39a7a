/**
 * A disk as the main thread opens it: one open file description for the life of the process, locked,
 * and the facts that every queue needs to build its stack on it.
 *
 * The lock belongs to the description. Rings hold the description while I/O is in flight, so a disk
 * whose server was killed is free only when the last write of that server has ended.
 */
import { closeSync, constants, fsyncSync, openSync, statSync } from 'node:fs';
import { EAGAIN, EISDIR, ENOTBLK, errnoName, failed } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { freeXts } from '../crypto/xts.ts';
import { UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { IoLogShare } from './io_log.ts';
import type { NbdStart } from './nbd/nbd_device.ts';

export type IoEngine = 'io_uring' | 'sync';

export interface DiskOptions {
  path: string;
  ioEngine: IoEngine;
  /** O_DIRECT, where the file system has it. */
  directIo: boolean;
  /** O_DSYNC: every write is durable before it completes. */
  writeThrough: boolean;
  /** Never to be written, and to be shared with other readers. */
  readOnly?: boolean;
  /** How long a process that holds its lock is waited for, in milliseconds; null: it isn't locked. */
  lockWaitMs?: number | null;
  /** Any size will do, also none. */
  anySize?: boolean;
  /** What the user can do where the file is missing or empty: the end of a sentence. */
  remedy?: string;
  /** See DiskFacts; the disk that is opened takes it over. */
  xts?: number;
}

/** What a queue thread needs to know of a disk; plain data. */
export interface DiskFacts {
  /** -1: the null disk. */
  fd: number;
  /** The same file without O_DIRECT, for places that aren't aligned for it; -1 where none can be. */
  bufferedFd: number;
  sizeBytes: number;
  readOnly: boolean;
  writeThrough: boolean;
  direct: boolean;
  isBlockDevice: boolean;
  /** Bytes; powers of two. */
  logicalBlock: number;
  physicalBlock: number;
  /** Bytes, 0 where unknown. */
  optimalIo: number;
  /** What direct I/O asks of addresses in memory, and of offsets and lengths; 1 without it. */
  directMemoryAlign: number;
  directOffsetAlign: number;
  /** What is transferred at once, in bytes; more is cut up where that gains. */
  pieceBytes: number;
  canPunch: boolean;
  canZeroRange: boolean;
  /** Handle of the expanded keys that the data is encrypted with (`expandXts`); 0: it isn't. */
  xts: number;
  /** Whether flushes are answered without syncing. */
  skipSync?: boolean;
  /** Where what guests read and write is recorded. */
  ioLog?: IoLogShare;
  /** Of a disk that is an NBD server's export, and then has no file. */
  nbd?: NbdStart;
}

/** How long a disk's lock is waited for: a killed server's last writes may still be in flight. */
const LOCK_WAIT_MS = 10_000;
const LOCK_RETRY_MS = 50;
/** The description with O_DIRECT locks the first range, the one without it the second. */
const LOCK_SPLIT = 2 ** 62;

/** struct ubiblk_file_facts of c/ubiblk.h, in 32-bit words. */
const FACTS_WORDS = 12;
/** A copy of this much is worth the help of another thread. */
const CACHED_PIECE_BYTES = 512 * 1024;

export class Disk {
  constructor(
    readonly path: string,
    readonly facts: DiskFacts,
  ) {}

  /** Puts everything written on stable storage. Blocks. @throws UserError */
  sync(): void {
    if (this.facts.fd < 0 || this.facts.readOnly) return;
    try {
      fsyncSync(this.facts.fd);
    } catch (error) {
      throw new UserError(
        `'${this.path}': fsync failed with ${codeOf(error)}; data written last may be lost`,
      );
    }
  }

  /**
   * Closes the file, which gives the lock back, and wipes the keys. No thread may use the disk any
   * more: what it wrote with wiped keys would be lost.
   */
  close(): void {
    const { fd, bufferedFd, xts } = this.facts;
    for (const open of [fd, bufferedFd]) if (open >= 0) closeSync(open);
    freeXts(xts);
  }
}

/** A disk of the given size that does nothing (see NullDevice). */
export function openNullDisk(sizeBytes: number): Disk {
  return new Disk('null', nullFacts(sizeBytes));
}

/** The facts of a disk without a file. */
export function nullFacts(sizeBytes: number): DiskFacts {
  return {
    fd: -1,
    bufferedFd: -1,
    sizeBytes,
    readOnly: false,
    writeThrough: false,
    direct: false,
    isBlockDevice: false,
    logicalBlock: 512,
    physicalBlock: 512,
    optimalIo: 0,
    directMemoryAlign: 1,
    directOffsetAlign: 1,
    pieceBytes: CACHED_PIECE_BYTES,
    canPunch: true,
    canZeroRange: true,
    xts: 0,
  };
}

/**
 * Opens and locks a disk's data file, or another one that is used like it; waits up to 10 s for a
 * server that is still dying.
 * @throws UserError where the file is missing, of a wrong kind or size, or in use
 */
export async function openDisk(options: DiskOptions, log: Log): Promise<Disk> {
  openLibrary();
  const { path, xts = 0, lockWaitMs = LOCK_WAIT_MS } = options;
  const { fd, direct, readOnly } = await openFile(options, lockWaitMs ?? 0, log);
  const lock = async (descriptor: number, start: number, length: number) => {
    if (lockWaitMs === null) return;
    const range = { fd: descriptor, start, length, shared: readOnly };
    await lockRange(range, path, lockWaitMs, log);
  };
  let bufferedFd = -1;
  try {
    const words = factsOf(fd, path);
    const sizeBytes = Number(new BigUint64Array(words.buffer, 0, 1)[0]);
    if (!options.anySize) checkSize(options, sizeBytes);
    await lock(fd, 0, LOCK_SPLIT);
    const probe = shim.ubiblk_file_probe_zeroing;
    if (!readOnly) probe(fd, words);
    const at = (i: number) => words[i] as number;
    const offsetAlign = direct ? at(8) : 1;
    if (offsetAlign > 512) {
      bufferedFd = reopenBuffered(fd, readOnly, options.writeThrough);
      await lock(bufferedFd, LOCK_SPLIT, 1);
    }
    return new Disk(path, {
      fd,
      bufferedFd,
      sizeBytes,
      readOnly: readOnly || at(3) === 1,
      writeThrough: options.writeThrough,
      direct,
      isBlockDevice: at(2) === 1,
      logicalBlock: at(4),
      physicalBlock: at(5),
      optimalIo: at(6),
      directMemoryAlign: direct ? at(7) : 1,
      directOffsetAlign: offsetAlign,
      pieceBytes: direct ? at(11) : CACHED_PIECE_BYTES,
      // Holes would read as noise.
      canPunch: at(9) === 1 && xts === 0,
      canZeroRange: at(10) === 1,
      xts,
    });
  } catch (error) {
    closeSync(fd);
    if (bufferedFd >= 0) closeSync(bufferedFd);
    throw error;
  }
}

/**
 * Sees that nobody uses a file, or block device, that is to be replaced: a server would go on with what
 * has no name any more.
 * @throws UserError where somebody does, or that can't be seen
 */
export async function refuseUsedDisk(path: string, log: Log): Promise<void> {
  const options = { path, ioEngine: 'sync', directIo: false, writeThrough: false } as const;
  const disk = await openDisk({ ...options, anySize: true, lockWaitMs: 0 }, log);
  disk.close();
}

interface Opened {
  fd: number;
  direct: boolean;
  readOnly: boolean;
}

async function openFile(options: DiskOptions, waitMs: number, log: Log): Promise<Opened> {
  const { path, remedy = "create the disk's data file first" } = options;
  const stat = statSync(path, { throwIfNoEntry: false });
  if (!stat) throw new UserError(`'${path}' does not exist; ${remedy}`);
  if (!stat.isFile() && !stat.isBlockDevice()) {
    throw new UserError(`'${path}' is neither a regular file nor a block device`);
  }
  // root may write anything: a file without any write permission is meant to be read-only.
  let readOnly = options.readOnly || (stat.mode & 0o222) === 0;
  // On a block device O_EXCL refuses one that is mounted or otherwise in use.
  const exclusive = stat.isBlockDevice() ? constants.O_EXCL : 0;
  const sync = options.writeThrough ? constants.O_DSYNC : 0;
  let direct = options.directIo ? constants.O_DIRECT : 0;
  const patience = new Patience(waitMs, `'${path}' is in use; waiting for it to be let go of`, log);
  for (;;) {
    const access = readOnly ? constants.O_RDONLY : constants.O_RDWR | exclusive;
    try {
      const fd = openSync(path, access | sync | direct);
      if (readOnly && !options.readOnly) log.info(`'${path}' is read-only, and so is the disk`);
      return { fd, direct: direct !== 0, readOnly };
    } catch (error) {
      const code = codeOf(error);
      if (code === 'EINVAL' && direct) {
        log.warn(`'${path}': its file system refuses O_DIRECT; going through the page cache`);
        direct = 0;
      } else if (!readOnly && (code === 'EACCES' || code === 'EROFS' || code === 'EPERM')) {
        readOnly = true;
      } else if (code === 'EBUSY') {
        if (await patience.waited()) continue;
        throw new UserError(`'${path}' is mounted or in use by another program (EBUSY)`);
      } else {
        throw new UserError(`'${path}' can't be opened: ${code}`);
      }
    }
  }
}

function factsOf(fd: number, path: string): Uint32Array {
  const words = new Uint32Array(new ArrayBuffer(FACTS_WORDS * 4 + 4));
  const result = shim.ubiblk_file_facts(fd, words);
  if (result === -EISDIR || result === -ENOTBLK) {
    throw new UserError(`'${path}' is neither a regular file nor a block device`);
  }
  if (result < 0) throw new UserError(`'${path}' can't be examined: ${errnoName(result)}`);
  return words;
}

function checkSize({ path, remedy }: DiskOptions, sizeBytes: number): void {
  if (sizeBytes === 0) {
    const what = remedy ?? "give it the disk's size (truncate -s SIZE)";
    throw new UserError(`'${path}' is empty; ${what}`);
  }
  if (sizeBytes % 512 !== 0) {
    throw new UserError(
      `'${path}' has ${sizeBytes} bytes, which is not a multiple of 512; grow it to ` +
        `${Math.ceil(sizeBytes / 512) * 512} bytes`,
    );
  }
}

function reopenBuffered(fd: number, readOnly: boolean, writeThrough: boolean): number {
  const access = readOnly ? constants.O_RDONLY : constants.O_RDWR;
  return openSync(`/proc/self/fd/${fd}`, access | (writeThrough ? constants.O_DSYNC : 0));
}

interface LockRange {
  fd: number;
  start: number;
  length: number;
  /** With other readers; else for this process alone. */
  shared: boolean;
}

async function lockRange(
  { fd, start, length, shared }: LockRange,
  path: string,
  waitMs: number,
  log: Log,
): Promise<void> {
  const told = `'${path}' is locked by another process; waiting for it to end`;
  const patience = new Patience(waitMs, told, log);
  for (;;) {
    const result = shim.ubiblk_file_lock(fd, start, length, shared ? 0 : 1);
    if (result === 0) return;
    if (result !== -EAGAIN) throw failed('fcntl(F_OFD_SETLK)', result);
    if (await patience.waited()) continue;
    throw new UserError(
      `'${path}' is in use by another process, which holds its lock; stop that one first`,
    );
  }
}

/** Waits for whoever has a file, a while after each look at it, and no longer than it was made for. */
class Patience {
  private readonly deadline: number;
  private retryMs = 1;
  private told = false;

  constructor(
    waitMs: number,
    private readonly message: string,
    private readonly log: Log,
  ) {
    this.deadline = Date.now() + waitMs;
  }

  /** @returns false where the time is over */
  async waited(): Promise<boolean> {
    if (Date.now() >= this.deadline) return false;
    if (this.retryMs === LOCK_RETRY_MS && !this.told) {
      this.told = true;
      this.log.info(this.message);
    }
    await Bun.sleep(this.retryMs);
    this.retryMs = Math.min(this.retryMs * 2, LOCK_RETRY_MS);
    return true;
  }
}

function codeOf(error: unknown): string {
  return (error as NodeJS.ErrnoException).code ?? String(error);
}
