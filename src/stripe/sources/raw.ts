/** Stripes from a raw image: a file or block device, read and never written. */
import { fstatSync } from 'node:fs';
import { ENXIO } from '../../../ffi/errno.ts';
import { shim } from '../../../ffi/library.ts';
import { type Disk, openDisk } from '../../device/disk.ts';
import type { Log } from '../../log.ts';
import { readAt } from '../async_file.ts';
import type { StripeBuffer, StripeSource } from '../interfaces.ts';

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
      throw new Error(`'${path}' ends at ${offset + count}: it was cut after it was opened`);
    }
    buffer.bytes.fill(0, wanted);
    return true;
  }

  async close(): Promise<void> {
    if (!this.kept) this.disk.close();
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
  } as const;
  return new RawSource(await openDisk(settings, log), stripeBytes, kept);
}
