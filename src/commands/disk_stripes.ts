import type { DeviceConfig } from '../config/device_config.ts';
import type { Disk } from '../device/disk.ts';
import { UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { servedHeaders } from '../remote/served_disk.ts';
import type { StripeSource } from '../stripe/interfaces.ts';
import { openMetadata } from '../stripe/metadata_file.ts';
import { stripeCount } from '../stripe/metadata_layout.ts';
import { FETCHED, HAS_SOURCE, WRITTEN } from '../stripe/shared_state.ts';
import { openSource } from './stripe_sources.ts';

/** Of a disk without metadata. */
const DEFAULT_SHIFT = 11;

/** The stripes of a disk that is read for others, and where they are. */
export interface DiskStripes {
  shift: number;
  /** One byte for each; where writes weren't recorded, what may have been written to counts. */
  headers: Uint8Array;
  /** Of stripes that are still to be fetched; null where there are none. */
  source: StripeSource | null;
}

/**
 * Finds out where a disk's stripes are: all on the disk, where it has no metadata.
 * @throws UserError where the metadata or the source can't be had
 */
export async function openDiskStripes(
  disk: Disk,
  config: DeviceConfig,
  xts: number,
  log: Log,
): Promise<DiskStripes> {
  const diskBytes = disk.facts.sizeBytes;
  const { metadataPath, directIo, writeThrough, trackWritten, stripeSource } = config;
  if (metadataPath === undefined) {
    const headers = new Uint8Array(stripeCount(diskBytes, DEFAULT_SHIFT));
    headers.fill(FETCHED | WRITTEN | HAS_SOURCE);
    return { shift: DEFAULT_SHIFT, headers, source: null };
  }
  const metadata = await openMetadata(
    metadataPath,
    { directIo, writeThrough, xts, diskBytes, use: 'look' },
    log,
  );
  await metadata.close();
  const { shift, stripeBytes } = metadata.layout;
  const headers = servedHeaders(metadata.headers, trackWritten);
  const missing = headers.some((header) => (header & (HAS_SOURCE | FETCHED)) === HAS_SOURCE);
  if (missing && !stripeSource) {
    throw new UserError(
      `some stripes of '${disk.path}' are still to be fetched, but no source is configured; add the ` +
        "'stripe_source' that it was made for",
    );
  }
  const source =
    missing && stripeSource
      ? await openSource(stripeSource, { stripeBytes, directIo: false }, log)
      : null;
  return { shift, headers, source };
}
