import { EACCES, EPERM } from '../../ffi/errno.ts';
import { UsageError, UserError } from '../errors.ts';
import { UblkControl, UblkRefused } from '../frontend/ublk/control.ts';
import type { DeviceInfo } from '../frontend/ublk/protocol.ts';
import type { Log } from '../log.ts';

/**
 * The number of the device that is meant: `3`, `ublkb3` or `/dev/ublkb3`.
 * @throws UsageError
 */
export function deviceNumber(text: string): number {
  const number = /^(?:(?:\/dev\/)?ublk[bc])?(\d{1,6})(?:p\d+)?$/.exec(text)?.[1];
  if (number === undefined) {
    throw new UsageError(
      `a ublk device is meant by its number or path (3, /dev/ublkb3), not '${text}'`,
    );
  }
  return Number(number);
}

/** Uses the driver for a moment. @throws UserError where there is none */
export async function withControl<Result>(
  log: Log,
  use: (control: UblkControl) => Result | Promise<Result>,
): Promise<Result> {
  const legacy = process.env.UBIBLK_UBLK_OPCODES === 'legacy';
  const onSlow = (command: string) =>
    log.warn(`${command} waits for the device's server to let go`);
  const control = new UblkControl({ legacy, onSlow });
  try {
    return await use(control);
  } finally {
    control.close();
  }
}

/** @throws UserError where there is no device of this number, or it is another user's */
export function knownDevice(control: UblkControl, id: number): DeviceInfo {
  const info = infoOf(control, id);
  if (!info)
    throw new UserError(`there is no ublk device ${id}; 'ubiblk ublk list' shows them all`);
  return info;
}

function infoOf(control: UblkControl, id: number): DeviceInfo | null {
  try {
    return control.info(id);
  } catch (error) {
    if (!(error instanceof UblkRefused)) throw error;
    if (error.result !== -EACCES && error.result !== -EPERM) throw error;
    throw new UserError(`ublk device ${id} is another user's: run as that user, or as root`);
  }
}
