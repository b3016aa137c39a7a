/** Stripes from a raw image: a file or block device, read and never written. */
import { fstatSync } from 'node:fs';
import { EINVAL, ENXIO } from '../../../ffi/errno.ts';
import { shim } from '../../../ffi/library.ts';
import { type Disk, openDisk } from '../../device/disk.ts';
import type { Log } from '../../log.ts';
import { readAt } from '../async_file.ts';
import type { StripeBuffer, StripeSource } from '../interfaces.ts';

/** What the user can do about an image that isn't there. */
export const IMAGE_REMEDY = 'name the image that the disk is to be filled from';

export interface RawSourceOptions {
  path: string;
  /** Queues read the image themselves: whoever opens it closes it, when they have ended. */
  kept: boolean;
  stripeBytes: number;
  directIo: boolean;
}

export class RawSource implements StripeSource {
  readonly description: string;
  readonly sizeBytes: number;
  private canFindHoles = true;
  /** The disk's file, where it may share blocks with the image; -1 where it can't. */
  private sharing = -1;
  /** Is told of the close of an image that is kept. */
  onClose: () => void = () => {};

  /**
   * @param disk the image
   * @param kept somebody else reads the image, too, and closes it
   */
  constructor(
    readonly disk: Disk,
    private readonly stripeBytes: number,
    private readonly kept: boolean,
  ) {
    this.sizeBytes = disk.facts.sizeBytes;
    this.description = `raw (path: ${disk.path}, size: ${this.sizeBytes} bytes)`;
  }

  has(stripe: number): boolean {
    return stripe * this.stripeBytes < this.sizeBytes;
  }

  async read(stripe: number, buffer: StripeBuffer): Promise<boolean> {
    const offset = stripe * this.stripeBytes;
    const wanted = Math.min(buffer.bytes.length, this.sizeBytes - offset);
    if (this.isHole(offset, wanted)) return false;
    const count = await readAt(this.disk.facts, buffer.bytes.subarray(0, wanted), offset);
    if (count < wanted) {
      const { path } = this.disk;
      throw new Error(`'${path}' ends before ${offset + wanted}: it was cut after it was opened`);
    }
    buffer.bytes.fill(0, wanted);
    return true;
  }

  /** The disk's data is in this file as it is in the image: blocks can be shared, if the kernel can. */
  shareWith(fd: number): void {
    if (!this.disk.facts.isBlockDevice) this.sharing = fd;
  }

  async copy(stripe: number, offset: number, length: number): Promise<boolean> {
    if (this.sharing < 0 || offset + length > this.sizeBytes) return false;
    const from = stripe * this.stripeBytes;
    const result = shim.ubiblk_file_clone(this.sharing, offset, this.disk.facts.fd, from, length);
    // It took the main thread's time: others get their turn first.
    await new Promise(setImmediate);
    if (result === 0) return true;
    // A range that isn't whole blocks is carried; where nothing can be shared, nothing is asked again.
    if (result !== -EINVAL) this.sharing = -1;
    return false;
  }

  async close(): Promise<void> {
    if (this.kept) this.onClose();
    else this.disk.close();
  }

  private isHole(offset: number, length: number): boolean {
    if (!this.canFindHoles || this.disk.facts.isBlockDevice) return false;
    const { fd } = this.disk.facts;
    const data = shim.ubiblk_file_next_data(fd, offset) as number;
    if (data >= 0) return data >= offset + length;
    // Behind the end of a file that was cut there is no data either.
    if (data === -ENXIO) return fstatSync(fd).size >= offset + length;
    this.canFindHoles = false;
    return false;
  }
}

/**
 * Opens an image, with a lock that it shares with other readers.
 * @throws UserError where it is missing, of a wrong kind or size, or being written by another process
 */
export async function openRawSource(options: RawSourceOptions, log: Log): Promise<RawSource> {
  const { path, stripeBytes, directIo, kept } = options;
  const settings = {
    path,
    directIo,
    ioEngine: 'sync',
    writeThrough: false,
    readOnly: true,
    remedy: IMAGE_REMEDY,
  } as const;
  return new RawSource(await openDisk(settings, log), stripeBytes, kept);
}
