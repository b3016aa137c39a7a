/** Reads the plain bytes of a disk for others: from the page cache at once, else on other threads. */
import { EAGAIN, EIO, EOPNOTSUPP, errnoName } from '../../ffi/errno.ts';
import { Lane } from '../../ffi/lane.ts';
import { shim } from '../../ffi/library.ts';
import type { DiskFacts } from '../device/disk.ts';
import { readAt } from '../stripe/async_file.ts';
import type { Memory } from './channel.ts';
import type { PlainReader } from './served_disk.ts';

const THREADS = 8;

export class DiskReader implements PlainReader {
  private readonly lane = new Lane('disk', THREADS);

  constructor(private readonly facts: DiskFacts) {}

  get plainFd(): number | undefined {
    const { direct, fd, xts } = this.facts;
    return direct || xts !== 0 ? undefined : fd;
  }

  async read(offset: number, memory: Memory, length: number): Promise<void> {
    const { facts } = this;
    const done = facts.direct ? 0 : this.readCached(offset, memory, length);
    if (done < length) {
      const rest = { address: memory.address + done, length: length - done };
      const count = await readAt(this.lane, facts, rest, offset + done);
      if (count < rest.length) throw systemError(-EIO);
    }
    if (facts.xts === 0) return;
    const sectors = length / 512;
    const { address } = memory;
    const result = shim.ubiblk_xts_decrypt(facts.xts, offset / 512, sectors, address, address);
    if (result < 0) throw systemError(result);
  }

  expect(offset: number, length: number): void {
    if (!this.facts.direct) shim.ubiblk_file_expect(this.facts.fd, offset, length);
  }

  /** @returns how much of it was in the page cache */
  private readCached(offset: number, memory: Memory, length: number): number {
    const { fd } = this.facts;
    const result = Number(shim.ubiblk_pread_cached(fd, memory.address, length, offset));
    if (result === -EAGAIN || result === -EOPNOTSUPP) return 0;
    if (result < 0) throw systemError(result);
    // The kernel stops where a page is missing; what follows begins with a whole sector.
    return result - (result % 512);
  }
}

function systemError(result: number): Error {
  const code = errnoName(result);
  return Object.assign(new Error(`the disk's data can't be read: ${code}`), { code });
}
