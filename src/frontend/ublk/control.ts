/**
 * Control commands to the ublk driver (ublk_cmd.h). Every call blocks its thread until the kernel has
 * answered or the deadline has passed.
 */
import { existsSync } from 'node:fs';
import { release } from 'node:os';
import {
  EACCES,
  EINVAL,
  ENODEV,
  ENOENT,
  ENXIO,
  EOPNOTSUPP,
  EPERM,
  ETIME,
  errnoName,
} from '../../../ffi/errno.ts';
import { openLibrary, shim } from '../../../ffi/library.ts';
import { NativeBuffer } from '../../../ffi/memory.ts';
import { UserError } from '../../errors.ts';
import {
  CONTROL_BYTES,
  CONTROL_PATH,
  Control,
  type ControlName,
  charPath,
  type DeviceInfo,
  type DeviceParams,
  hasFeature,
  INFO_BYTES,
  PARAMS_BYTES,
  readDeviceInfo,
  readDeviceParams,
  writeDeviceInfo,
  writeDeviceParams,
} from './protocol.ts';

/** A control command that the kernel refused. */
export class UblkRefused extends Error {
  constructor(
    readonly command: ControlName,
    /** -errno. */
    readonly result: number,
  ) {
    super(`the ublk driver refused ${command} with ${errnoName(result)}`);
  }
}

/** How long a command may take that waits for nobody, and one that waits for I/O before it is told. */
const DEADLINE_MS = 30_000;
const SLOW_MS = 10_000;

const PAYLOAD_BYTES = 8192;
/** The mask of a queue's processors, a multiple of 8. */
const AFFINITY_BYTES = 1024;

export interface ControlOptions {
  /** Uses the opcodes from before Linux 6.4 even if the kernel has others. */
  legacy?: boolean;
  /** Is told of a command that waits for I/O and takes long. */
  onSlow?: (command: ControlName) => void;
}

/** One command in the making; what isn't given is 0. */
interface Request {
  device?: number;
  /** How many bytes of payload there are, at `this.data`. */
  bytes?: number;
  data?: bigint;
  /** It ends when I/O does, for which there is no deadline. */
  waitsForIo?: boolean;
  /** The device's path goes with it. */
  withPath?: boolean;
}

export class UblkControl {
  /** Bits of what the driver can do; null for one from before Linux 6.5, which can't be asked. */
  readonly features: bigint | null;
  private readonly handle: number;
  private readonly payload: NativeBuffer;
  private readonly bytes: Uint8Array;
  /** Whether opcodes are those from before Linux 6.4. */
  readonly legacy: boolean;
  private readonly unprivileged = new Set<number>();
  /** A command was not answered in time. */
  private stuck = false;

  /** @throws UserError where there is no driver, or no permission to use it */
  constructor(private readonly options: ControlOptions = {}) {
    openLibrary();
    const handle = new BigUint64Array(1);
    const result = shim.ubiblk_ublk_open(Buffer.from(`${CONTROL_PATH}\0`), handle);
    if (result < 0) throw cannotOpen(result);
    this.handle = Number(handle[0]);
    this.payload = new NativeBuffer(PAYLOAD_BYTES);
    this.bytes = new Uint8Array(this.payload.window());
    this.features = options.legacy ? null : this.askFeatures();
    this.legacy = this.features === null;
  }

  /**
   * Makes a device.
   * @param info what is wanted; the kernel may change any of it
   * @returns what it made
   */
  add(info: DeviceInfo): DeviceInfo {
    const view = this.data(0, INFO_BYTES);
    writeDeviceInfo(view, info);
    this.call('ADD_DEV', { device: info.id, bytes: INFO_BYTES });
    const made = readDeviceInfo(view);
    this.note(made);
    return made;
  }

  /** What the kernel says of a device; null where there is none of this number. */
  info(id: number): DeviceInfo | null {
    let why = 0;
    try {
      return this.askInfo('GET_DEV_INFO2', id, true);
    } catch (error) {
      why = refusal(error).result;
      if (why === -ENODEV) return null;
      if (why !== -EOPNOTSUPP && why !== -EINVAL && why !== -ENOENT) throw error;
    }
    try {
      return this.askInfo('GET_DEV_INFO', id, false);
    } catch (error) {
      // A device that goes away loses its file first, without which a user's can't be asked for.
      if (why === -ENOENT || refusal(error).result === -ENODEV) return null;
      throw error;
    }
  }

