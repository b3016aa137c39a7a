/**
 * The control thread of a ublk server: its commands to the driver block, also while a device that
 * starts reads its partition table through our own queues.
 */
import { accessSync, closeSync, constants, existsSync, openSync, writeFileSync } from 'node:fs';
import { EACCES, EBUSY, ENODEV, EPERM } from '../../../ffi/errno.ts';
import { attachLibrary, shim } from '../../../ffi/library.ts';
import { errorName, UserError } from '../../errors.ts';
import { UblkControl, UblkRefused } from './control.ts';
import type { ControlAnswer, ControlCall, UblkControlStart } from './control_thread.ts';
import { listDevices } from './devices.ts';
import { type Holders, holdersOfLive } from './holders.ts';
import { deviceFlags, modeOf, refuseMissingFeatures } from './modes.ts';
import type { UblkDevice, UblkOptions } from './options.ts';
import { blockPath, charPath, type DeviceInfo, type DeviceParams, hasFeature } from './protocol.ts';

declare const self: Worker;

/** How long a dead server's last hold on its device is waited for. */
const PATIENCE_MS = 90_000;
/**
 * Of a request to the device. A server that dies with every request of a queue in its hands is noticed by
 * drivers before Linux 6.16 only when one of them times out: by default after 30 s.
 */
const IO_TIMEOUT_MS = 2000;
const TELL_MS = 3000;
/** A user's device has to be given to him, by what a rule of udev's starts. */
const OPEN_PATIENCE_MS = 10_000;
const RETRY_MS = 20;

let control: UblkControl;

/** A device with what it was started with; of one that never was there is nothing. */
export interface FoundDevice {
  info: DeviceInfo;
  params: DeviceParams | null;
}

/** What the main thread can ask for. */
const calls = {
  open({ libraryFd, legacy }: UblkControlStart): void {
    attachLibrary(libraryFd);
    shim.ubiblk_name_thread(Buffer.from('ublk control\0'));
    const onSlow = (command: string) =>
      post({ kind: 'slow', what: `${command} waits for requests of the device to end` });
    control = new UblkControl({ legacy, onSlow });
  },

  features(): bigint | null {
    return control.features;
  },

  /** @throws UserError where the driver lacks what a device is to be made with */
  check(options: UblkOptions): void {
    refuseMissingFeatures(options, control.features);
  },

  /**
   * The device of a disk that has no server any more, null where there is none. One that was never
   * started is deleted.
   * @param alone whether the disk can have no other server: then whoever has the device is ending
   * @throws UserError where another process serves it
   */
  find(identity: bigint, unprivileged: boolean, alone: boolean): FoundDevice | null {
    for (const info of listDevices(control)) {
      // Whoever may make devices can give them any identity.
      const ours =
        info.ownerUid === process.geteuid?.() &&
        hasFeature(info.flags, 'UNPRIVILEGED_DEV') === unprivileged;
      if (info.userFlags !== identity || !ours) continue;
      if (info.state !== 'dead') return whenLeft(info, alone);
      control.delete(info.id);
    }
    return null;
  },

  /** Makes a device, or takes over the one that was found, and opens it. */
  attach(options: UblkOptions, identity: bigint, found: DeviceInfo | null): UblkDevice {
    const info = found ? found : add(options, identity);
    let charFd = -1;
    try {
      if (found) takeOver(info.id);
      charFd = openDevice(info.id);
      const affinity: Uint8Array[] = [];
      for (let queue = 0; queue < info.queues; queue++) {
        affinity.push(control.queueAffinity(info.id, queue));
      }
      const mode = modeOf(info.flags);
      return { info, mode, recovered: found !== null, charFd, affinity, legacy: control.legacy };
    } catch (error) {
      // The driver waits for whoever has it open.
      if (charFd >= 0) closeSync(charFd);
      // Whether it is given to us has been waited for already.
      if (!found) deleteNew(info.id, 0);
      throw error;
    }
  },

  /** Whether a device is there and not stopped: for another server, then. */
  waits(id: number): boolean {
    const state = control.info(id)?.state;
    return state !== undefined && state !== 'dead';
  },

  /** Who uses the block device. */
  holders(id: number): Holders {
    return holdersOfLive(id);
  },

  /** Shows the block device, and waits until this user may use it; every queue has fetched its tags. */
  start(device: UblkDevice, params: DeviceParams): void {
    const { id } = device.info;
    if (device.recovered) {
      control.endRecovery(id);
    } else {
      control.setParams(id, params);
      control.start(id);
    }
    if (!seesDeath(device)) shortenTimeout(id);
    if (hasFeature(device.info.flags, 'UNPRIVILEGED_DEV')) awaitBlockNode(id);
  },

  /** Ends the block device when its requests are done. */
  stop(id: number): void {
    ignoring(ENODEV, () => control.stop(id));
  },

  /**
   * Has the kernel give the queues their tags back.
   * @returns false where requests don't end in time, or the device has gone
   */
  quiesce(id: number, timeoutMs: number): boolean {
    try {
      control.quiesce(id, timeoutMs);
      return true;
    } catch (error) {
      if (!(error instanceof UblkRefused)) throw error;
      return false;
    }
  },

  /**
   * Deletes a device whose queues have ended. Its number may be another's as soon as nobody has it open:
   * so it goes while we do.
   * @param held others may still have the block device open, and are not waited for
   * @returns false where it can't be deleted before they let go of it
   */
  delete({ info, charFd }: UblkDevice, held: boolean): boolean {
    const { id, userFlags } = info;
    const marked = control.deleteHeld(id);
    closeSync(charFd);
    if (marked) return true;
    if (held) return false;
    const now = control.info(id);
    if (now?.userFlags === userFlags) ignoring(ENODEV, () => control.delete(id));
    return true;
  },
};
export type ControlCalls = typeof calls;

