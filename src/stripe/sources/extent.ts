/** What an image has, for commands that fetch nothing from it. */
import type { RawSource as RawConfig } from '../../config/device_config.ts';
import { openDisk } from '../../device/disk.ts';
import type { Log } from '../../log.ts';
import type { StripeSource } from '../interfaces.ts';
import { IMAGE_REMEDY, RawSource } from './raw.ts';

export type SourceExtent = Pick<
  StripeSource,
  'description' | 'sizeBytes' | 'leastDiskBytes' | 'has'
>;

/**
 * Finds out which stripes a raw image has. No lock is taken and nothing stays open.
 * @throws UserError where it isn't there, or isn't what it should be
 */
export async function rawExtent(
  source: RawConfig,
  stripeBytes: number,
  log: Log,
): Promise<SourceExtent> {
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
