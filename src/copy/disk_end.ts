/** Disks of ubiblk as ends of a copy: plain bytes, whatever is encrypted or still to be fetched. */
import { statSync } from 'node:fs';
import type { Disk, DiskFacts } from '../device/disk.ts';
import { errorName, UserError } from '../errors.ts';
import type { Memory } from '../remote/channel.ts';
import { DiskReader } from '../remote/plain_reader.ts';
import { ServedStripes } from '../remote/served_disk.ts';
import { DiskTarget } from '../stripe/disk_target.ts';
import type { StripeSource } from '../stripe/interfaces.ts';
import type { CopySource, CopyTarget, Extent } from './ends.ts';
import { fileExtents } from './file_end.ts';

const PARALLEL = 8;
const SECTOR_BYTES = 512;
/** Neighbouring stripes that are told of at once. */
const MOST_EXTENTS = 256;

export class DiskCopySource implements CopySource {
  readonly name: string;
  readonly sizeBytes: number;
  readonly unitBytes: number;
  readonly parallel: number;
  readonly identity: string;
  private readonly stripes: ServedStripes;
  private readonly reader: DiskReader;

  /**
   * @param disk opened to be read; it is closed with this
   * @param facts with the keys
   * @param source of stripes that aren't on it, null where there is none
   */
  constructor(
    private readonly disk: Disk,
    private readonly facts: DiskFacts,
    shift: number,
    headers: Uint8Array,
    private readonly source: StripeSource | null,
  ) {
    this.reader = new DiskReader(facts);
    this.stripes = new ServedStripes(shift, facts.sizeBytes, headers, this.reader, source);
    this.name = disk.path;
    this.sizeBytes = facts.sizeBytes;
    this.unitBytes = this.stripes.stripeBytes;
    this.parallel = source?.parallel ?? PARALLEL;
    const { dev, ino, mtimeNs } = statSync(disk.path, { bigint: true });
    this.identity = `disk ${dev} ${ino} ${mtimeNs} ${this.sizeBytes}`;
  }

  async extents(offset: number, length: number): Promise<Extent[]> {
    const { unitBytes, facts, stripes } = this;
    const extents: Extent[] = [];
    const end = offset + length;
    for (let at = offset; at < end && extents.length < MOST_EXTENTS; ) {
      const stripe = Math.floor(at / unitBytes);
      const until = Math.min((stripe + 1) * unitBytes, end);
      const place = stripes.place(stripe);
      if (place === 'disk' && facts.xts === 0) {
        extents.push(...fileExtents(facts.fd, at, until - at));
        at = until;
        continue;
      }
      const zero = place === 'nowhere' || (place === 'source' && !this.source?.has(stripe));
      extents.push({ length: until - at, zero });
      at = until;
    }
    return extents;
  }

  async read(offset: number, memory: Memory, length: number): Promise<boolean> {
    const { unitBytes, stripes, source } = this;
    const stripe = Math.floor(offset / unitBytes);
    try {
      if (stripes.place(stripe) === 'disk') {
        await this.reader.read(offset, memory, length);
        return true;
      }
      // A stripe comes as a whole.
      const bytes = memory.bytes.subarray(0, length);
      return (await source?.read(stripe, { address: memory.address, bytes }, never)) ?? false;
    } catch (error) {
      throw new UserError(`'${this.name}' can't be read: ${errorName(error)}`);
    }
  }

  async close(): Promise<void> {
    await this.source?.close();
    this.disk.close();
  }
}

const never = new AbortController().signal;

/** A disk, or any block device, that is overwritten where it is. */
export class DiskCopyTarget implements CopyTarget {
  readonly name: string;
  readonly roomBytes: number;
  readonly sectorBytes = SECTOR_BYTES;
  private readonly target: DiskTarget;

  /**
   * @param disk open to be written; it is closed with this
   * @param isZero it reads as zeroes, as whoever calls knows
   * @throws UserError where it has no room
   */
  constructor(
    private readonly disk: Disk,
    sizeBytes: number,
    readonly isZero: boolean,
  ) {
    this.name = disk.path;
    const { facts } = disk;
    if (facts.readOnly) throw new UserError(`'${disk.path}' may not be written`);
    if (facts.sizeBytes < sizeBytes) {
      throw new UserError(
        `'${disk.path}' has ${facts.sizeBytes} bytes, fewer than the ${sizeBytes} of the source`,
      );
    }
    if (sizeBytes % SECTOR_BYTES !== 0) {
      throw new UserError(`the source has ${sizeBytes} bytes, which is no multiple of 512`);
    }
    this.roomBytes = facts.sizeBytes;
    this.target = new DiskTarget(facts);
  }

  has(): boolean {
    return false;
  }

  async write(offset: number, { address, bytes }: Memory, length: number): Promise<void> {
    await this.attempt(this.target.write(offset, { address, bytes: bytes.subarray(0, length) }));
  }

  async zero(offset: number, length: number): Promise<void> {
    await this.attempt(this.target.zero(offset, length));
  }

  async done(): Promise<void> {}

  async commit(): Promise<void> {
    await this.attempt(this.target.sync());
  }

  async giveUp(): Promise<void> {}

  async close(): Promise<void> {
    this.target.close();
    this.disk.close();
  }

  private async attempt(what: Promise<void>): Promise<void> {
    await what.catch((error) => {
      throw new UserError(`'${this.name}' can't be written: ${errorName(error)}`);
    });
  }
}