self.onmessage = (event: MessageEvent<ControlCall>) => {
  const { name, args } = event.data;
  try {
    const result = (calls[name] as (...all: unknown[]) => unknown)(...args);
    post({ kind: 'done', result });
  } catch (error) {
    const { message } = error as Error;
    post({ kind: 'refused', message, user: error instanceof UserError });
  }
};

/** Whether the driver sees at once that a server has died, or had better not have requests that time out. */
function seesDeath({ info }: UblkDevice): boolean {
  // It kills a user's server at a time-out.
  return hasFeature(info.flags, 'QUIESCE') || hasFeature(info.flags, 'UNPRIVILEGED_DEV');
}

function shortenTimeout(id: number): void {
  try {
    writeFileSync(`/sys/block/ublkb${id}/queue/io_timeout`, String(IO_TIMEOUT_MS));
  } catch {
    // A successor has to wait longer.
  }
}

function post(answer: ControlAnswer): void {
  self.postMessage(answer);
}

/** Waits until the kernel has seen that a device's server is gone. */
function whenLeft(first: DeviceInfo, alone: boolean): FoundDevice | null {
  const start = Date.now();
  let told = false;
  let info: DeviceInfo | null = first;
  while (info?.state === 'live') {
    const waited = Date.now() - start;
    if (waited >= TELL_MS && !told) {
      told = true;
      post({
        kind: 'slow',
        what: `the kernel still holds ublk device ${info.id} for its last server`,
      });
    }
    if (waited >= PATIENCE_MS || (!alone && existsSync(`/proc/${info.pid}`))) {
      throw new UserError(
        `ublk device ${info.id} of this disk is served by process ${info.pid}; stop that one ` +
          `first, or remove the device with 'ubiblk ublk del ${info.id}'`,
      );
    }
    Bun.sleepSync(RETRY_MS);
    info = control.info(info.id);
  }
  if (!info) return null;
  if (info.state === 'dead') {
    control.delete(info.id);
    return null;
  }
  return { info, params: control.params(info.id) };
}

