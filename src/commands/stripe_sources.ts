import type {
  ArchiveConfig,
  NbdSource as NbdConfig,
  RemoteSource as RemoteConfig,
  StripeSource as SourceConfig,
} from '../config/device_config.ts';
import type { Log } from '../log.ts';
import { NbdSource, nbdWords } from '../nbd/nbd_source.ts';
import { describeRemote, RemoteSource } from '../remote/remote_source.ts';
import type { StripeSource } from '../stripe/interfaces.ts';
import type { OpenSource } from '../stripe/lazy_disk.ts';
import { rawExtent, type SourceExtent } from '../stripe/sources/extent.ts';
import { openRawSource } from '../stripe/sources/raw.ts';
import { describeStore, openStore } from './archive_store.ts';

/** Opens the source that a configuration names, for fetching. @throws UserError */
export const openSource: OpenSource = async (source, { stripeBytes, directIo }, log) => {
  if (source.source === 'raw') {
    return await openRawSource({ path: source.path, stripeBytes, directIo, kept: true }, log);
  }
  return await openOther(source, stripeBytes, log);
};

const noSource: SourceExtent = { description: 'None', sizeBytes: 0, has: () => false };

/**
 * Finds out which stripes the source of a configuration has; nothing stays open.
 * @throws UserError where it isn't there, or isn't what the configuration says
 */
export async function sourceExtent(
  source: SourceConfig | undefined,
  stripeBytes: number,
  log: Log,
): Promise<SourceExtent> {
  if (source === undefined) return noSource;
  if (source.source === 'raw') return await rawExtent(source, stripeBytes, log);
  const opened = await openOther(source, stripeBytes, log);
  await opened.close();
  return opened;
}

/** A source as it is shown; null where its size is only known by whoever asks it. */
export interface SourceWords {
  description: string;
  sizeBytes: number | null;
}

/** Describes the source of a configuration; no server is asked. @throws UserError as {@link sourceExtent} */
export async function sourceWords(
  source: SourceConfig | undefined,
  stripeBytes: number,
  log: Log,
): Promise<SourceWords> {
  if (source?.source === 'remote') {
    return { description: describeRemote(source.address, source.psk?.identity), sizeBytes: null };
  }
  if (source?.source === 'nbd') {
    return { description: `nbd (${nbdWords(source)})`, sizeBytes: null };
  }
  if (source?.source === 'archive') {
    return { description: describeStore(source), sizeBytes: null };
  }
  return await sourceExtent(source, stripeBytes, log);
}

async function openOther(
  source: Exclude<SourceConfig, { source: 'raw' }>,
  stripeBytes: number,
  log: Log,
): Promise<StripeSource> {
  if (source.source === 'remote') return await openRemote(source, stripeBytes, log);
  if (source.source === 'nbd') return await openNbd(source, stripeBytes, log);
  return await openArchiveSource(source, stripeBytes, log);
}

async function openArchiveSource(
  source: ArchiveConfig,
  stripeBytes: number,
  log: Log,
): Promise<StripeSource> {
  const { Archive } = await import('../archive/reader.ts');
  const { ArchiveSource } = await import('../archive/archive_source.ts');
  const store = await openStore(source, log);
  try {
    return new ArchiveSource(await Archive.open(store, source.archiveKek), stripeBytes);
  } catch (error) {
    store.close();
    throw error;
  }
}

async function openRemote(
  { address, psk, connections, connectTimeoutMs, operationTimeoutMs }: RemoteConfig,
  stripeBytes: number,
  log: Log,
): Promise<RemoteSource> {
  if (!psk) log.warn(`stripes come from ${address} in the clear: give psk_identity and psk_secret`);
  return await RemoteSource.open(
    {
      address,
      ...(psk && { psk }),
      connections,
      connectMs: connectTimeoutMs,
      operationMs: operationTimeoutMs,
      stripeBytes,
    },
    log,
  );
}

async function openNbd(source: NbdConfig, stripeBytes: number, log: Log): Promise<NbdSource> {
  const { connectTimeoutMs: connectMs, operationTimeoutMs: operationMs } = source;
  return await NbdSource.open({ ...source, connectMs, operationMs }, stripeBytes, log);
}
