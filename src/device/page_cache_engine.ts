/**
 * An engine for files in the page cache, where I/O is mostly a copy in memory.
 *
 * Writes are copied at once by a system call instead of going through the ring: where a file system
 * can't write to the cache without the chance of waiting (ext4, for one), io_uring hands each buffered
 * write to a worker thread, which costs several times the copy itself. Such a write does wait when the
 * kernel makes writers wait for the disk; when one took long, the next ones go through the ring for a
 * while, so that reads are not held up behind them.
 *
 * The first read of a batch, often its only one, is tried at once too: a ring costs more than the call
 * and gains by what it gathers. What isn't in the cache goes to the ring.
 */
import { EAGAIN, EOPNOTSUPP } from '../../ffi/errno.ts';
import { shim } from '../../ffi/library.ts';
import { OP_READ, OP_WRITE, OP_WRITEV, type Ring, type RingHandler } from '../../ffi/ring.ts';
import type { FileEngine } from './file_device.ts';

const LONG_MS = 1;
const RING_FOR_MS = 100;
/** After a read that wasn't in the cache, so many go to the ring untried. */
const UNTRIED_READS = 32;

export class PageCacheEngine implements FileEngine {
  readonly parallel = true;
  private readonly handlers: RingHandler[] = [];
  private readonly syncHandlers: number[] = [];
  private ringUntil = 0;
  private untried = 0;
  /** The batch whose first read has been seen. */
  private batch = -1;

  /**
   * @param sync the engine of system calls, on the same files
   * @param fds the files of both
   */
  constructor(
    private readonly ring: FileEngine & Pick<Ring, 'batch'>,
    private readonly sync: FileEngine,
    private readonly fds: readonly number[],
  ) {}

  addHandler(handler: RingHandler): number {
    const number = this.ring.addHandler(handler);
    this.handlers[number] = handler;
    this.syncHandlers[number] = this.sync.addHandler(handler);
    return number;
  }

  transfer(
    op: number,
    file: number,
    address: number,
    length: number,
    offset: number,
    rwFlags: number,
    handler: number,
    index: number,
    buffer: number,
  ): void {
    if (op === OP_READ) {
      if (this.readCached(file, address, length, offset, handler, index)) return;
    } else if ((op === OP_WRITE || op === OP_WRITEV) && rwFlags === 0) {
      const start = performance.now();
      if (start > this.ringUntil) {
        const syncHandler = this.syncHandlers[handler];
        this.sync.transfer(op, file, address, length, offset, rwFlags, syncHandler, index, -1);
        const end = performance.now();
        if (end - start > LONG_MS) this.ringUntil = end + RING_FOR_MS;
        return;
      }
    }
    this.ring.transfer(op, file, address, length, offset, rwFlags, handler, index, buffer);
  }

  fdatasync(file: number, handler: number, index: number): void {
    this.ring.fdatasync(file, handler, index);
  }

  fallocate(
    file: number,
    mode: number,
    offset: number,
    length: number,
    handler: number,
    index: number,
  ): void {
    this.ring.fallocate(file, mode, offset, length, handler, index);
  }

  /** Reads without waiting for the disk; false where that can't be done. */
  private readCached(
    file: number,
    address: number,
    length: number,
    offset: number,
    handler: number,
    index: number,
  ): boolean {
    if (this.ring.batch === this.batch) return false;
    this.batch = this.ring.batch;
    if (this.untried > 0) {
      this.untried--;
      return false;
    }
    const fd = this.fds[file];
    const result = shim.ubiblk_pread_cached(fd, address, length, offset) as number;
    if (result === -EAGAIN || result === -EOPNOTSUPP) {
      this.untried = UNTRIED_READS;
      return false;
    }
    this.handlers[handler].ringCompleted(index, result, false);
    return true;
  }
}
