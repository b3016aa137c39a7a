import {
  type DeviceReport,
  isStale,
  reportDevice,
  staleAdvice,
} from '../frontend/ublk/device_report.ts';
import { listDevices } from '../frontend/ublk/devices.ts';
import type { Log } from '../log.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { sizeText } from './size.ts';
import { withControl } from './ublk_device.ts';

/** `ubiblk ublk list`: all ublk devices of the host (docs/ublk.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const reports = await withControl(log, (control) =>
    listDevices(control).map((info) => reportDevice(control, info)),
  );
  writeOutput(args.has('json') ? `${JSON.stringify(reports)}\n` : listText(reports));
  return 0;
}

function listText(reports: readonly DeviceReport[]): string {
  if (reports.length === 0) return 'no ublk devices\n';
  const rows = [
    ['DEVICE', 'SIZE', 'STATE', 'QUEUES', 'MODE', 'RECOVERY', 'SERVER', 'DISK'],
    ...reports.map((report) => [
      report.device,
      report.sizeBytes === null ? '-' : sizeText(report.sizeBytes),
      report.state,
      `${report.queues}x${report.depth}`,
      report.mode,
      report.recovery,
      report.server ? `${report.server.pid} (${report.server.name})` : '-',
      report.disk ?? (report.ours ? '-' : 'not of ubiblk'),
    ]),
  ];
  const widths = rows[0].map((_, i) => Math.max(...rows.map((row) => row[i].length)));
  const lines = rows.map((row) =>
    row
      .map((cell, i) => cell.padEnd(widths[i]))
      .join('  ')
      .trimEnd(),
  );
  return `${[...lines, ...reports.filter(isStale).map(staleAdvice)].join('\n')}\n`;
}
