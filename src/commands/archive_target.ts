import type { ObjectStore } from '../archive/store.ts';
import type { ArchiveKek } from '../config/device_config.ts';
import { unlinkKekFile } from '../config/kek.ts';
import { loadTargetConfig } from '../config/load_remote_config.ts';
import { UsageError } from '../errors.ts';
import type { Log } from '../log.ts';
import { openStore } from './archive_store.ts';
import type { Arguments } from './arguments.ts';

/** What `--target-config` names. */
export interface ArchiveTarget {
  store: ObjectStore;
  kek: ArchiveKek;
}

/**
 * Reads `--target-config` and does something with the archive's place; wipes secrets afterwards, and
 * deletes the KEK file where that was asked for and all went well.
 * @param use returns an exit status: who must go on, or look again, needs the KEK once more
 * @throws UserError or UsageError
 */
export async function withTarget(
  args: Arguments,
  log: Log,
  use: (target: ArchiveTarget) => Promise<number>,
): Promise<number> {
  const file = args.required('target-config');
  const kekFile = args.value('kek');
  if (args.has('unlink-kek') && kekFile === undefined) {
    throw new UsageError("option '--unlink-kek' needs '--kek FILE'");
  }
  const { config, wipeSecrets } = loadTargetConfig(file, {
    ...(kekFile !== undefined && { kekFile }),
    strict: args.has('strict'),
    warn: (line) => log.warn(line),
  });
  try {
    const store = await openStore(config, log);
    try {
      const status = await use({ store, kek: config.archiveKek });
      if (status === 0 && args.has('unlink-kek') && kekFile !== undefined) unlinkKekFile(kekFile);
      return status;
    } finally {
      store.close();
    }
  } finally {
    wipeSecrets();
  }
}
