import { giveNodes } from '../frontend/ublk/nodes.ts';
import type { Log } from '../log.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { deviceNumber, knownDevice, withControl } from './ublk_device.ts';

/** `ubiblk ublk owner`: whose device it is, and giving it to him (docs/ublk.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const id = deviceNumber(args.operands[0]);
  return await withControl(log, (control) => {
    if (args.has('apply')) {
      giveNodes(control, id);
      return 0;
    }
    const { ownerUid, ownerGid } = knownDevice(control, id);
    writeOutput(`${ownerUid} ${ownerGid}\n`);
    return 0;
  });
}
