import type { DeviceConfig } from '../config/device_config.ts';
import type { Psk } from '../crypto/tls_psk.ts';
import { warnOfUnlockedSecrets } from '../crypto/unlocked_secrets.ts';
import type { Disk } from '../device/disk.ts';
import { MAX_STRING } from '../device/nbd/protocol.ts';
import { RequestBoard } from '../device/request_board.ts';
import { UsageError, UserError } from '../errors.ts';
import { QUEUE_PLACES } from '../frontend/nbd/queue.ts';
import { type NbdServer, startNbdServer } from '../frontend/nbd/server.ts';
import type { Log } from '../log.ts';
import { readPskFile } from '../nbd/psk_file.ts';
import type { MetricsServer } from '../observe/metrics_server.ts';
import type { LazyDisk } from '../stripe/lazy_disk.ts';
import type { Arguments } from './arguments.ts';
import { hasPassedSocket, type Listening, listenForNbd, listenPath } from './nbd_listen.ts';
import { writeOutput } from './output.ts';
import {
  checkMetricsAddress,
  diskDescription,
  impatiently,
  metricsPath,
  openLazy,
  openServedDisk,
  readSettings,
  servedDevice,
  startMetrics,
  startRpc,
  unlinkKek,
} from './served_disk.ts';
import { notifyServiceManager } from './service_manager.ts';
import { StopSignals } from './signals.ts';
import { checkSocketPlaces, refuseBusySocket } from './socket_places.ts';
import { Watchdog } from './watchdog.ts';

/** How long the command of `--run` may take to end at a signal, in milliseconds. */
const RUN_PATIENCE_MS = 5000;
const SIGNAL_STATUS = 128;

/** What the command line asks for. */
interface Wanted {
  listen: string | undefined;
  run: string | undefined;
  exportName: string;
  readOnly: boolean;
}

