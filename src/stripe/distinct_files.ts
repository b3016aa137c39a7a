import { statSync } from 'node:fs';
import type { DeviceConfig } from '../config/device_config.ts';
import { UserError } from '../errors.ts';

type DeviceFiles = Pick<
  DeviceConfig,
  'file' | 'path' | 'metadataPath' | 'stripeSource' | 'ioDebugPath'
>;

/** A file of a configuration. */
export interface NamedFile {
  /** What it is, for messages: `the metadata file`. */
  role: string;
  path: string;
}

/**
 * Sees that no two of a configuration's files are one and the same, by whatever names: one would be
 * overwritten with the other. Files that aren't there are passed over.
 * @throws UserError
 */
export function refuseSameFiles(files: readonly NamedFile[]): void {
  const seen = new Map<string, NamedFile>();
  for (const file of files) {
    const identity = identityOf(file.path);
    if (identity === undefined) continue;
    const other = seen.get(identity);
    if (other !== undefined) {
      throw new UserError(
        `'${file.path}' is both ${other.role} and ${file.role}; give each a file of its own`,
      );
    }
    seen.set(identity, file);
  }
}

/** The same for a device's own files. @throws UserError */
export function refuseSameFilesOf(device: DeviceFiles): void {
  const { path, metadataPath, stripeSource, ioDebugPath } = device;
  const files = [{ role: "the disk's data file", path }];
  if (metadataPath !== undefined) files.push({ role: 'the metadata file', path: metadataPath });
  if (stripeSource?.source === 'raw') files.push({ role: 'the image', path: stripeSource.path });
  if (ioDebugPath !== undefined) {
    const configuration = { role: 'the configuration file', path: device.file };
    files.push(configuration, { role: 'the I/O log', path: ioDebugPath });
  }
  refuseSameFiles(files);
}

function identityOf(path: string): string | undefined {
  try {
    const status = statSync(path);
    return status.isBlockDevice() ? `device ${status.rdev}` : `${status.dev} ${status.ino}`;
  } catch {
    return undefined;
  }
}
