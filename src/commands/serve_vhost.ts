import { type DeviceConfig, defaultTuning } from '../config/device_config.ts';
import { secretsAreLocked } from '../crypto/secret.ts';
import { expandXts, freeXts } from '../crypto/xts.ts';
import { type Disk, openDisk, openNullDisk } from '../device/disk.ts';
import { RequestBoard } from '../device/request_board.ts';
import { UsageError, UserError } from '../errors.ts';
import { largestRing } from '../frontend/vhost/protocol.ts';
import { startVhostServer, type VhostOptions, type VhostServer } from '../frontend/vhost/server.ts';
import type { Log } from '../log.ts';
import { deviceCommands, type ServedDevice } from '../observe/device_commands.ts';
import type { RpcServer } from '../observe/rpc_server.ts';
import { refuseSameFilesOf } from '../stripe/distinct_files.ts';
import type { LazyDisk } from '../stripe/lazy_disk.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { parseSize } from './size.ts';
import { checkSocketPlaces, refuseBusySocket } from './socket_places.ts';
import { version } from './version.ts';

interface Settings {
  config: DeviceConfig;
  socket: string;
  wipeSecrets: () => void;
}

/** How long a guest's requests may wait for stripes after the signal to stop. */
const STOP_PATIENCE_MS = 3000;

/** `ubiblk serve vhost`: serves one disk until SIGTERM or SIGINT (docs/serve-vhost.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const nullSizeBytes = readNullSize(args);
  const settings = await readSettings(args, log);
  const { config, socket } = settings;
  const disk = await open(settings, nullSizeBytes, log);
  let lazy: LazyDisk | null = null;
  let idle = true;
  try {
    lazy = await openLazy(disk, config, log);
    await refuseBusySocket(socket);
    await refuseBusySocket(config.rpcSocketPath);
    if (args.has('check')) {
      writeOutput(`OK: ${description(disk)}, to serve at '${socket}'\n`);
      return 0;
    }
    const kekFile = args.value('kek');
    if (args.has('unlink-kek') && kekFile !== undefined) {
      const { unlinkKekFile } = await import('../config/kek.ts');
      unlinkKekFile(kekFile);
    }
    idle = false;
    idle = await serve(disk, lazy, config, vhostOptions(config, socket), log);
    return idle ? 0 : 1;
  } finally {
    if (idle) {
      await lazy?.close();
      disk.close();
    }
  }
}

/** Null where all of the disk is in its data file, and nothing is recorded of it. */
async function openLazy(disk: Disk, config: DeviceConfig, log: Log): Promise<LazyDisk | null> {
  const { metadataPath, numQueues } = config;
  if (metadataPath === undefined || disk.facts.fd < 0) return null;
  const { openLazyDisk } = await import('../stripe/lazy_disk.ts');
  return await openLazyDisk(disk, { ...config, metadataPath }, numQueues, log);
}

function description({ path, facts }: Disk): string {
  return `'${path}' of ${facts.sizeBytes} bytes${facts.xts === 0 ? '' : ', encrypted'}`;
}

async function open(
  { config, socket, wipeSecrets }: Settings,
  nullSizeBytes: number | undefined,
  log: Log,
): Promise<Disk> {
  let xts = 0;
  try {
    checkSocketPlaces(socket, config.rpcSocketPath);
    if (nullSizeBytes !== undefined) return openNullDisk(nullSizeBytes);
    refuseSameFilesOf(config);
    if (config.encryptionKey) {
      xts = expandXts(config.encryptionKey);
      if (!secretsAreLocked()) log.warn(unlockedSecrets);
    }
    return await openDisk({ ...config, xts }, log);
  } catch (error) {
    freeXts(xts);
    throw error;
  } finally {
    wipeSecrets();
  }
}

const unlockedSecrets =
  'the keys may be swapped to disk: they could not be locked into memory; raise the memlock limit ' +
  '(ulimit -l, LimitMEMLOCK=)';

function readNullSize(args: Arguments): number | undefined {
  const text = args.value('null');
  return text === undefined ? undefined : parseSize('--null', text);
}

