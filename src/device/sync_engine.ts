/**
 * The engine without io_uring: each operation is a system call that blocks, and completes before it
 * returns. For kernels and containers where io_uring is forbidden.
 */

import { shim } from '../../ffi/library.ts';
import { IovecTable, OP_READ, OP_READV, OP_WRITEV, type RingHandler } from '../../ffi/ring.ts';
import type { FileEngine } from './file_device.ts';

export class SyncEngine implements FileEngine {
  private readonly handlers: RingHandler[] = [];
  private readonly one = new IovecTable(1);

  /**
   * @param fds descriptors in the order that a ring would have them registered
   * @param lives is called after each system call: a batch of them can take long
   */
  constructor(
    private readonly fds: readonly number[],
    private readonly lives = () => {},
  ) {}

  addHandler(handler: RingHandler): number {
    return this.handlers.push(handler) - 1;
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
  ): void {
    const fd = this.fds[file] as number;
    let result: number;
    if (op === OP_READ) result = shim.ubiblk_pread(fd, address, length, offset) as number;
    else if (op === OP_READV) result = shim.ubiblk_preadv(fd, address, length, offset) as number;
    else if (op === OP_WRITEV) {
      result = shim.ubiblk_pwritev(fd, address, length, offset, rwFlags) as number;
    } else if (rwFlags === 0) {
      result = shim.ubiblk_pwrite(fd, address, length, offset) as number;
    } else {
      this.one.set(0, address, length);
      result = shim.ubiblk_pwritev(fd, this.one.addressOf(0), 1, offset, rwFlags) as number;
    }
    this.done(handler, index, result);
  }

  fdatasync(file: number, handler: number, index: number): void {
    this.done(handler, index, shim.ubiblk_fdatasync(this.fds[file] as number));
  }

  fallocate(
    file: number,
    mode: number,
    offset: number,
    length: number,
    handler: number,
    index: number,
  ): void {
    const fd = this.fds[file] as number;
    this.done(handler, index, shim.ubiblk_fallocate(fd, mode, offset, length));
  }

  private done(handler: number, index: number, result: number): void {
    this.lives();
    (this.handlers[handler] as RingHandler).ringCompleted(index, result, false);
  }
}
