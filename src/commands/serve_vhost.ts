import type { DeviceConfig } from '../config/device_config.ts';
import type { Disk } from '../device/disk.ts';
import { RequestBoard } from '../device/request_board.ts';
import { UsageError, UserError } from '../errors.ts';
import { largestRing } from '../frontend/vhost/protocol.ts';
import { startVhostServer, type VhostOptions, type VhostServer } from '../frontend/vhost/server.ts';
import type { Log } from '../log.ts';
import type { MetricsServer } from '../observe/metrics_server.ts';
import type { LazyDisk } from '../stripe/lazy_disk.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import {
  checkMetricsAddress,
  diskDescription,
  impatiently,
  metricsPath,
  openLazy,
  openServedDisk,
  readSettings,
  type Settings,
  servedDevice,
  startIoLog,
  startMetrics,
  startRpc,
  unlinkKek,
} from './served_disk.ts';
import { notifyServiceManager } from './service_manager.ts';
import { StopSignals } from './signals.ts';
import { checkSocketPlaces, refuseBusySocket } from './socket_places.ts';
import { Watchdog } from './watchdog.ts';

const DEFAULT_SEG_SIZE_MAX = 65536;

/** `ubiblk serve vhost`: serves one disk until SIGTERM or SIGINT (docs/serve-vhost.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  if (args.value('socket') === '') {
    throw new UsageError("option '--socket' needs a path that is not empty");
  }
  if (!args.has('config') && (args.has('null') || args.has('nbd'))) args.required('socket');
  const settings = await readSettings(args, log);
  const { config } = settings;
  const socket = socketOf(args, settings);
  const disk = await openServedDisk(settings, log);
  let lazy: LazyDisk | null = null;
  let idle = true;
  try {
    lazy = await openLazy(disk, settings, config.numQueues, log);
    await refuseBusySocket(socket);
    await refuseBusySocket(config.rpcSocketPath);
    await refuseBusySocket(metricsPath(config));
    if (args.has('check')) {
      await checkMetricsAddress(config, log);
      writeOutput(`OK: ${diskDescription(disk)}, to serve at '${socket}'\n`);
      return 0;
    }
    startIoLog(disk, config);
    await unlinkKek(args);
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

function socketOf(args: Arguments, { config, wipeSecrets }: Settings): string {
  try {
    const socket = args.value('socket') ?? config.socket;
    if (socket === undefined) {
      throw new UserError(
        `${config.file}: socket: is required to serve over vhost-user; add 'socket: PATH' or give ` +
          '--socket',
      );
    }
    checkSocketPlaces([
      ["the frontend's socket", socket],
      ['rpc_socket_path', config.rpcSocketPath],
      ['metrics_listen', metricsPath(config)],
    ]);
    return socket;
  } catch (error) {
    wipeSecrets();
    throw error;
  }
}

/** What the server needs of the configuration: no secret goes to its threads this way. */
function vhostOptions(config: DeviceConfig, socketPath: string): VhostOptions {
  const { deviceId, numQueues, queueSize, segSizeMax = DEFAULT_SEG_SIZE_MAX, segCountMax } = config;
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
  const signals = new StopSignals(log);
  const board = new RequestBoard(options.numQueues, largestRing(options.queueSize));
  let server: VhostServer | null = null;
  const state = () => server?.frontend ?? { connected: false, writeback: !disk.facts.writeThrough };
  const device = servedDevice('vhost', disk, config, board, lazy, state, signals.ask);
  const rpc = await startRpc(config.rpcSocketPath, device, log);
  let metrics: MetricsServer | null = null;
  try {
    metrics = await startMetrics(config, device, log);
    server = await startVhostServer(disk, options, board, log, lazy);
    notifyServiceManager('READY=1');
    const watchdog = Watchdog.start(server.heartbeat, log);
    let failure = await Promise.race([signals.stop, server.failed]);
    watchdog.end();
    notifyServiceManager('STOPPING=1');
    failure ??= await impatiently(lazy, server.stop());
    if (failure !== undefined) {
      log.error(failure.message);
      return false;
    }
    disk.sync();
    log.info('stopped');
    return true;
  } finally {
    metrics?.stop();
    rpc?.stop();
  }
}
