import { resolve } from 'node:path';
import { errnoName } from '../../ffi/errno.ts';
import { shim } from '../../ffi/library.ts';
import type { DeviceConfig } from '../config/device_config.ts';
import type { Disk } from '../device/disk.ts';
import { RequestBoard } from '../device/request_board.ts';
import { errorName, UsageError, UserError } from '../errors.ts';
import { UblkControlThread } from '../frontend/ublk/control_thread.ts';
import type { FoundDevice } from '../frontend/ublk/control_worker.ts';
import { describeHolders, type Holders, holdersOf } from '../frontend/ublk/holders.ts';
import { identityOf } from '../frontend/ublk/identity.ts';
import { bestMode, modeOf, recoveryOf, refuseImpossibleMode } from '../frontend/ublk/modes.ts';
import type { UblkDevice, UblkOptions } from '../frontend/ublk/options.ts';
import { deviceParams, refuseOtherDisk } from '../frontend/ublk/params.ts';
import { blockPath, type DeviceParams, MAX_QUEUE_DEPTH } from '../frontend/ublk/protocol.ts';
import { startUblkQueues, type UblkServer } from '../frontend/ublk/server.ts';
import { noteFolder, removeNote, writeNote } from '../frontend/ublk/state_file.ts';
import { checkLinkPlace, makeLink, removeLink } from '../frontend/ublk/symlink.ts';
import type { Log } from '../log.ts';
import type { RpcServer } from '../observe/rpc_server.ts';
import { highestPossibleCpu } from '../processors.ts';
import type { LazyDisk } from '../stripe/lazy_disk.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { secondsOf } from './seconds.ts';
import {
  diskDescription,
  impatiently,
  openLazy,
  openServedDisk,
  readSettings,
  type Settings,
  STOP_PATIENCE_MS,
  startRpc,
  unlinkKek,
} from './served_disk.ts';
import { notifyServiceManager } from './service_manager.ts';
import { StopSignals } from './signals.ts';
import { refuseBusySocket } from './socket_places.ts';
import { version } from './version.ts';

const DEFAULT_MAX_IO_BYTES = 1 << 20;
const PAGE_BYTES = 4096;
const DEFAULT_STOP_TIMEOUT_S = 10;
const BUSY_LOOK_MS = 100;
/** Whoever holds a device for a shorter time than this isn't worth a line. */
const BUSY_TELL_MS = 500;