function add(options: UblkOptions, identity: bigint): DeviceInfo {
  refuseMissingFeatures(options, control.features);
  const flags = deviceFlags(options, control.features);
  const { numQueues, queueSize, maxIoBytes } = options;
  const made = allowed(options, () =>
    control.add({
      id: -1,
      queues: numQueues,
      depth: queueSize,
      state: 'dead',
      maxIoBytes,
      pid: -1,
      flags,
      userFlags: identity,
      ownerUid: 0,
      ownerGid: 0,
    }),
  );
  // A driver that can't be asked leaves out what it doesn't know.
  if ((made.flags & flags) === flags) return made;
  deleteNew(made.id);
  refuseMissingFeatures(options, made.flags);
  throw new Error('the ublk driver left out what was asked for');
}

/** @throws UserError where the driver doesn't let this user make a device */
function allowed(options: UblkOptions, make: () => DeviceInfo): DeviceInfo {
  try {
    return make();
  } catch (error) {
    const { result = 0 } = error as Partial<UblkRefused>;
    if (result === -EPERM && !options.unprivileged) {
      throw new UserError(
        'only root may make ublk devices of this kind: run as root, or give --unprivileged',
      );
    }
    if (result === -EACCES && options.unprivileged) {
      throw new UserError(
        'there are as many unprivileged ublk devices as the kernel allows ' +
          "(/sys/module/ublk_drv/parameters/ublks_max); 'ubiblk ublk list' shows them",
      );
    }
    throw error;
  }
}

/** Deletes a device that was just made, which can't be done before it has been given to us. */
function deleteNew(id: number, patienceMs = OPEN_PATIENCE_MS): void {
  retry(patienceMs, () => {
    try {
      control.delete(id);
      return true;
    } catch (error) {
      if (error instanceof UblkRefused && error.result === -EACCES) return false;
      throw error;
    }
  });
}

function takeOver(id: number): void {
  const taken = retry(PATIENCE_MS, () => {
    try {
      control.startRecovery(id);
      return true;
    } catch (error) {
      // The kernel still holds what the server before had in work.
      if (error instanceof UblkRefused && error.result === -EBUSY) return false;
      throw error;
    }
  });
  if (taken) return;
  throw new UserError(
    `ublk device ${id} can't be taken over: the kernel still holds it for the server before; ` +
      `remove it with 'ubiblk ublk del ${id}' if that one never ends`,
  );
}

/** Others may have it for a moment, and it may have to be given to us first. */
function openDevice(id: number): number {
  const path = charPath(id);
  let fd = -1;
  let code = '';
  const opened = retry(OPEN_PATIENCE_MS, () => {
    try {
      fd = openSync(path, constants.O_RDWR);
      return true;
    } catch (error) {
      code = errorName(error);
      if (code === 'EBUSY' || code === 'ENOENT' || code === 'EACCES') return false;
      throw new UserError(`'${path}' can't be opened: ${code}`);
    }
  });
  if (opened) return fd;
  const why: Record<string, string> = {
    EBUSY: 'another process still holds it',
    ENOENT: "it isn't in /dev, where devtmpfs or udev should have made it",
    EACCES: `${notGiven}; root can remove the device with 'ubiblk ublk del ${id}'`,
  };
  throw new UserError(`'${path}' can't be opened (${code}): ${why[code]}`);
}

/** @throws UserError where it isn't given to this user in time */
function awaitBlockNode(id: number): void {
  const path = blockPath(id);
  let code = '';
  const given = retry(OPEN_PATIENCE_MS, () => {
    try {
      accessSync(path, constants.R_OK | constants.W_OK);
      return true;
    } catch (error) {
      code = errorName(error);
      return false;
    }
  });
  if (!given) throw new UserError(`'${path}' can't be opened (${code}): ${notGiven}`);
}

const notGiven =
  `nobody has given it to this user in ${OPEN_PATIENCE_MS / 1000} s, as 60-ubiblk.rules and ` +
  'ubiblk-owner@.service do where they are installed (docs/serve-ublk.md)';

function retry(patienceMs: number, attempt: () => boolean): boolean {
  const deadline = Date.now() + patienceMs;
  while (!attempt()) {
    if (Date.now() >= deadline) return false;
    Bun.sleepSync(RETRY_MS);
  }
  return true;
}

function ignoring(errno: number, command: () => void): void {
  try {
    command();
  } catch (error) {
    if (!(error instanceof UblkRefused) || error.result !== -errno) throw error;
  }
}
