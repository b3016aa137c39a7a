/** What a configured source has, for commands that fetch nothing from it. */
import type { StripeSource as SourceConfig } from '../../config/device_config.ts';
import { openDisk } from '../../device/disk.ts';
import { UserError } from '../../errors.ts';
import type { Log } from '../../log.ts';
import type { StripeSource } from '../interfaces.ts';
import { IMAGE_REMEDY, RawSource } from './raw.ts';

export type SourceExtent = Pick<StripeSource, 'description' | 'sizeBytes' | 'has'>;

const noSource: SourceExtent = { description: 'None', sizeBytes: 0, has: () => false };

/**
 * Finds out which stripes the source of a configuration has. No lock is taken and nothing stays open.
 * @throws UserError where it isn't there, or isn't what the configuration says
 */
export async function sourceExtent(
  source: SourceConfig | undefined,
  stripeBytes: number,
  log: Log,
): Promise<SourceExtent> {
  if (source === undefined) return noSource;
  if (source.source !== 'raw') {
    throw new UserError(
      `the stripe source '${source.source}' is not in this version of ubiblk yet`,
    );
  }
  const image = await openDisk(
    {
      path: source.path,
      ioEngine: 'sync',
      directIo: false,
      writeThrough: false,
      readOnly: true,
      lockWaitMs: null,
      remedy: IMAGE_REMEDY,
    },
    log,
  );
  const raw = new RawSource(image, stripeBytes, false);
  await raw.close();
  return raw;
}
