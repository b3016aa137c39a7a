import { UsageError, UserError } from '../errors.ts';
import type { UblkControl } from '../frontend/ublk/control.ts';
import { listDevices } from '../frontend/ublk/devices.ts';
import { describeHolders, holdersOf, holdersOfLive } from '../frontend/ublk/holders.ts';
import { isOurs } from '../frontend/ublk/identity.ts';
import { blockPath, type DeviceInfo } from '../frontend/ublk/protocol.ts';
import { noteFolder, readNote, removeNote } from '../frontend/ublk/state_file.ts';
import { removeLink } from '../frontend/ublk/symlink.ts';
import type { Log } from '../log.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { deviceNumber, knownDevice, withControl } from './ublk_device.ts';

/** `ubiblk ublk del`: removes devices, whoever made them (docs/ublk.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const [operand] = args.operands;
  if (args.has('all') !== (operand === undefined)) {
    throw new UsageError("either a device or '--all' is needed");
  }
  const id = operand === undefined ? null : deviceNumber(operand);
  return await withControl(log, (control) => {
    const devices =
      id === null
        ? listDevices(control).filter(({ userFlags }) => isOurs(userFlags))
        : [knownDevice(control, id)];
    if (!args.has('force')) refuseUsed(devices);
    for (const device of devices) {
      remove(control, device, args.has('force'));
      writeOutput(`removed ${blockPath(device.id)}\n`);
    }
    return 0;
  });
}

/** Before the first one is removed. @throws UserError */
function refuseUsed(devices: readonly DeviceInfo[]): void {
  const lines = devices.flatMap(({ id, state }) => {
    const who = describeHolders(state === 'live' ? holdersOfLive(id) : holdersOf(id));
    return who ? [`'${blockPath(id)}' is in use: ${who}; end that, or give --force`] : [];
  });
  if (lines.length > 0) throw new UserError(lines.join('\n'));
}

/** A server that still runs ends when its device does; the driver waits for it. */
function remove(control: UblkControl, { id, userFlags }: DeviceInfo, force: boolean): void {
  const folder = noteFolder();
  const note = folder && isOurs(userFlags) ? readNote(folder, id) : null;
  control.stop(id);
  // Before the number can be another device's.
  if (note?.symlink) removeLink(note.symlink, blockPath(id));
  if (folder && note) removeNote(folder, id);
  if (!force || !control.deleteHeld(id)) control.delete(id);
}
