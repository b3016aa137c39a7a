import { release } from 'node:os';
import { ublkModes, ublkRecoveries } from '../config/device_config.ts';
import { modeIsOffered, recoveryIsOffered } from '../frontend/ublk/modes.ts';
import { F, type Feature, featureNames, hasFeature } from '../frontend/ublk/protocol.ts';
import type { Log } from '../log.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { withControl } from './ublk_device.ts';

/** `ubiblk ublk features`: what this kernel's ublk driver can do (docs/ublk.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const bits = await withControl(log, ({ features }) => features);
  const kernel = release();
  const modes = ublkModes.filter((mode) => modeIsOffered(mode, bits));
  const recoveries = ublkRecoveries.filter((recovery) => recoveryIsOffered(recovery, bits));
  if (args.has('json')) {
    const features = bits === null ? null : featureNames(bits);
    writeOutput(`${JSON.stringify({ kernel, features, modes, recoveries })}\n`);
    return 0;
  }
  const names = Object.keys(F) as Feature[];
  const lines = [
    `kernel:     ${kernel}`,
    `modes:      ${modes.join(' ')}`,
    `recoveries: ${recoveries.join(' ')}`,
    bits === null
      ? 'the driver is older than Linux 6.5 and cannot say what it can do'
      : `features:   ${featureNames(bits).join(' ')}`,
  ];
  if (bits !== null) {
    const missing = names.filter((name) => !hasFeature(bits, name));
    if (missing.length > 0) lines.push(`missing:    ${missing.join(' ').toLowerCase()}`);
  }
  writeOutput(`${lines.join('\n')}\n`);
  return 0;
}
