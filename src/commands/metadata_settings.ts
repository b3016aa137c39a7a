import type { DeviceConfig } from '../config/device_config.ts';
import { unlinkKekFile } from '../config/kek.ts';
import { loadDeviceConfig } from '../config/load_device_config.ts';
import { expandXts } from '../crypto/xts.ts';
import { UsageError, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { refuseSameFilesOf } from '../stripe/distinct_files.ts';
import type { Arguments } from './arguments.ts';

/** What the commands for metadata files take from the device's configuration. */
export interface MetadataSettings {
  config: DeviceConfig;
  metadataPath: string;
  /** Handle of the expanded keys, for `freeXts`; 0: the disk is plain. */
  xts: number;
  /** Deletes the KEK file where that was asked for: when all else is done. */
  finish: () => void;
  /** Wipes secrets but for the expanded keys. */
  wipeSecrets: () => void;
}

/**
 * Reads the configuration that the options name.
 * @throws UserError or UsageError
 */
export function readMetadataSettings(args: Arguments, log: Log): MetadataSettings {
  const file = args.value('config');
  const kekFile = args.value('kek');
  if (args.has('unlink-kek') && kekFile === undefined) {
    throw new UsageError("option '--unlink-kek' needs '--kek FILE'");
  }
  if (file === undefined) throw new UsageError("option '--config FILE' is required");
  const { config, wipeSecrets } = loadDeviceConfig(file, {
    kekFile,
    strict: args.has('strict'),
    allowWeakKey: args.has('allow-weak-key'),
    warn: (line) => log.warn(line),
  });
  try {
    const { metadataPath, encryptionKey } = config;
    if (metadataPath === undefined) {
      throw new UserError(
        `${file}: metadata_path: is required; name the file that says which stripes are where`,
      );
    }
    refuseSameFilesOf(config);
    return {
      config,
      metadataPath,
      xts: encryptionKey === undefined ? 0 : expandXts(encryptionKey),
      wipeSecrets,
      finish: () => {
        if (args.has('unlink-kek') && kekFile !== undefined) unlinkKekFile(kekFile);
      },
    };
  } catch (error) {
    wipeSecrets();
    throw error;
  }
}
