/** Stripes from a raw image: a file or block device, read and never written. */
import { EINVAL } from '../../../ffi/errno.ts';
import { Lane } from '../../../ffi/lane.ts';
import { type Disk, openDisk } from '../../device/disk.ts';
import type { Log } from '../../log.ts';
import { readAt, readDataAt } from '../async_file.ts';
import type { StripeBuffer, StripeSource } from '../interfaces.ts';

/** What the user can do about an image that isn't there. */
export const IMAGE_REMEDY = 'name the image that the disk is to be filled from';

/** At least as many as stripes are fetched at once: one that hangs keeps none from the others. */
const THREADS = 16;

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
  private readonly lane = new Lane('source', THREADS);
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
    const { path, facts } = this.disk;
    const to = { address: buffer.address, length: wanted };
    const read = facts.isBlockDevice ? readAt : readDataAt;
    const count = await read(this.lane, facts, to, offset);
    if (count === null) return false;
    if (count < wanted) {
      throw new Error(`'${path}' ends before ${offset + wanted}: it was cut after it was opened`);
    }
    buffer.bytes.fill(0, wanted);
    return true;
  }

  /** The disk's data is in this file as it is in the image: blocks can be shared, if the kernel can. */
  shareWith(fd: number): void {
    if (!this.disk.facts.isBlockDevice) this.sharing = fd;
  }

  async copy(_stripe: number, offset: number, length: number): Promise<boolean> {
    if (this.sharing < 0 || offset + length > this.sizeBytes) return false;
    const result = await this.lane.clone(this.sharing, this.disk.facts.fd, offset, length);
    if (result === 0) return true;
    // A range that isn't whole blocks is carried; where nothing can be shared, nothing is asked again.
    if (result !== -EINVAL) this.sharing = -1;
    return false;
  }

  async close(): Promise<void> {
    if (this.kept) this.onClose();
    else await this.release();
  }

  /** Closes the image's files. */
  async release(): Promise<void> {
    const { fd, bufferedFd } = this.disk.facts;
    const open = [fd, bufferedFd].filter((each) => each >= 0);
    await Promise.all(open.map((each) => this.lane.closeFile(each)));
    this.lane.close();
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
