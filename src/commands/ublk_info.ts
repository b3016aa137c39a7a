import { isStale, reportDevice, staleAdvice } from '../frontend/ublk/device_report.ts';
import { describeHolders, holdersOf } from '../frontend/ublk/holders.ts';
import type { Log } from '../log.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { deviceNumber, knownDevice, withControl } from './ublk_device.ts';

/** `ubiblk ublk info`: all that is known of one device (docs/ublk.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const id = deviceNumber(args.operands[0]);
  const report = await withControl(log, (control) => ({
    ...reportDevice(control, knownDevice(control, id)),
    usedBy: describeHolders(holdersOf(id)),
  }));
  if (args.has('json')) {
    writeOutput(`${JSON.stringify(report)}\n`);
    return 0;
  }
  const { owner, server, flags, usedBy, ours, ...rest } = report;
  const lines: [string, string | number | boolean | null][] = [
    ['device', rest.device],
    ['state', rest.state],
    ['made by', ours ? 'ubiblk' : 'another server'],
    ['server', server ? `${server.pid} (${server.name})` : 'none'],
    ['size', rest.sizeBytes === null ? null : `${rest.sizeBytes} bytes`],
    ['access', rest.readOnly ? 'read-only' : 'read-write'],
    ['queues', `${rest.queues}, ${rest.depth} requests each`],
    ['largest request', `${rest.maxIoBytes} bytes`],
    ['mode', rest.mode],
    ['recovery', rest.recovery],
    ['flags', flags.join(' ')],
    ['owner', `${owner.uid}:${owner.gid}${rest.unprivileged ? ' (unprivileged)' : ''}`],
    ['disk', rest.disk],
    ['configuration', rest.config],
    ['link', rest.symlink],
    ['used by', usedBy || 'nobody'],
  ];
  const width = Math.max(...lines.map(([name]) => name.length)) + 2;
  const shown = lines.filter(([, value]) => value !== null && value !== '');
  const text = shown.map(([name, value]) => `${`${name}:`.padEnd(width)}${value}`);
  if (isStale(report)) text.push(staleAdvice(report));
  writeOutput(`${text.join('\n')}\n`);
  return 0;
}
