/** A disk as a stripe server sees it: what of it there is, and its plain bytes. */
import type { StripeSource } from '../stripe/interfaces.ts';
import {
  encodeStripeMap,
  MetadataLayout,
  type MetadataVersion,
} from '../stripe/metadata_layout.ts';
import { FETCHED, HAS_SOURCE, WRITTEN } from '../stripe/shared_state.ts';
import type { Memory } from './channel.ts';

/** Reads plain bytes of the data file; what is behind its end isn't asked for. */
export interface PlainReader {
  /** The file, where it has the plain bytes themselves, at their places. */
  readonly plainFd?: number;
  /** @throws Error (EIO) */
  read(offset: number, memory: Memory, length: number): Promise<void>;
  /** These bytes will be asked for soon. */
  expect(offset: number, length: number): void;
}

/** Where a stripe's bytes come from. */
export type Place = 'disk' | 'source' | 'nowhere' | 'not fetched';

export class ServedStripes {
  readonly stripes: number;
  private readonly blobs = new Map<MetadataVersion, Uint8Array>();

  /**
   * @param headers as they are told to clients
   * @param source of the stripes that aren't on the disk, null where it has none
   */
  constructor(
    readonly shift: number,
    readonly diskBytes: number,
    readonly headers: Uint8Array,
    readonly reader: PlainReader,
    readonly source: StripeSource | null,
  ) {
    this.stripes = headers.length;
  }

  get stripeBytes(): number {
    return 512 << this.shift;
  }

  /** Bytes of a stripe that are on the disk; the last one may be partial. */
  lengthOf(stripe: number): number {
    return Math.min(this.stripeBytes, this.diskBytes - stripe * this.stripeBytes);
  }

  place(stripe: number): Place {
    const header = this.headers[stripe];
    if ((header & (HAS_SOURCE | FETCHED)) === HAS_SOURCE) {
      return this.source ? 'source' : 'not fetched';
    }
    return (header & (WRITTEN | HAS_SOURCE)) === 0 ? 'nowhere' : 'disk';
  }

  /** The metadata for a client of a generation. */
  metadata(version: MetadataVersion): Uint8Array {
    const known = this.blobs.get(version);
    if (known) return known;
    const layout = new MetadataLayout(version, this.shift, this.stripes);
    const blob = encodeStripeMap(layout, this.headers);
    this.blobs.set(version, blob);
    return blob;
  }
}

/**
 * What clients are told of a disk's stripes.
 * @param recorded whether writes were recorded: where they weren't, any stripe may have been written to
 */
export function servedHeaders(headers: Uint8Array, recorded: boolean): Uint8Array {
  if (recorded) return headers.slice();
  return headers.map((header) => ((header & HAS_SOURCE) === 0 ? header | WRITTEN : header));
}
