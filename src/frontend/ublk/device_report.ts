/** Everything that can be said of a ublk device, for those who list them. */
import { readFileSync } from 'node:fs';
import type { UblkMode, UblkRecovery } from '../../config/device_config.ts';
import type { UblkControl } from './control.ts';
import { isOurs } from './identity.ts';
import { modeOf, recoveryOf } from './modes.ts';
import {
  blockPath,
  type DeviceInfo,
  type DeviceParams,
  type DeviceState,
  featureNames,
  hasFeature,
} from './protocol.ts';
import { type DeviceNote, noteFolder, readNote } from './state_file.ts';

export interface DeviceReport {
  id: number;
  device: string;
  state: DeviceState;
  /** Made by ubiblk. */
  ours: boolean;
  /** Null where the kernel doesn't say. */
  sizeBytes: number | null;
  queues: number;
  depth: number;
  maxIoBytes: number;
  mode: UblkMode;
  recovery: UblkRecovery;
  readOnly: boolean;
  unprivileged: boolean;
  flags: string[];
  owner: { uid: number; gid: number };
  /** The process that serves it, null where none does. */
  server: { pid: number; name: string } | null;
  disk: string | null;
  config: string | null;
  symlink: string | null;
}

export function reportDevice(control: UblkControl, info: DeviceInfo): DeviceReport {
  const folder = noteFolder();
  const note = folder && isOurs(info.userFlags) ? readNote(folder, info.id) : null;
  const params = paramsOf(control, info.id);
  return {
    id: info.id,
    device: blockPath(info.id),
    state: info.state,
    ours: isOurs(info.userFlags),
    sizeBytes: params ? params.sectors * 512 : null,
    queues: info.queues,
    depth: info.depth,
    maxIoBytes: info.maxIoBytes,
    mode: modeOf(info.flags),
    recovery: recoveryOf(info.flags),
    readOnly: params?.readOnly ?? false,
    unprivileged: hasFeature(info.flags, 'UNPRIVILEGED_DEV'),
    flags: featureNames(info.flags),
    owner: { uid: info.ownerUid, gid: info.ownerGid },
    server: serverOf(info),
    ...noted(note),
  };
}

/** A device that is there without anybody to serve it. */
export function isStale(report: DeviceReport): boolean {
  return report.state !== 'live';
}

/** What can be done about a device without a server, as a sentence. */
export function staleAdvice(report: DeviceReport): string {
  const remove = `remove it with 'ubiblk ublk del ${report.id}'`;
  const way = report.recovery !== 'off' && report.state !== 'dead' && report.ours;
  if (!way) return `${report.device} has no server; ${remove}`;
  const config = report.config ?? 'FILE';
  return `${report.device} has no server; serve it again with 'ubiblk serve ublk --config ${config}' or ${remove}`;
}

function noted(note: DeviceNote | null): Pick<DeviceReport, 'disk' | 'config' | 'symlink'> {
  const { disk = null, config = null, symlink = null } = note ?? {};
  return { disk, config, symlink };
}

function paramsOf(control: UblkControl, id: number): DeviceParams | null {
  try {
    return control.params(id);
  } catch {
    // A device that was never given any, or that went away meanwhile.
    return null;
  }
}

function serverOf({ pid, state }: DeviceInfo): DeviceReport['server'] {
  if (pid <= 0 || state !== 'live') return null;
  try {
    return { pid, name: readFileSync(`/proc/${pid}/comm`, 'utf8').trim() };
  } catch {
    return null;
  }
}
