import { resolve } from 'node:path';
import { errnoName } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import type { DeviceConfig, UblkRecovery } from '../config/device_config.ts';
import type { Disk } from '../device/disk.ts';
import { RequestBoard } from '../device/request_board.ts';
import { errorName, UsageError, UserError } from '../errors.ts';
import { UblkControlThread } from '../frontend/ublk/control_thread.ts';
import type { FoundDevice } from '../frontend/ublk/control_worker.ts';
import { describeHolders, type Holders } from '../frontend/ublk/holders.ts';
import { identityOf, randomIdentity } from '../frontend/ublk/identity.ts';
import {
  bestMode,
  bestRecovery,
  modeOf,
  recoveryOf,
  refuseImpossibleMode,
  refuseImpossibleRecovery,
} from '../frontend/ublk/modes.ts';
import type { UblkDevice, UblkOptions } from '../frontend/ublk/options.ts';
import { deviceParams, refuseOtherDisk } from '../frontend/ublk/params.ts';
import {
  blockPath,
  type DeviceInfo,
  type DeviceParams,
  MAX_QUEUE_DEPTH,
} from '../frontend/ublk/protocol.ts';
import { startUblkQueues, type UblkServer } from '../frontend/ublk/server.ts';
import { noteFolder, removeNote, writeNote } from '../frontend/ublk/state_file.ts';
import { checkLinkPlace, makeLink, removeLink } from '../frontend/ublk/symlink.ts';
import type { Log } from '../log.ts';
import type { FrontendState } from '../observe/device_commands.ts';
import type { MetricsServer } from '../observe/metrics_server.ts';
import type { RpcServer } from '../observe/rpc_server.ts';
import { highestPossibleCpu } from '../processors.ts';
import type { LazyDisk } from '../stripe/lazy_disk.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { secondsOf } from './seconds.ts';
import {
  checkMetricsAddress,
  diskDescription,
  impatiently,
  metricsPath,
  openLazy,
  openServedDisk,
  readSettings,
  type Settings,
  STOP_PATIENCE_MS,
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

const DEFAULT_MAX_IO_BYTES = 1 << 20;
const PAGE_BYTES = 4096;
const DEFAULT_STOP_TIMEOUT_S = 10;
const BUSY_LOOK_MS = 100;
/** Whoever holds a device for a shorter time than this isn't worth a line. */
const BUSY_TELL_MS = 500;

/** `ubiblk serve ublk`: serves one disk as /dev/ublkbN until SIGTERM or SIGINT (docs/serve-ublk.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  becomeIoThread(log);
  const link = linkOf(args);
  const stopTimeoutMs = secondsOf(args, 'stop-timeout', DEFAULT_STOP_TIMEOUT_S, 0) * 1000;
  const settings = await readSettings(args, log);
  let disk: Disk;
  try {
    checkConfig(settings.config, args);
    disk = await openServedDisk(settings, log);
  } catch (error) {
    settings.wipeSecrets();
    throw error;
  }
  const command = new ServeUblk(args, settings, disk, link, stopTimeoutMs, log);
  return await command.run();
}

/**
 * What our memory is needed for may be what frees memory: nothing of it may wait for our own disk. Threads
 * that are made from here on inherit it, the runtime's for files among them.
 */
function becomeIoThread(log: Log): void {
  openLibrary();
  const result = shim.ubiblk_io_flusher();
  if (result < 0) log.debug(`PR_SET_IO_FLUSHER: ${errnoName(result)}`);
}

function linkOf(args: Arguments): string | undefined {
  const link = args.value('device-symlink');
  if (link === '') throw new UsageError("option '--device-symlink' needs a path that is not empty");
  if (link === undefined) return undefined;
  checkLinkPlace(link);
  // The working directory will be another one.
  return resolve(link);
}

/** What only this front end asks of a configuration. @throws UserError */
function checkConfig(config: DeviceConfig, args: Arguments): void {
  const { file, segSizeMax, queueSize } = config;
  if (segSizeMax !== undefined && segSizeMax % PAGE_BYTES !== 0) {
    throw new UserError(`${file}: seg_size_max: must be a multiple of ${PAGE_BYTES} for ublk`);
  }
  if (queueSize > MAX_QUEUE_DEPTH) {
    throw new UserError(`${file}: queue_size: must be at most ${MAX_QUEUE_DEPTH} for ublk`);
  }
  if (args.has('keep-device') && config.ublkRecovery === 'off') {
    throw new UserError(
      `${file}: with 'ublk_recovery: off' the device can't be kept; leave it out`,
    );
  }
}

/** A device that is served, or about to be. */
interface Serving {
  control: UblkControlThread;
  device: UblkDevice;
  options: UblkOptions;
  server: UblkServer;
}

/** What was made of the command line, and what has to be taken back at the end. */
class ServeUblk {
  private readonly config: DeviceConfig;
  private lazy: LazyDisk | null = null;
  private rpc: RpcServer | null = null;
  private metrics: MetricsServer | null = null;
  private readonly signals: StopSignals;
  private readonly toLeave = Promise.withResolvers<undefined>();
  /** Whether the device is left to a successor at the end. */
  private keep: boolean;
  private ending = false;
  /** Whether the block device is there to be used. */
  private shown = false;
  private recovery: UblkRecovery = 'off';
  /** Of the data file and the configuration: the working directory will be another one. */
  private readonly places: { disk: string; config: string };

  constructor(
    private readonly args: Arguments,
    private readonly settings: Settings,
    private readonly disk: Disk,
    private readonly link: string | undefined,
    private readonly stopTimeoutMs: number,
    private readonly log: Log,
  ) {
    const { config } = settings;
    this.config = config;
    this.keep = args.has('keep-device');
    this.places = { disk: resolve(config.path), config: resolve(config.file) };
    this.signals = new StopSignals(log, this.keep ? 0 : 1);
    process.on('SIGUSR2', () => this.askedToLeave());
  }

  async run(): Promise<number> {
    const { config, args, log, disk } = this;
    const rpcPath = config.rpcSocketPath && resolve(config.rpcSocketPath);
    const metrics = metricsPath(config);
    if (metrics !== undefined) config.metricsListen = resolve(metrics);
    checkSocketPlaces([
      ['rpc_socket_path', rpcPath],
      ['metrics_listen', metricsPath(config)],
    ]);
    await refuseBusySocket(rpcPath);
    await refuseBusySocket(metricsPath(config));
    if (args.has('check')) return await this.check();
    // Not before nobody uses the disk any more.
    let idle = true;
    try {
      const control = await UblkControlThread.start(log);
      const unprivileged = args.has('unprivileged');
      const { fd, readOnly } = disk.facts;
      const identity = fd < 0 ? randomIdentity() : identityOf(config.deviceId, fd);
      const found = await control.call('find', identity, unprivileged, !readOnly);
      const queues = found?.info.queues ?? this.queues;
      this.lazy = await openLazy(disk, this.settings, queues, log);
      const options = await this.options(control, found);
      startIoLog(disk, config);
      await unlinkKek(args);
      this.settleDown();
      if (this.signals.stopping) return 0;
      idle = false;
      const device = await control.call('attach', options, identity, found?.info ?? null);
      this.recovery = recoveryOf(device.info.flags);
      const serving = await this.begin(control, device, options, rpcPath);
      const failure = await this.serve(serving);
      if (failure) {
        log.error(failure.message);
        return 1;
      }
      idle = true;
      return 0;
    } finally {
      this.metrics?.stop();
      this.rpc?.stop();
      if (idle) {
        await this.lazy?.close();
        disk.close();
      }
    }
  }

  /** The kernel makes no more queues than there can be processors. */
  private get queues(): number {
    return Math.min(this.config.numQueues, highestPossibleCpu() + 1);
  }

  /** `--check`: no device is looked for, and none is made. */
  private async check(): Promise<number> {
    const { disk, log } = this;
    try {
      const control = await UblkControlThread.start(log);
      this.lazy = await openLazy(disk, this.settings, this.queues, log);
      const options = await this.options(control, null);
      await control.call('check', options);
      await checkMetricsAddress(this.config, log);
      writeOutput(`OK: ${diskDescription(disk)}, to serve as a ublk device\n`);
      return 0;
    } finally {
      await this.lazy?.close();
      disk.close();
    }
  }

  /** What the device is made with; of one that is there already most is as it is. */
  private async options(
    control: UblkControlThread,
    found: FoundDevice | null,
  ): Promise<UblkOptions> {
    const { config, disk, lazy, args } = this;
    const { facts } = disk;
    const unprivileged = args.has('unprivileged');
    const kind = { facts, lazy: lazy !== null, recorded: config.ioDebugPath !== undefined };
    const choice = { ioEngine: config.ioEngine, unprivileged };
    const features = await control.call('features');
    const mode = found
      ? modeOf(found.info.flags)
      : (config.ublkMode ?? bestMode(kind, choice, features));
    if (found || config.ublkMode) refuseImpossibleMode(mode, kind, choice);
    if (config.ublkRecovery) refuseImpossibleRecovery(config.ublkRecovery, choice);
    const options: UblkOptions = {
      deviceId: config.deviceId,
      numQueues: found?.info.queues ?? this.queues,
      queueSize: found?.info.depth ?? config.queueSize,
      maxIoBytes: found?.info.maxIoBytes ?? config.segSizeMax ?? DEFAULT_MAX_IO_BYTES,
      mode,
      recovery: found
        ? recoveryOf(found.info.flags)
        : (config.ublkRecovery ?? bestRecovery(kind, choice, features)),
      unprivileged,
      ...(config.cpus && { cpus: config.cpus }),
      ioEngine: config.ioEngine,
      stripeBytes: lazy?.start.options.stripeBytes ?? 0,
    };
    if (this.keep && options.recovery === 'off') {
      throw new UserError("a device without recovery can't be kept; leave --keep-device out");
    }
    if (found?.params) this.compare(found.info, found.params, options);
    return options;
  }

  /** @throws UserError where the device that was found is of another disk */
  private compare(info: DeviceInfo, params: DeviceParams, options: UblkOptions): void {
    const { config, disk, log } = this;
    refuseOtherDisk(info, params, deviceParams(disk.facts, options, options.maxIoBytes));
    if (info.queues === config.numQueues && info.depth === config.queueSize) return;
    log.warn(
      `${blockPath(info.id)} keeps its ${info.queues} queues of ${info.depth} requests, whatever the ` +
        'configuration says',
    );
  }

  /** From here on nothing is looked up by its path, and what is used stays in memory. */
  private settleDown(): void {
    const locked = shim.ubiblk_lock_memory();
    if (locked < 0) this.log.debug(`mlockall: ${errnoName(locked)}`);
    process.chdir('/');
  }

  /** Starts the queues of a device. */
  private async begin(
    control: UblkControlThread,
    device: UblkDevice,
    options: UblkOptions,
    rpcPath: string | undefined,
  ): Promise<Serving> {
    const { lazy, log, disk } = this;
    const { queues, depth } = device.info;
    if (queues !== options.numQueues) {
      await control.call('delete', device, false);
      throw new UserError(
        `the kernel gives the device ${queues} queues instead of ${options.numQueues}; set ` +
          `'num_queues: ${queues}'`,
      );
    }
    const board = new RequestBoard(queues, depth);
    const state = () => this.frontend(device);
    const { ask } = this.signals;
    const told = servedDevice('ublk', disk, this.config, board, lazy, state, ask);
    this.rpc = await startRpc(rpcPath, told, log);
    this.metrics = await startMetrics(this.config, told, log);
    const { ioEngine, cpus } = options;
    const used = { facts: disk.facts, ioEngine, ...(cpus && { cpus }) };
    const server = await startUblkQueues(control, device, used, board, lazy, log);
    return { control, device, options, server };
  }

  private frontend({ info }: UblkDevice): FrontendState {
    const { writeThrough } = this.disk.facts;
    return {
      connected: this.shown && !this.ending,
      writeback: !writeThrough,
      blockDevice: blockPath(info.id),
    };
  }

  /** Serves until the end. @returns the error of a thread that died */
  private async serve(serving: Serving): Promise<Error | undefined> {
    const { signals, toLeave, log, disk } = this;
    const { server, device, control } = serving;
    const path = blockPath(device.info.id);
    const failure = await Promise.race([this.start(serving), server.failed]);
    if (failure) return failure;
    if (!signals.stopping) this.show(device);
    const watchdog = Watchdog.start(server.heartbeat, log);
    const end = await Promise.race([
      signals.stop.then(() => (this.keep ? ('leave' as const) : ('stop' as const))),
      toLeave.promise.then(() => 'leave' as const),
      server.ended.then(() => 'ended' as const),
      server.failed,
    ]);
    this.ending = true;
    watchdog.end();
    notifyServiceManager('STOPPING=1');
    if (end instanceof Error) return end;
    if (end === 'stop') return await this.stop(serving);
    if (end === 'leave') {
      const died = await server.leave();
      if (died) return died;
      disk.sync();
      log.info('stopped; the device waits for its next server');
    } else if (await control.call('waits', device.info.id)) {
      disk.sync();
      log.info(`'${path}' was taken out of our hands, for its next server`);
    } else {
      log.info(`'${path}' was removed by somebody else`);
      this.hide(device.info.id);
      await server.delete(true);
      disk.sync();
    }
    return undefined;
  }

  private async stop(serving: Serving): Promise<Error | undefined> {
    const { log, lazy, disk } = this;
    const { server, device } = serving;
    const { id } = device.info;
    const free = await this.whenFree(serving);
    const failure = await impatiently(lazy, server.stop());
    if (failure) return failure;
    disk.sync();
    this.hide(id);
    if (await server.delete(!free)) log.info('stopped');
    else log.warn(`ublk device ${id} is still held; remove it later with 'ubiblk ublk del ${id}'`);
    return undefined;
  }

  private askedToLeave(): void {
    if (this.ending) return;
    if (this.recovery === 'off') {
      this.log.warn("SIGUSR2 is ignored: a device without recovery can't be kept");
      return;
    }
    this.log.info('SIGUSR2: leaving the device to a successor');
    this.toLeave.resolve(undefined);
  }

  /** Shows the block device; one that the kernel refuses is not left behind. */
  private async start({ control, server, device, options }: Serving): Promise<undefined> {
    const params = deviceParams(this.disk.facts, options, options.maxIoBytes);
    let starting = true;
    // A partition table is looked for, and its stripe may not come: a stop must not wait for it.
    this.signals.stop.then(() =>
      setTimeout(() => starting && this.lazy?.giveUp(), STOP_PATIENCE_MS),
    );
    try {
      await control.call('start', device, params);
    } catch (error) {
      if (!device.recovered && !(await server.stop())) await server.delete(false);
      throw error;
    } finally {
      starting = false;
    }
  }

  /** Says where the device is, once it can be used. */
  private show({ info, mode, recovered }: UblkDevice): void {
    const path = blockPath(info.id);
    const { log } = this;
    this.shown = true;
    this.trying(() => this.note(info.id));
    this.trying(() => this.link && makeLink(this.link, path));
    log.info(`${recovered ? 'serving again' : 'serving'} '${path}'`, {
      mode,
      recovery: this.recovery,
      queues: info.queues,
      depth: info.depth,
    });
    this.trying(() => writeOutput(`${path}\n`));
    notifyServiceManager('READY=1');
  }

  /** Whoever uses the device already must not suffer from what can't be shown. */
  private trying(action: () => void): void {
    try {
      action();
    } catch (error) {
      if (!(error instanceof UserError)) throw error;
      this.log.warn(error.message);
    }
  }

  private note(id: number): void {
    const { config, link, disk } = this;
    const folder = noteFolder();
    if (!folder || disk.facts.fd < 0) return;
    const { deviceId } = config;
    const symlink = link && { symlink: link };
    const note = { id, deviceId, ...this.places, ...symlink, pid: process.pid, since: Date.now() };
    try {
      writeNote(folder, note);
    } catch (error) {
      throw new UserError(`nothing is noted in '${folder}': ${errorName(error)}`);
    }
  }

  private hide(id: number): void {
    if (this.link) removeLink(this.link, blockPath(id));
    const folder = noteFolder();
    if (folder) removeNote(folder, id);
  }

  /**
   * Waits until nobody uses the device, but no longer than the user wants to.
   * @returns false where somebody still does
   */
  private async whenFree({ control, device }: Serving): Promise<boolean> {
    const { log, signals, stopTimeoutMs } = this;
    const { id } = device.info;
    const deadline = performance.now() + stopTimeoutMs;
    const forced = signals.force.then(() => true);
    let last = '';
    let since = 0;
    let told = '';
    for (;;) {
      const holders = await control.call('holders', id);
      const who = describeHolders(holders);
      const now = performance.now();
      if (who === '') return true;
      if (who !== last) since = now;
      last = who;
      if (who !== told && now - since >= BUSY_TELL_MS) {
        told = who;
        const seconds = Math.round((deadline - now) / 1000);
        log.warn(
          `'${blockPath(id)}' is in use: ${who}; it is removed in ${seconds} s all the same`,
        );
      }
      const over = now >= deadline || (await soon(forced, BUSY_LOOK_MS));
      if (!over) continue;
      log.warn(`'${blockPath(id)}' is removed although it is in use: ${who}`);
      await syncHolders(id, holders);
      return false;
    }
  }
}

/** Whether something comes within a time. */
async function soon(event: Promise<boolean>, ms: number): Promise<boolean> {
  return await Promise.race([event, Bun.sleep(ms).then(() => false)]);
}

/** Has what is still kept for the device written, as far as that is possible in a moment. */
async function syncHolders(id: number, { mounts }: Holders): Promise<void> {
  const targets = [...mounts.map((path) => ['-f', path]), [blockPath(id)]];
  const syncs = targets.map(
    (target) => Bun.spawn(['sync', ...target], { stderr: 'ignore' }).exited,
  );
  await Promise.race([Promise.all(syncs), Bun.sleep(5000)]);
}