  /** The same; null also for a device of somebody else's. */
  infoIfAllowed(id: number): DeviceInfo | null {
    try {
      return this.info(id);
    } catch (error) {
      const { result } = refusal(error);
      if (result === -EPERM || result === -EACCES || result === -ENOENT) return null;
      throw error;
    }
  }

  params(id: number): DeviceParams {
    const at = this.pathBytes(id);
    const view = this.data(at, PARAMS_BYTES);
    view.setUint32(0, PARAMS_BYTES, true);
    this.call('GET_PARAMS', { device: id, bytes: PARAMS_BYTES });
    return readDeviceParams(view);
  }

  setParams(id: number, params: DeviceParams): void {
    writeDeviceParams(this.data(this.pathBytes(id), PARAMS_BYTES), params);
    this.call('SET_PARAMS', { device: id, bytes: PARAMS_BYTES });
  }

  /** The processors that a queue's requests come from, as sched_setaffinity(2) takes them. */
  queueAffinity(id: number, queue: number): Uint8Array {
    const at = this.pathBytes(id);
    const request = { device: id, bytes: AFFINITY_BYTES, data: BigInt(queue) };
    this.call('GET_QUEUE_AFFINITY', request);
    return this.bytes.slice(at, at + AFFINITY_BYTES);
  }

  /** Shows the block device; waits until every queue has fetched all its tags. */
  start(id: number): void {
    this.call('START_DEV', { device: id, data: BigInt(process.pid), waitsForIo: true });
  }

  /** Takes the block device away; waits for requests in flight. */
  stop(id: number): void {
    this.call('STOP_DEV', { device: id, waitsForIo: true });
  }

  /** Removes a device; waits until its character device is let go of. */
  delete(id: number): void {
    this.call('DEL_DEV', { device: id, waitsForIo: true });
  }

  /**
   * Has a device deleted when nobody holds it any more (Linux 6.9); not for unprivileged ones.
   * @returns false where the driver can't
   */
  deleteHeld(id: number): boolean {
    try {
      this.call('DEL_DEV_ASYNC', { device: id });
      return true;
    } catch (error) {
      const { result } = refusal(error);
      // Somebody else has deleted it.
      if (result === -ENODEV) return true;
      if (result !== -EOPNOTSUPP && result !== -EINVAL) throw error;
      return false;
    }
  }

  /** Begins to serve a device whose server has gone. */
  startRecovery(id: number): void {
    this.call('START_USER_RECOVERY', { device: id });
  }

  /** The end of it, like `start`. */
  endRecovery(id: number): void {
    this.call('END_USER_RECOVERY', { device: id, data: BigInt(process.pid), waitsForIo: true });
  }

  /** Asks a device's queues to leave it to a successor; waits so long for their requests. */
  quiesce(id: number, timeoutMs: number): void {
    this.call('QUIESCE_DEV', { device: id, data: BigInt(timeoutMs), waitsForIo: true });
  }

  close(): void {
    shim.ubiblk_ublk_close(this.handle);
    this.payload.free();
  }

  private askFeatures(): bigint | null {
    const view = this.data(0, 8);
    try {
      this.call('GET_FEATURES', { bytes: 8 });
    } catch (error) {
      const { result } = refusal(error);
      if (result === -ENODEV || result === -EOPNOTSUPP || result === -EINVAL) return null;
      throw error;
    }
    return view.getBigUint64(0, true);
  }

  private askInfo(command: ControlName, id: number, withPath: boolean): DeviceInfo {
    const at = withPath ? pathOf(id).length : 0;
    const view = this.data(at, INFO_BYTES);
    this.call(command, { device: id, bytes: INFO_BYTES, withPath });
    const info = readDeviceInfo(view);
    this.note(info);
    return info;
  }

