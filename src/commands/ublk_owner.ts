import type { Log } from '../log.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { deviceNumber, knownDevice, withControl } from './ublk_device.ts';

/** `ubiblk ublk owner`: whose device it is, for the udev rule (docs/ublk.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const id = deviceNumber(args.operands[0]);
  const { ownerUid, ownerGid } = await withControl(log, (control) => knownDevice(control, id));
  writeOutput(`${ownerUid} ${ownerGid}\n`);
  return 0;
}
