/** What is noted of devices for those who list them. */
import { afterEach, expect, test } from 'bun:test';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import {
  type DeviceNote,
  readNote,
  removeNote,
  writeNote,
} from '../../src/frontend/ublk/state_file.ts';

const folders: string[] = [];
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

/** A folder that isn't there yet. */
function folder(): string {
  const made = mkdtempSync(join(tmpdir(), 'ubiblk-notes-'));
  folders.push(made);
  return join(made, 'run/ubiblk');
}

function note(more: Partial<DeviceNote> = {}): DeviceNote {
  return { id: 3, deviceId: 'disk', disk: '/srv/a b.img', pid: 12, since: 99, ...more };
}

test('a note is read as it was written, and the folder is made', () => {
  const where = folder();
  const whole = note({ config: '/etc/a.yaml', symlink: '/dev/disk/x' });
  writeNote(where, whole);
  writeNote(where, note({ id: 4 }));
  expect(readNote(where, 3)).toEqual(whole);
  expect(readNote(where, 4)).toEqual(note({ id: 4 }));
  expect(readdirSync(where).sort()).toEqual(['ublk-3.json', 'ublk-4.json']);
  // Everybody may list devices.
  expect(statSync(join(where, 'ublk-3.json')).mode & 0o777).toBe(0o644);
});

test('the note of the device that had the number before is replaced', () => {
  const where = folder();
  writeNote(where, note());
  writeNote(where, note({ disk: '/srv/other.img', pid: 13 }));
  expect(readNote(where, 3)).toMatchObject({ disk: '/srv/other.img', pid: 13 });
});

test('a note is gone when it is removed, and one that is gone is no error', () => {
  const where = folder();
  writeNote(where, note());
  removeNote(where, 3);
  removeNote(where, 3);
  expect(readNote(where, 3)).toBe(null);
  expect(readdirSync(where)).toEqual([]);
});

test.each([
  ['nothing', ''],
  ['half a note', '{"id": 3, "disk"'],
  ['no object', 'null'],
  ['the note of another device', JSON.stringify(note({ id: 5 }))],
  ['a note without a disk', '{"id": 3}'],
])('%s is no note', (_, text) => {
  const where = folder();
  mkdirSync(where, { recursive: true });
  writeFileSync(join(where, 'ublk-3.json'), text);
  expect(readNote(where, 3)).toBe(null);
});

test('a folder that cannot be made is an error of its own name', () => {
  const where = folder();
  mkdirSync(join(where, '..'), { recursive: true });
  writeFileSync(where, '');
  expect(() => writeNote(where, note())).toThrow(/EEXIST|ENOTDIR/);
});

test("root's notes are in /run, those of others in their own folder or nowhere", () => {
  const script = `
    const { noteFolder } = await import(${JSON.stringify(join(import.meta.dir, '../../src/frontend/ublk/state_file.ts'))});
    process.getuid = () => Number(process.env.AS);
    console.log(noteFolder());
  `;
  const folderOf = (env: Record<string, string>) =>
    Bun.spawnSync([process.execPath, '-e', script], { env: { ...env } })
      .stdout.toString()
      .trim();
  expect(folderOf({ AS: '0', XDG_RUNTIME_DIR: '/run/user/0' })).toBe('/run/ubiblk');
  expect(folderOf({ AS: '7', XDG_RUNTIME_DIR: '/run/user/7' })).toBe('/run/user/7/ubiblk');
  expect(folderOf({ AS: '7' })).toBe('null');
});
