import type { ObjectStore } from '../archive/store.ts';
import type { ArchiveConfig } from '../config/device_config.ts';
import type { Log } from '../log.ts';

/** Where an archive is, in the words of the reference system. */
export function describeStore(config: ArchiveConfig): string {
  if (config.type === 'filesystem') return `archive filesystem (path: ${config.path})`;
  const { bucket, prefix, endpoint, region, profile, connections } = config;
  const words = { bucket, prefix, endpoint, region, profile, connections };
  const named = Object.entries(words).map(([key, value]) => `${key}: ${value ?? 'None'}`);
  return `archive s3 (${named.join(', ')})`;
}

/**
 * Opens the store that a configuration names; nothing is asked of it yet.
 * @throws UserError where its credentials can't be used
 */
export async function openStore(config: ArchiveConfig, log: Log): Promise<ObjectStore> {
  if (config.type === 's3') {
    const { S3Store } = await import('../archive/s3_store.ts');
    return await S3Store.open({ archive: config, description: describeStore(config) }, log);
  }
  const { FilesystemStore } = await import('../archive/filesystem_store.ts');
  return new FilesystemStore(config.path, describeStore(config));
}
