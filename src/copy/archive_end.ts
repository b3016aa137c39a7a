/** An archive as the source of a copy. */
import { ArchiveSource } from '../archive/archive_source.ts';
import type { Archive } from '../archive/reader.ts';
import type { Memory } from '../remote/channel.ts';
import type { CopySource, Extent } from './ends.ts';

export class ArchiveCopySource implements CopySource {
  readonly name: string;
  readonly sizeBytes: number;
  readonly unitBytes: number;
  readonly parallel: number;
  readonly identity: string;
  private readonly stripes: ArchiveSource;

  /** @param archive it is closed with this, and so is its store */
  constructor(private readonly archive: Archive) {
    this.name = archive.store.name;
    this.sizeBytes = archive.sizeBytes;
    this.unitBytes = archive.stripeBytes;
    this.identity = `archive ${archive.identity().toString('hex')}`;
    this.stripes = new ArchiveSource(archive, archive.stripeBytes);
    this.parallel = this.stripes.parallel;
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    const { unitBytes } = this;
    const end = offset + length;
    const first = Math.floor(offset / unitBytes);
    const zero = this.isZero(first);
    let next = first + 1;
    while (next * unitBytes < end && this.isZero(next) === zero) next++;
    return [{ length: Math.min(next * unitBytes, end) - offset, zero }];
  }

  async read(offset: number, { address, bytes }: Memory, length: number): Promise<boolean> {
    const stripe = Math.floor(offset / this.unitBytes);
    return await this.stripes.read(stripe, { address, bytes: bytes.subarray(0, length) });
  }

  stop(): void {
    this.archive.store.giveUp();
  }

  async close(): Promise<void> {
    await this.stripes.close();
  }

  private isZero(stripe: number): boolean {
    return this.archive.index.objectOf(stripe) === null;
  }
}
