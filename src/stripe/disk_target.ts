/** The disk as main fills it: through the same open files as the queues, encrypted where it is. */
import { closeSync } from 'node:fs';
import { EOPNOTSUPP, fileError } from '../../ffi/errno.ts';
import { Lane } from '../../ffi/lane.ts';
import { shim } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import { cipherXts } from '../crypto/xts.ts';
import type { DiskFacts } from '../device/disk.ts';
import { reopen, syncFile, writeOutAt } from './async_file.ts';
import type { StripeBuffer, TargetDisk } from './interfaces.ts';

/** include/uapi/linux/falloc.h: punch a hole, keep the size. */
const PUNCH_HOLE = 0x02 | 0x01;
/** Ciphered in one go: a fraction of a millisecond of the main thread. */
const CIPHER_BYTES = 1 << 20;
const ZERO_BYTES = 1 << 20;
/** Writes at once. Those to a file's page cache come one after the other, and whoever waits spins. */
const THREADS = 8;

export class DiskTarget implements TargetDisk {
  private canPunch: boolean;
  private zeroes: NativeBuffer | null = null;
  private readonly lane: Lane;
  /** Behind no write. */
  private readonly syncLane = new Lane('sync', 1);
  private readonly syncFd: number;

  constructor(private readonly facts: DiskFacts) {
    this.canPunch = facts.canPunch;
    const { direct, isBlockDevice, writeThrough } = facts;
    this.lane = new Lane('disk', direct || isBlockDevice || writeThrough ? THREADS : 1);
    this.syncFd = reopen(facts.fd);
  }

  close(): void {
    this.lane.close();
    this.syncLane.close();
    if (this.syncFd !== this.facts.fd) closeSync(this.syncFd);
  }

  /** Leaves ciphertext in the buffer where the disk is encrypted. */
  async write(offset: number, { address, bytes }: StripeBuffer): Promise<void> {
    const { xts } = this.facts;
    for (let at = 0; at < bytes.length && xts !== 0; at += CIPHER_BYTES) {
      if (at > 0) await new Promise(setImmediate);
      const length = Math.min(CIPHER_BYTES, bytes.length - at);
      const place = address + at;
      cipherXts(shim.ubiblk_xts_encrypt, xts, offset + at, length, place, place);
    }
    await writeOutAt(this.lane, this.facts, { address, length: bytes.length }, offset);
  }

  async zero(offset: number, length: number): Promise<void> {
    const { lane, facts } = this;
    const { fd, xts } = facts;
    if (this.canPunch && this.isPunchable(offset, length)) {
      const result = await lane.allocate(fd, PUNCH_HOLE, offset, length);
      if (result === 0) return;
      if (result !== -EOPNOTSUPP) throw fileError('fallocate', result);
      this.canPunch = false;
    }
    const zeroes = this.zeroBuffer();
    for (let at = 0; at < length; at += ZERO_BYTES) {
      const part = Math.min(ZERO_BYTES, length - at);
      if (xts === 0) {
        await writeOutAt(lane, facts, { address: zeroes.address, length: part }, offset + at);
        continue;
      }
      const buffer = new NativeBuffer(part);
      const { address } = buffer;
      cipherXts(shim.ubiblk_xts_encrypt, xts, offset + at, part, zeroes.address, address);
      try {
        await writeOutAt(lane, facts, buffer, offset + at);
      } finally {
        buffer.free();
      }
    }
  }

  async sync(): Promise<void> {
    // Also of files opened O_DSYNC: holes aren't writes.
    await syncFile(this.syncLane, this.syncFd);
  }

  /** Devices zero whole sectors of theirs; stripes of maps from elsewhere may be smaller. */
  private isPunchable(offset: number, length: number): boolean {
    const { isBlockDevice, logicalBlock } = this.facts;
    return !isBlockDevice || (offset % logicalBlock === 0 && length % logicalBlock === 0);
  }

  /** Never written to: its pages take no memory. */
  private zeroBuffer(): NativeBuffer {
    this.zeroes ??= new NativeBuffer(ZERO_BYTES);
    return this.zeroes;
  }
}
