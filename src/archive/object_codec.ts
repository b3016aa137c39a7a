/** Stripes to objects and back, on threads of the shim (c/object.h), in memory of their own. */
import { EBADMSG, EFBIG, EILSEQ, EINVAL, ENODATA, EOVERFLOW, failed } from '../../ffi/errno.ts';
import { Lane } from '../../ffi/lane.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import type { StripeBuffer } from '../stripe/interfaces.ts';
import { ArchiveError } from './archive_error.ts';
import type { Compression } from './compression.ts';
import { HASH_BYTES } from './stripe_index.ts';

/** enum of c/object.h. */
const METHODS = { none: 0, snappy: 1, zstd: 2 } as const;
const JOB_BYTES = 128;

/** What all objects of an archive have in common. */
export interface ObjectForm {
  stripeSectors: number;
  compression: Compression;
  /** Handle of the archive's expanded keys (`expandXts`); 0: its objects are plain. */
  xts: number;
}

/** Where a stripe's bytes on the disk are still encrypted with the disk's keys. */
export interface DiskCipher {
  xts: number;
  sector: number;
  lengthBytes: number;
}

export interface Sealed {
  hash: Uint8Array;
  /** The object's bytes, in the slot until it is used again. Empty where zeroes were left out. */
  object: StripeBuffer;
}

/** Bytes that an object may have at most. */
export function objectBound({ stripeSectors, compression }: ObjectForm): number {
  openLibrary();
  return Number(shim.ubiblk_object_bound(METHODS[compression.method], stripeSectors * 512));
}

/** Threads that seal and unseal: as many as there are processors. */
export class ObjectLane {
  private readonly lane: Lane;

  constructor(readonly threads: number) {
    this.lane = new Lane('objects', threads);
  }

  seal(job: number): Promise<number> {
    return this.lane.seal(job);
  }

  unseal(job: number): Promise<number> {
    return this.lane.unseal(job);
  }

  close(): void {
    this.lane.close();
  }
}

/** Room for a stripe and its object, and for one job at a time on them. */
export class Slot {
  readonly stripe: StripeBuffer;
  readonly object: StripeBuffer;
  private readonly memory: NativeBuffer;
  private readonly job: DataView;
  private readonly jobAddress: number;

  /** @param lane what does the work */
  constructor(
    private readonly form: ObjectForm,
    private readonly lane: ObjectLane,
  ) {
    openLibrary();
    const stripeBytes = form.stripeSectors * 512;
    const bound = objectBound(form);
    this.memory = new NativeBuffer(stripeBytes + bound + JOB_BYTES);
    const part = (offset: number, length: number) => ({
      address: this.memory.address + offset,
      bytes: new Uint8Array(this.memory.window(offset, length)),
    });
    this.stripe = part(0, stripeBytes);
    this.object = part(stripeBytes, bound);
    this.jobAddress = this.memory.address + stripeBytes + bound;
    this.job = new DataView(this.memory.window(stripeBytes + bound, JOB_BYTES));
  }

  /**
   * Makes the stripe in this slot an object.
   * @param skipZero zeroes are left out, and have no object
   * @throws Error where a library fails
   */
  async seal(stripe: number, disk: DiskCipher | null, skipZero: boolean): Promise<Sealed | null> {
    const { form, job } = this;
    const { compression, xts, stripeSectors } = form;
    this.words([
      this.stripe.address,
      this.stripe.bytes.length,
      disk?.xts ?? 0,
      disk?.sector ?? 0,
      disk?.lengthBytes ?? 0,
      this.object.address,
      this.object.bytes.length,
      xts,
      stripe * stripeSectors,
    ]);
    job.setUint32(72, METHODS[compression.method], true);
    job.setInt32(76, compression.method === 'zstd' ? compression.level : 0, true);
    job.setUint32(80, skipZero ? 1 : 0, true);
    const result = await this.lane.seal(this.jobAddress);
    if (result < 0) throw failed(`making an object of stripe ${stripe}`, result);
    if (skipZero && job.getUint32(84, true) === 1) return null;
    const place = compression.method === 'none' ? this.stripe : this.object;
    return {
      hash: this.hashAt(88).slice(),
      object: { address: place.address, bytes: place.bytes.subarray(0, result) },
    };
  }

  /**
   * Makes an object a stripe.
   * @param object its bytes, which are changed where the archive is encrypted
   * @param to a whole stripe; what the object holds less is filled with zeroes
   * @returns false where all of it is zeroes
   * @throws ArchiveError where it is damaged
   */
  async unseal(
    stripe: number,
    hash: Uint8Array,
    object: StripeBuffer,
    lengthBytes: number,
    to: StripeBuffer = this.stripe,
  ): Promise<boolean> {
    const { form, job } = this;
    const { compression, xts, stripeSectors } = form;
    this.words([
      object.address,
      lengthBytes,
      to.address,
      to.bytes.length,
      xts,
      stripe * stripeSectors,
    ]);
    job.setUint32(48, METHODS[compression.method], true);
    this.hashAt(56).set(hash);
    const result = await this.lane.unseal(this.jobAddress);
    if (result < 0) throw unsealError(result, lengthBytes);
    return job.getUint32(52, true) === 0;
  }

  free(): void {
    this.memory.free();
  }

  private words(values: number[]): void {
    for (const [i, value] of values.entries()) this.job.setBigUint64(8 * i, BigInt(value), true);
  }

  private hashAt(offset: number): Uint8Array {
    return new Uint8Array(this.job.buffer, this.job.byteOffset + offset, HASH_BYTES);
  }
}

function unsealError(result: number, lengthBytes: number): Error {
  const reasons = new Map([
    [-EBADMSG, 'has other bytes than its name says'],
    [-EINVAL, `has ${lengthBytes} bytes, which is no whole number of encrypted sectors`],
    [-ENODATA, `has ${lengthBytes} bytes, too few for a compressed stripe`],
    [-EOVERFLOW, `says that its payload is longer than its ${lengthBytes} bytes`],
    [-EILSEQ, "can't be decompressed"],
    [-EFBIG, 'holds more than a stripe'],
  ]);
  const reason = reasons.get(result);
  return reason ? new ArchiveError(reason) : failed('reading an object', result);
}
