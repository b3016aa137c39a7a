/**
 * An engine for files in the page cache: writes are copied there at once by a system call instead of
 * going through the ring. Where a file system can't write to the cache without the chance of waiting
 * (ext4, for one), io_uring hands each buffered write to a worker thread, which costs several times
 * the copy itself.
 *
 * Such a write does wait when the kernel makes writers wait for the disk. When one took long, the
 * next ones go through the ring for a while, so that reads are not held up behind them.
 */
import { OP_WRITE, OP_WRITEV, type RingHandler } from '../../ffi/ring.ts';
import type { FileEngine } from './file_device.ts';

const LONG_MS = 1;
const RING_FOR_MS = 100;

export class InlineWrites implements FileEngine {
  private readonly syncHandlers: number[] = [];
  private ringUntil = 0;

  /**
   * @param sync the engine of system calls, on the same files
   */
  constructor(
    private readonly ring: FileEngine,
    private readonly sync: FileEngine,
  ) {}

  addHandler(handler: RingHandler): number {
    const number = this.ring.addHandler(handler);
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
    const write = op === OP_WRITE || op === OP_WRITEV;
    const start = write && rwFlags === 0 ? performance.now() : 0;
    if (start <= this.ringUntil) {
      this.ring.transfer(op, file, address, length, offset, rwFlags, handler, index, buffer);
      return;
    }
    const syncHandler = this.syncHandlers[handler];
    this.sync.transfer(op, file, address, length, offset, rwFlags, syncHandler, index, -1);
    const end = performance.now();
    if (end - start > LONG_MS) this.ringUntil = end + RING_FOR_MS;
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
}