/** `ubiblk serve nbd`: serves one disk until a signal, or until `--run`'s command ends (docs/nbd.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const wanted = wantedOf(args);
  const settings = await readSettings(args, log);
  const { config } = settings;
  let psk: Psk | undefined;
  let disk: Disk;
  try {
    psk = readPsk(args, log);
    checkSocketPlaces([
      ['--listen', wanted.listen && listenPath(wanted.listen)],
      ['rpc_socket_path', config.rpcSocketPath],
      ['metrics_listen', metricsPath(config)],
    ]);
    // A lazy disk is written to by main, whatever clients may.
    const readOnly = wanted.readOnly && config.metadataPath === undefined;
    disk = await openServedDisk(settings, log, readOnly);
  } catch (error) {
    settings.wipeSecrets();
    psk?.secret.wipe();
    throw error;
  }
  let lazy: LazyDisk | null = null;
  let idle = true;
  try {
    lazy = await openLazy(disk, settings, config.numQueues, log);
    await refuseBusySocket(wanted.listen && listenPath(wanted.listen));
    await refuseBusySocket(config.rpcSocketPath);
    await refuseBusySocket(metricsPath(config));
    if (args.has('check')) {
      await checkMetricsAddress(config, log);
      if (wanted.listen && listenPath(wanted.listen) === undefined) {
        (await listenForNbd(wanted.listen, wanted.exportName, psk !== undefined)).close();
      }
      const where = wanted.listen === undefined ? '' : ` at '${wanted.listen}'`;
      writeOutput(`OK: ${diskDescription(disk)}, to serve over NBD${where}\n`);
      return 0;
    }
    await unlinkKek(args);
    idle = false;
    const served = await serve(disk, lazy, config, wanted, psk, log);
    idle = served.idle;
    return served.status;
  } finally {
    psk?.secret.wipe();
    if (idle) {
      await lazy?.close();
      disk.close();
    }
  }
}

function wantedOf(args: Arguments): Wanted {
  const listen = args.value('listen');
  const run = args.value('run');
  const exportName = args.value('export') ?? '';
  if (listen !== undefined) listenPath(listen);
  if (listen === undefined && run === undefined && !hasPassedSocket() && !args.has('check')) {
    throw new UsageError(
      "option '--listen unix:PATH' or '--listen HOST:PORT' is required, or '--run COMMAND'",
    );
  }
  if (Buffer.byteLength(exportName) > MAX_STRING) {
    throw new UsageError(`option '--export' takes at most ${MAX_STRING} bytes`);
  }
  return { listen, run, exportName, readOnly: args.has('read-only') };
}

function readPsk(args: Arguments, log: Log): Psk | undefined {
  const file = args.value('tls-psk');
  if (file === undefined) return undefined;
  const psk = readPskFile(file);
  warnOfUnlockedSecrets(log);
  return psk;
}

/** Serves until it is to end; `idle` is false where a thread has died and others may use the disk. */
async function serve(
  disk: Disk,
  lazy: LazyDisk | null,
  config: DeviceConfig,
  { listen, run, exportName, readOnly }: Wanted,
  psk: Psk | undefined,
  log: Log,
): Promise<{ status: number; idle: boolean }> {
  const signals = new StopSignals(log);
  const { numQueues, cpus, ioEngine } = config;
  const board = new RequestBoard(numQueues, QUEUE_PLACES);
  let server: NbdServer | null = null;
  const state = () => ({
    connected: (server?.connections ?? 0) > 0,
    writeback: !disk.facts.writeThrough,
  });
  const device = servedDevice('nbd', disk, config, board, lazy, state, signals.ask);
  const rpc = await startRpc(config.rpcSocketPath, device, log);
  let metrics: MetricsServer | null = null;
  let listening: Listening | null = null;
  try {
    metrics = await startMetrics(config, device, log);
    listening = await listenForNbd(listen, exportName, psk !== undefined);
    const options = { listenFd: listening.fd, exportName, readOnly, numQueues, ioEngine };
    const more = { ...(psk && { psk }), ...(cpus && { cpus }) };
    server = await startNbdServer(disk, { ...options, ...more }, board, log, lazy);
    log.info(`listening on ${listening.place}`);
    notifyServiceManager('READY=1');
    const watchdog = Watchdog.start(server.heartbeat, log);
    const command = run === undefined ? null : new RunCommand(run, listening);
    const ends = [signals.stop, server.failed, ...(command ? [command.ended] : [])];
    const first = await Promise.race<Error | number | undefined>(ends);
    watchdog.end();
    notifyServiceManager('STOPPING=1');
    const status = typeof first === 'number' ? first : ((await command?.stop()) ?? 0);
    let failure = first instanceof Error ? first : undefined;
    failure ??= await impatiently(lazy, server.stop());
    if (failure !== undefined) {
      log.error(failure.message);
      return { status: 1, idle: false };
    }
    disk.sync();
    log.info('stopped');
    return { status, idle: true };
  } finally {
    listening?.close();
    metrics?.stop();
    rpc?.stop();
  }
}

/** The command of `--run`, which finds the disk by `$uri`, as nbdkit's does. */
class RunCommand {
  /** Resolves with its exit status, as a shell would tell it. */
  readonly ended: Promise<number>;
  private readonly child;

  /** @throws UserError where there is no shell */
  constructor(command: string, { uri }: Listening) {
    const [, socket] = /[?&]socket=([^&]*)/.exec(uri) ?? [];
    const [, port] = /:(\d+)\//.exec(uri) ?? [];
    const env = {
      ...process.env,
      uri,
      nbd: socket === undefined ? uri : `nbd:unix:${decodeURIComponent(socket)}`,
      unixsocket: socket === undefined ? '' : decodeURIComponent(socket),
      port: port ?? '',
    };
    try {
      this.child = Bun.spawn(['/bin/sh', '-c', command], {
        env,
        stdio: ['inherit', 'inherit', 'inherit'],
      });
    } catch (error) {
      throw new UserError(`the command of --run can't be started: ${(error as Error).message}`);
    }
    const { child } = this;
    this.ended = child.exited.then((status) => status);
  }

  /** Ends it, politely first. @returns its exit status */
  async stop(): Promise<number> {
    const { child } = this;
    child.kill('SIGTERM');
    const impatience = setTimeout(() => child.kill('SIGKILL'), RUN_PATIENCE_MS);
    const status = await this.ended;
    clearTimeout(impatience);
    return status >= SIGNAL_STATUS ? 0 : status;
  }
}
