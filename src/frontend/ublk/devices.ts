/** The ublk devices of this host, ours and others'. */
import { readdirSync } from 'node:fs';
import type { UblkControl } from './control.ts';
import type { DeviceInfo } from './protocol.ts';

const CLASS = '/sys/class/ublk-char';
const PREFIX = 'ublkc';

/** Numbers of all ublk devices, in order; none where the driver isn't loaded. */
export function deviceNumbers(): number[] {
  return namesIn(CLASS)
    .filter((name) => name.startsWith(PREFIX))
    .map((name) => Number(name.slice(PREFIX.length)))
    .sort((a, b) => a - b);
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder);
  } catch {
    return [];
  }
}

/** What the kernel says of each device that this user may ask about. */
export function listDevices(control: UblkControl): DeviceInfo[] {
  return deviceNumbers().flatMap((id) => control.infoIfAllowed(id) ?? []);
}
