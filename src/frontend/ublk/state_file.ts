/**
 * What ubiblk notes of each of its devices, for those who list them: the kernel knows neither the disk
 * nor the configuration. Serving and recovery need none of it.
 */
import { mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** A device as its server saw it when it began to serve it. */
export interface DeviceNote {
  id: number;
  deviceId: string;
  /** The data file and the configuration file, as absolute paths. */
  disk: string;
  config?: string;
  symlink?: string;
  pid: number;
  /** Milliseconds since 1970. */
  since: number;
}

/** Where notes are, null for a user who has no such folder. */
export function noteFolder(): string | null {
  if (process.getuid?.() === 0) return '/run/ubiblk';
  const own = process.env.XDG_RUNTIME_DIR;
  return own ? join(own, 'ubiblk') : null;
}

function notePath(folder: string, id: number): string {
  return join(folder, `ublk-${id}.json`);
}

/** @throws Error (errno) where the folder can't be written to */
export function writeNote(folder: string, note: DeviceNote): void {
  mkdirSync(folder, { recursive: true, mode: 0o755 });
  const path = notePath(folder, note.id);
  const temporary = `${path}.tmp`;
  writeFileSync(temporary, `${JSON.stringify(note)}\n`, { mode: 0o644 });
  renameSync(temporary, path);
}

/** Null where there is none, or none that can be read. */
export function readNote(folder: string, id: number): DeviceNote | null {
  try {
    const note = JSON.parse(readFileSync(notePath(folder, id), 'utf8')) as DeviceNote;
    return note.id === id && typeof note.disk === 'string' ? note : null;
  } catch {
    return null;
  }
}

export function removeNote(folder: string, id: number): void {
  rmSync(notePath(folder, id), { force: true });
}