  private note(info: DeviceInfo): void {
    if (hasFeature(info.flags, 'UNPRIVILEGED_DEV')) this.unprivileged.add(info.id);
    else this.unprivileged.delete(info.id);
  }

  /** Before the payload of a command to an unprivileged device stands the path of that device. */
  private pathBytes(id: number): number {
    return this.unprivileged.has(id) ? pathOf(id).length : 0;
  }

  private data(at: number, length: number): DataView {
    this.bytes.fill(0, at, at + length);
    return new DataView(this.bytes.buffer, at, length);
  }

  private call(command: ControlName, request: Request): void {
    const { device = -1, bytes = 0, data = 0n, waitsForIo = false } = request;
    // Its answer would be taken for that of the one before.
    if (this.stuck) throw new UserError(neverAnswered(command));
    const withPath = request.withPath ?? this.unprivileged.has(device);
    const path = withPath ? pathOf(device) : new Uint8Array(0);
    this.bytes.set(path, 0);
    const length = path.length + bytes;
    const words = new DataView(new ArrayBuffer(CONTROL_BYTES));
    words.setInt32(0, device, true);
    words.setUint16(4, 0xffff, true);
    words.setUint16(6, length, true);
    words.setBigUint64(8, length === 0 ? 0n : BigInt(this.payload.address), true);
    words.setBigUint64(16, data, true);
    words.setUint16(24, path.length, true);
    const op = this.legacy ? Control[command].legacy : Control[command].op;
    const patience = waitsForIo ? SLOW_MS : DEADLINE_MS;
    const cmd = new Uint8Array(words.buffer);
    let result = shim.ubiblk_ublk_command(this.handle, op, cmd, patience);
    if (result === -ETIME) {
      this.stuck = !waitsForIo;
      if (!waitsForIo) throw new UserError(neverAnswered(command));
      this.options.onSlow?.(command);
      result = shim.ubiblk_ublk_await(this.handle, -1);
    }
    if (result < 0) throw new UblkRefused(command, result);
  }
}

function pathOf(id: number): Uint8Array {
  return Buffer.from(`${charPath(id)}\0`);
}

function refusal(error: unknown): UblkRefused {
  if (error instanceof UblkRefused) return error;
  throw error;
}

function neverAnswered(command: ControlName): string {
  const bad = isKnownBad(release())
    ? `; kernel ${release()} is known to crash in its ublk driver: boot another one`
    : `; its log (dmesg) may say why, and the machine may have to be rebooted`;
  return `the ublk driver has not answered ${command} in ${DEADLINE_MS / 1000} s${bad}`;
}

/**
 * Kernels whose driver crashes while a device is made, after which nothing answers any more: builds of
 * Ubuntu's for clouds, and 6.18.4 and 6.18.5 (docs/doctor.md has the sources).
 */
export function isKnownBad(kernel: string): boolean {
  return /^6\.17\.\d+-\d+-(aws|azure)$|^6\.18\.[45](?!\d)/.test(kernel);
}

function cannotOpen(result: number): UserError {
  if (result === -ENOENT || result === -ENXIO || result === -ENODEV) return noDriver();
  if (result === -EACCES || result === -EPERM) {
    return new UserError(
      `'${CONTROL_PATH}' can't be opened (${errnoName(result)}): run as root, or see ` +
        'docs/serve-ublk.md on devices for other users',
    );
  }
  return new UserError(
    `'${CONTROL_PATH}' can't be used: ${errnoName(result)}; ublk needs io_uring ` +
      '(sysctl kernel.io_uring_disabled)',
  );
}

function noDriver(): UserError {
  const kernel = release();
  const module = ['updates', 'kernel/drivers/block'].some((folder) =>
    ['', '.xz', '.zst', '.gz'].some((end) =>
      existsSync(`/lib/modules/${kernel}/${folder}/ublk_drv.ko${end}`),
    ),
  );
  return new UserError(
    module
      ? `'${CONTROL_PATH}' is missing: load the kernel's ublk driver with 'modprobe ublk_drv'`
      : `'${CONTROL_PATH}' is missing: this kernel (${kernel}) has no ublk driver; boot Linux 6.0 ` +
          'or later, built with CONFIG_BLK_DEV_UBLK',
  );
}
