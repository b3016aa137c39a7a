/** What every front end does with its command line, its configuration and its disk. */
import { Lane } from '../../ffi/lane.ts';
import { isAddress, splitAddress } from '../config/address.ts';
import { type DeviceConfig, defaultTuning } from '../config/device_config.ts';
import { parseNbdUri } from '../config/nbd_uri.ts';
import { warnOfUnlockedSecrets } from '../crypto/unlocked_secrets.ts';
import { expandXts, freeXts } from '../crypto/xts.ts';
import { type Disk, type DiskFacts, openDisk, openNullDisk } from '../device/disk.ts';
import { checkIoLog, openIoLog } from '../device/io_log.ts';
import type { RequestBoard } from '../device/request_board.ts';
import { UsageError, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import {
  type DeviceActions,
  type DeviceDescription,
  deviceCommands,
  type FrontendState,
  type ServedDevice,
} from '../observe/device_commands.ts';
import type { MetricsServer } from '../observe/metrics_server.ts';
import type { RpcServer } from '../observe/rpc_server.ts';
import { reopen, syncFile } from '../stripe/async_file.ts';
import { refuseSameFilesOf } from '../stripe/distinct_files.ts';
import type { LazyDisk } from '../stripe/lazy_disk.ts';
import type { Arguments } from './arguments.ts';
import { kekFileOf } from './kek_file.ts';
import { parseSize } from './size.ts';
import { version } from './version.ts';

export interface Settings {
  config: DeviceConfig;
  /** Of the disk of nothing that is served instead of a file; undefined: a file is. */
  nullSizeBytes: number | undefined;
  /** URI of the NBD export that is served instead of a file. */
  nbdUri?: string;
  wipeSecrets: () => void;
}

/** How long requests may wait for stripes after the signal to stop. */
export const STOP_PATIENCE_MS = 3000;

/**
 * Reads the configuration that `--config` and `--kek` name, or what `--null` or `--nbd` stands for.
 * @throws UserError or UsageError
 */
export async function readSettings(args: Arguments, log: Log): Promise<Settings> {
  const file = args.value('config');
  const kekFile = kekFileOf(args);
  const nullSize = args.value('null');
  const nullSizeBytes = nullSize === undefined ? undefined : parseSize('--null', nullSize);
  if (args.has('unlink-kek') && !args.has('kek')) {
    throw new UsageError("option '--unlink-kek' needs '--kek FILE'");
  }
  const nbdUri = args.value('nbd');
  if (nbdUri !== undefined && nullSize !== undefined) {
    throw new UsageError("options '--nbd' and '--null' exclude each other");
  }
  if (nbdUri !== undefined) parseNbdUri(nbdUri);
  if (file === undefined) {
    if (nullSizeBytes === undefined && nbdUri === undefined)
      throw new UsageError("option '--config FILE' is required");
    if (args.has('kek')) throw new UsageError("option '--kek' needs '--config FILE'");
    const config = { ...defaultTuning, file: '', path: '' };
    return {
      config,
      nullSizeBytes,
      ...(nbdUri !== undefined && { nbdUri }),
      wipeSecrets: () => {},
    };
  }
  const { loadDeviceConfig } = await import('../config/load_device_config.ts');
  const { config, wipeSecrets } = loadDeviceConfig(file, {
    kekFile,
    strict: args.has('strict'),
    allowWeakKey: args.has('allow-weak-key'),
    warn: (line) => log.warn(line),
  });
  if (nbdUri !== undefined) refuseWithNbd(config, wipeSecrets);
  return { config, nullSizeBytes, ...(nbdUri !== undefined && { nbdUri }), wipeSecrets };
}

/** What of a configuration has no meaning for a disk without a file. */
function refuseWithNbd(config: DeviceConfig, wipeSecrets: () => void): void {
  const { file, metadataPath, encryptionKey, ioEngine } = config;
  const problem =
    metadataPath !== undefined
      ? 'metadata_path: a disk with --nbd has no stripes of its own'
      : encryptionKey
        ? 'encryption_key: a disk with --nbd is not encrypted here'
        : ioEngine === 'sync'
          ? "io_engine: 'sync' is not for --nbd, whose sockets are on the ring"
          : null;
  if (problem === null) return;
  wipeSecrets();
  throw new UserError(`${file}: ${problem}; leave it out`);
}

/**
 * Opens and locks the disk. Secrets are wiped where it fails, and by the caller when its source is open,
 * too.
 * @param readOnly whatever may be written
 * @throws UserError
 */
export async function openServedDisk(
  settings: Settings,
  log: Log,
  readOnly = false,
): Promise<Disk> {
  const { config, nullSizeBytes, wipeSecrets } = settings;
  let xts = 0;
  try {
    if (nullSizeBytes !== undefined) return openNullDisk(nullSizeBytes);
    if (settings.nbdUri !== undefined) {
      const { NbdDisk } = await import('../nbd/nbd_disk.ts');
      const disk = await NbdDisk.open(settings.nbdUri, config.numQueues, readOnly, log);
      config.numQueues = disk.queues;
      if (config.cpus) config.cpus = config.cpus.slice(0, disk.queues);
      return disk;
    }
    refuseSameFilesOf(config);
    if (config.ioDebugPath !== undefined) checkIoLog(config.ioDebugPath);
    xts = expandKeys(config, log);
    const disk = await openDisk({ ...config, xts, readOnly }, log);
    readyForDebugging(disk, config, log);
    return disk;
  } catch (error) {
    freeXts(xts);
    wipeSecrets();
    throw error;
  }
}

/** What a disk's facts say where it is served for debugging, and warnings of what that means. */
function readyForDebugging({ facts }: Disk, config: DeviceConfig, log: Log): void {
  const { skipSync, ioDebugPath } = config;
  if (skipSync) {
    facts.skipSync = true;
    log.warn(
      `${config.file}: skip_sync: flushes are answered and NOTHING IS SYNCED; a crash or power cut of ` +
        'this host loses what guests believe to be safe: never for data that matters',
    );
  }
  if (ioDebugPath === undefined) return;
  // What is read back of a hole is not in the log.
  facts.canPunch = false;
  log.warn(
    `all that is read and written is recorded in '${ioDebugPath}', which slows the disk down`,
  );
  if (facts.xts !== 0) {
    log.warn(
      `'${ioDebugPath}' WILL HOLD PLAIN TEXT of an encrypted disk: keep it safe, delete it soon`,
    );
  }
}

/** Begins the log of what is read and written, where there is to be one. @throws UserError */
export function startIoLog({ facts }: Disk, { ioDebugPath }: DeviceConfig): void {
  if (ioDebugPath !== undefined && facts.fd >= 0) facts.ioLog = openIoLog(ioDebugPath);
}

/** Expands the keys of a disk for its use; 0 where it is plain. */
export function expandKeys({ encryptionKey }: DeviceConfig, log: Log): number {
  if (!encryptionKey) return 0;
  const xts = expandXts(encryptionKey);
  warnOfUnlockedSecrets(log);
  return xts;
}

/**
 * The main thread's part of a lazy disk; null where all of the disk is in its data file, and nothing is
 * recorded of it. No secret is left afterwards but the expanded keys, and those that the source uses.
 */
export async function openLazy(
  disk: Disk,
  { config, wipeSecrets }: Settings,
  queues: number,
  log: Log,
): Promise<LazyDisk | null> {
  try {
    const { metadataPath } = config;
    if (metadataPath === undefined || disk.facts.fd < 0) return null;
    const { openLazyDisk } = await import('../stripe/lazy_disk.ts');
    const { openSource } = await import('./stripe_sources.ts');
    return await openLazyDisk(disk, { ...config, metadataPath }, queues, openSource, log);
  } finally {
    wipeSecrets();
  }
}

/** The disk in a few words. */
export function diskDescription({ path, facts }: Disk): string {
  return `'${path}' of ${facts.sizeBytes} bytes${facts.xts === 0 ? '' : ', encrypted'}`;
}

/** Deletes the KEK file where that was asked for. */
export async function unlinkKek(args: Arguments): Promise<void> {
  const kekFile = args.value('kek');
  if (!args.has('unlink-kek') || kekFile === undefined) return;
  const { unlinkKekFile } = await import('../config/kek.ts');
  unlinkKekFile(kekFile);
}

/** A disk as it is told of to whoever asks; front ends add what they know. */
export function servedDevice(
  frontend: DeviceDescription['frontend'],
  { path, facts }: Disk,
  config: DeviceConfig,
  board: RequestBoard,
  lazy: LazyDisk | null,
  state: () => FrontendState,
  shutdown: () => void,
): ServedDevice {
  const { sizeBytes, readOnly, writeThrough, direct, xts } = facts;
  const actions: DeviceActions = { flush: flusher(facts), shutdown, stripes: lazy };
  return {
    version,
    description: {
      frontend,
      deviceId: config.deviceId,
      path: facts.fd < 0 ? '' : path,
      sizeBytes,
      queues: board.queues.length,
      readOnly,
      encrypted: xts !== 0,
      directIo: direct,
      writeThrough,
      ioEngine: config.ioEngine,
    },
    frontend: state,
    status: () => lazy?.status ?? null,
    board,
    actions,
  };
}

/**
 * Syncs a disk's data file on a thread of the shim, through a description of its own: the kernel tells of
 * lost writes once, and the guest's flushes and the journal must hear of theirs.
 */
function flusher({ fd, readOnly }: DiskFacts): () => Promise<void> {
  if (fd < 0 || readOnly) return async () => {};
  const lane = new Lane('flush', 1);
  const own = reopen(fd);
  return () => syncFile(lane, own);
}

/** Answers questions from here on, also while requests are finished at the end. */
export async function startRpc(
  path: string | undefined,
  device: ServedDevice,
  log: Log,
): Promise<RpcServer | null> {
  if (path === undefined) return null;
  const { RpcServer } = await import('../observe/rpc_server.ts');
  const server = RpcServer.start(path, deviceCommands(device), log.child('rpc'));
  log.info(`answering commands at '${path}'`);
  return server;
}

/** The path of `metrics_listen`, where it is one. */
export function metricsPath({ metricsListen }: DeviceConfig): string | undefined {
  return metricsListen !== undefined && isAddress(metricsListen, 0) ? undefined : metricsListen;
}

/** Sees whether metrics can be served at a TCP address, which shows only when it is tried. @throws UserError */
export async function checkMetricsAddress(config: DeviceConfig, log: Log): Promise<void> {
  const { metricsListen } = config;
  if (metricsListen === undefined || metricsPath(config) !== undefined) return;
  const { MetricsServer } = await import('../observe/metrics_server.ts');
  MetricsServer.start(splitAddress(metricsListen), () => '', log).stop();
}

/** Serves metrics from here on, where the configuration says so. @throws UserError */
export async function startMetrics(
  config: DeviceConfig,
  device: ServedDevice,
  log: Log,
): Promise<MetricsServer | null> {
  const { metricsListen } = config;
  if (metricsListen === undefined) return null;
  const { metricsText } = await import('../observe/metrics.ts');
  const { MetricsServer } = await import('../observe/metrics_server.ts');
  const path = metricsPath(config);
  const place = path === undefined ? splitAddress(metricsListen) : { path };
  const text = (openMetrics: boolean) => metricsText(device, openMetrics);
  const server = MetricsServer.start(place, text, log);
  log.info(`metrics are at ${server.place}`);
  return server;
}

/** Waits for an end; what stripes that can't be had hold up is failed after a while, so that it comes. */
export async function impatiently<Result>(
  lazy: LazyDisk | null,
  end: Promise<Result>,
): Promise<Result> {
  const impatience = setTimeout(() => lazy?.giveUp(), STOP_PATIENCE_MS);
  try {
    return await end;
  } finally {
    clearTimeout(impatience);
  }
}