/** `ubiblk serve ublk`: serves one disk as /dev/ublkbN until SIGTERM or SIGINT (docs/serve-ublk.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const link = linkOf(args);
  const stopTimeoutMs = secondsOf(args, 'stop-timeout', DEFAULT_STOP_TIMEOUT_S, 0) * 1000;
  const settings = await readSettings(args, log);
  const { config } = settings;
  let disk: Disk;
  try {
    checkConfig(config, args);
    disk = await openServedDisk(settings, log);
  } catch (error) {
    settings.wipeSecrets();
    throw error;
  }
  const command = new ServeUblk(args, settings, disk, link, stopTimeoutMs, log);
  return await command.run();
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

/** What was made of the command line, and what has to be taken back at the end. */
class ServeUblk {
  private readonly config: DeviceConfig;
  private lazy: LazyDisk | null = null;
  private rpc: RpcServer | null = null;
  private readonly signals: StopSignals;
  private readonly left: Promise<undefined>;
  private keep: boolean;
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
    const left = Promise.withResolvers<undefined>();
    this.left = left.promise;
    process.on('SIGUSR2', () => {
      if (config.ublkRecovery === 'off') {
        log.warn("SIGUSR2 is ignored: with 'ublk_recovery: off' the device can't be kept");
        return;
      }
      log.info('SIGUSR2: leaving the device to a successor');
      this.keep = true;
      left.resolve(undefined);
    });
  }

  async run(): Promise<number> {
    const { config, args, log, disk } = this;
    let idle = true;
    try {
      const control = await UblkControlThread.start(log);
      const rpcPath = config.rpcSocketPath && resolve(config.rpcSocketPath);
      await refuseBusySocket(rpcPath);
      const identity = this.identity();
      const found = await control.call('find', identity);
      const queues = found
        ? found.info.queues
        : Math.min(config.numQueues, highestPossibleCpu() + 1);
      this.lazy = await openLazy(disk, this.settings, queues, log);
      const options = await this.options(control, found);
      if (args.has('check')) {
        writeOutput(`OK: ${diskDescription(disk)}, to serve as a ublk device\n`);
        return 0;
      }
      await unlinkKek(args);
      this.becomeIoThread();
      idle = false;
      const device = await control.call('attach', options, identity, found?.info ?? null);
      const { depth } = device.info;
      if (device.info.queues !== queues) {
        await control.call('release', device.charFd);
        await control.call('delete', device.info.id, false);
        idle = true;
        throw new UserError(
          `the kernel gives the device ${device.info.queues} queues instead of ${queues}; set ` +
            `'num_queues: ${device.info.queues}'`,
        );
      }
      const board = new RequestBoard(queues, depth);
      const { lazy } = this;
      const status = lazy ? () => lazy.status : () => null;
      this.rpc = await startRpc(rpcPath, { version, status, board }, log);
      const { ioEngine, cpus } = options;
      const server = await startUblkQueues(
        control,
        device,
        { facts: disk.facts, ioEngine, ...(cpus && { cpus }) },
        board,
        lazy,
        log,
      );
      const failure = await this.serve(control, server, device, options);
      if (failure) {
        log.error(failure.message);
        return 1;
      }
      idle = true;
      disk.sync();
      log.info(this.keep ? 'stopped; the device waits for its next server' : 'stopped');
      return 0;
    } finally {
      this.rpc?.stop();
      if (idle) {
        await this.lazy?.close();
        disk.close();
      }
    }
  }

  private identity(): bigint {
    const { fd } = this.disk.facts;
    // Nobody misses what a disk of nothing held.
    return fd < 0 ? identityOf(`null ${process.pid}`, 0) : identityOf(this.config.deviceId, fd);
  }

  /** What the device is made with; of one that is there already most is as it is. */
  private async options(
    control: UblkControlThread,
    found: FoundDevice | null,
  ): Promise<UblkOptions> {
    const { config, disk, lazy, args, log } = this;
    const { facts } = disk;
    const unprivileged = args.has('unprivileged');
    const kind = { facts, lazy: lazy !== null };
    const choice = { ioEngine: config.ioEngine, unprivileged };
    const features = await control.call('features');
    const mode = found
      ? modeOf(found.info.flags)
      : (config.ublkMode ?? bestMode(kind, choice, features));
    if (found || config.ublkMode) refuseImpossibleMode(mode, kind, choice);
    const options: UblkOptions = {
      deviceId: config.deviceId,
      numQueues: found?.info.queues ?? Math.min(config.numQueues, highestPossibleCpu() + 1),
      queueSize: found?.info.depth ?? config.queueSize,
      maxIoBytes: found?.info.maxIoBytes ?? config.segSizeMax ?? DEFAULT_MAX_IO_BYTES,
      mode,
      recovery: found ? recoveryOf(found.info.flags) : config.ublkRecovery,
      unprivileged,
      ...(config.cpus && { cpus: config.cpus }),
      ioEngine: config.ioEngine,
      stripeBytes: lazy?.start.options.stripeBytes ?? 0,
    };
    if (found?.params) {
      const now = deviceParams(facts, options, options.maxIoBytes);
      refuseOtherDisk(found.info, found.params, now);
      if (found.info.queues !== config.numQueues || found.info.depth !== config.queueSize) {
        log.warn(
          `${blockPath(found.info.id)} keeps its ${found.info.queues} queues of ` +
            `${found.info.depth} requests, whatever the configuration says`,
        );
      }
    }
    return options;
  }

  /**
   * What our memory is needed for may be what frees memory: nothing of it may wait for our own disk.
   * Before the threads of the queues are made, which inherit it.
   */
  private becomeIoThread(): void {
    const flusher = shim.ubiblk_io_flusher();
    if (flusher < 0) this.log.debug(`PR_SET_IO_FLUSHER: ${errnoName(flusher)}`);
    const locked = shim.ubiblk_lock_memory();
    if (locked < 0) this.log.debug(`mlockall: ${errnoName(locked)}`);
    process.chdir('/');
  }

  private async serve(
    control: UblkControlThread,
    server: UblkServer,
    device: UblkDevice,
    options: UblkOptions,
  ): Promise<Error | undefined> {
    const { signals, lazy, log, disk } = this;
    const { id } = device.info;
    const params = deviceParams(disk.facts, options, options.maxIoBytes);
    let failure = await Promise.race([this.start(control, server, device, params), server.failed]);
    if (failure) return failure;
    this.show(device);
    const end = await Promise.race([
      signals.stop.then(() => 'stop' as const),
      this.left.then(() => 'leave' as const),
      server.ended.then(() => 'ended' as const),
      server.failed,
    ]);
    notifyServiceManager('STOPPING=1');
    if (end instanceof Error) return end;
    if (end === 'ended') {
      log.info(`'${blockPath(id)}' was removed by somebody else`);
      await server.delete(true);
    } else if (this.keep) {
      failure = await server.leave();
    } else {
      const free = await this.whenFree(id);
      failure = await impatiently(lazy, server.stop(!free));
    }
    if (!this.keep) this.hide(id);
    return failure ?? undefined;
  }

  /** Shows the block device; one that the kernel refuses is not left behind. */
  private async start(
    control: UblkControlThread,
    server: UblkServer,
    device: UblkDevice,
    params: DeviceParams,
  ): Promise<undefined> {
    let starting = true;
    // A partition table is looked for, and its stripe may not come: a stop must not wait for it.
    this.signals.stop.then(() =>
      setTimeout(() => starting && this.lazy?.giveUp(), STOP_PATIENCE_MS),
    );
    try {
      await control.call('start', device, params);
    } catch (error) {
      if (!device.recovered) await server.stop(false);
      throw error;
    } finally {
      starting = false;
    }
  }

  /** Says where the device is, once it can be used. */
  private show({ info, mode, recovered }: UblkDevice): void {
    const path = blockPath(info.id);
    const { log, config, link, disk } = this;
    const folder = noteFolder();
    if (folder && disk.facts.fd >= 0) {
      const note = {
        id: info.id,
        deviceId: config.deviceId,
        ...this.places,
        ...(link && { symlink: link }),
        pid: process.pid,
        since: Date.now(),
      };
      try {
        writeNote(folder, note);
      } catch (error) {
        log.warn(`'${folder}' can't be written to (${errorName(error)}): nothing is noted there`);
      }
    }
    if (link) {
      try {
        makeLink(link, path);
      } catch (error) {
        if (!(error instanceof UserError)) throw error;
        log.warn(error.message);
      }
    }
    log.info(`${recovered ? 'serving again' : 'serving'} '${path}'`, {
      mode,
      recovery: recoveryOf(info.flags),
      queues: info.queues,
      depth: info.depth,
    });
    writeOutput(`${path}\n`);
    notifyServiceManager('READY=1');
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
  private async whenFree(id: number): Promise<boolean> {
    const { log, signals, stopTimeoutMs } = this;
    const deadline = performance.now() + stopTimeoutMs;
    const forced = signals.force.then(() => true);
    let last = '';
    let since = 0;
    let told = '';
    for (;;) {
      const holders = holdersOf(id);
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
      await syncHolders(holders);
      return false;
    }
  }
}

/** Whether something comes within a time. */
async function soon(event: Promise<boolean>, ms: number): Promise<boolean> {
  return await Promise.race([event, Bun.sleep(ms).then(() => false)]);
}

/** Has file systems write what they still keep, as far as they can in a moment. */
async function syncHolders({ mounts }: Holders): Promise<void> {
  const syncs = mounts.map((path) => Bun.spawn(['sync', '-f', path], { stderr: 'ignore' }).exited);
  await Promise.race([Promise.all(syncs), Bun.sleep(5000)]);
}