async function readSettings(args: Arguments, log: Log): Promise<Settings> {
  const file = args.value('config');
  const kekFile = args.value('kek');
  const socketOption = args.value('socket');
  if (args.has('unlink-kek') && kekFile === undefined) {
    throw new UsageError("option '--unlink-kek' needs '--kek FILE'");
  }
  if (socketOption === '') {
    throw new UsageError("option '--socket' needs a path that is not empty");
  }
  if (file === undefined) {
    if (!args.has('null')) {
      throw new UsageError("option '--config FILE' is required");
    }
    if (kekFile !== undefined) {
      throw new UsageError("option '--kek' needs '--config FILE'");
    }
    const config = { ...defaultTuning, file: '', path: '' };
    return { config, socket: args.required('socket'), wipeSecrets: () => {} };
  }
  const { loadDeviceConfig } = await import('../config/load_device_config.ts');
  const { config, wipeSecrets } = loadDeviceConfig(file, {
    kekFile,
    strict: args.has('strict'),
    allowWeakKey: args.has('allow-weak-key'),
    warn: (line) => log.warn(line),
  });
  const socket = socketOption ?? config.socket;
  if (socket === undefined) {
    wipeSecrets();
    throw new UserError(
      `${file}: socket: is required to serve over vhost-user; add 'socket: PATH' or give --socket`,
    );
  }
  return { config, socket, wipeSecrets };
}

/** What the server needs of the configuration: no secret goes to its threads this way. */
function vhostOptions(config: DeviceConfig, socketPath: string): VhostOptions {
  const { deviceId, numQueues, queueSize, segSizeMax, segCountMax } = config;
  const { pollQueueTimeoutUs, ioEngine, cpus } = config;
  return {
    socketPath,
    deviceId,
    numQueues,
    queueSize,
    segSizeMax,
    segCountMax,
    pollQueueTimeoutUs,
    ioEngine,
    ...(cpus && { cpus }),
  };
}

/** Serves until a signal; false where a thread has died and others may still use the disk. */
async function serve(
  disk: Disk,
  lazy: LazyDisk | null,
  config: DeviceConfig,
  options: VhostOptions,
  log: Log,
): Promise<boolean> {
  const stopped = stopSignal(log);
  const board = new RequestBoard(options.numQueues, largestRing(options.queueSize));
  const status = lazy ? () => lazy.status : () => null;
  const rpc = await startRpc(config.rpcSocketPath, { version, status, board }, log);
  try {
    const server = await startVhostServer(disk, options, board, log, lazy);
    let failure = await Promise.race([stopped, server.failed]);
    failure ??= await stopServer(server, lazy);
    if (failure !== undefined) {
      log.error(failure.message);
      return false;
    }
    disk.sync();
    log.info('stopped');
    return true;
  } finally {
    rpc?.stop();
  }
}

/** What stripes that can't be had hold up is failed after a while, so that the end comes. */
async function stopServer(server: VhostServer, lazy: LazyDisk | null): Promise<Error | undefined> {
  const impatience = setTimeout(() => lazy?.giveUp(), STOP_PATIENCE_MS);
  try {
    return await server.stop();
  } finally {
    clearTimeout(impatience);
  }
}

/** Answers questions from here on, also while the frontend's requests are finished at the end. */
async function startRpc(
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

/**
 * Resolves at the first SIGTERM or SIGINT; the second ends the process at once. SIGHUP is ignored:
 * a terminal that goes away must not take a guest's disk with it.
 */
function stopSignal(log: Log): Promise<undefined> {
  const { promise, resolve } = Promise.withResolvers<undefined>();
  let stopping = false;
  for (const [signal, number] of [
    ['SIGTERM', 15],
    ['SIGINT', 2],
  ] as const) {
    process.on(signal, () => {
      if (stopping) {
        log.warn(`${signal} again: ending without waiting for requests in flight`);
        process.exit(128 + number);
      }
      stopping = true;
      log.info(`${signal}: finishing the requests in flight`);
      resolve(undefined);
    });
  }
  process.on('SIGHUP', () => log.debug('SIGHUP is ignored'));
  return promise;
}
