/** Who uses a device, in trees of /proc, /sys and /dev that were made up. */
import { afterEach, expect, test } from 'bun:test';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { describeHolders, holdersOf } from '../../src/frontend/ublk/holders.ts';

const roots: string[] = [];
afterEach(() => {
  for (const root of roots.splice(0)) rmSync(root, { recursive: true });
});

/**
 * A system with /dev/ublkb3 (259:0), its partition 1 (259:1), and /dev/ublkb33 (259:9), which is
 * another's. @param files by path; those that begin with '->' are links
 */
function system(files: Record<string, string> = {}): string {
  const root = mkdtempSync(join(tmpdir(), 'ubiblk-holders-'));
  roots.push(root);
  const all: Record<string, string> = {
    'sys/class/block/ublkb3/dev': '259:0\n',
    'sys/class/block/ublkb3/size': '131072\n',
    'sys/class/block/ublkb3/ublkb3p1/dev': '259:1\n',
    'sys/class/block/ublkb3p1/dev': '259:1\n',
    'sys/class/block/ublkb33/dev': '259:9\n',
    'proc/self/mountinfo': '22 1 8:1 / / rw - ext4 /dev/sda1 rw\n',
    'proc/swaps': 'Filename\tType\tSize\tUsed\tPriority\n/dev/sda2 partition 1 0 -2\n',
    'dev/ublkb3': '',
    ...files,
  };
  for (const [path, text] of Object.entries(all)) {
    const full = join(root, path);
    mkdirSync(dirname(full), { recursive: true });
    if (text.startsWith('->')) symlinkSync(text.slice(2), full);
    else writeFileSync(full, text);
  }
  return root;
}

function who(files: Record<string, string>): string {
  return describeHolders(holdersOf(3, system(files)));
}

test('nobody', () => {
  expect(holdersOf(3, system())).toEqual({ mounts: [], others: [] });
  expect(who({})).toBe('');
});

test('mounts of the disk and of its partition, not of another disk that begins the same', () => {
  const mountinfo = [
    '22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw',
    '30 22 259:0 / /srv/data rw,relatime shared:2 - ext4 /dev/ublkb3 rw',
    '31 22 259:1 /sub /mnt/with\\040blank\\134and\\011tab rw shared:3 - xfs /dev/ublkb3p1 rw',
    '32 22 259:9 / /elsewhere rw - ext4 /dev/ublkb33 rw',
    '',
  ].join('\n');
  const holders = holdersOf(3, system({ 'proc/self/mountinfo': mountinfo }));
  expect(holders.mounts).toEqual(['/srv/data', '/mnt/with blank\\and\ttab']);
  expect(describeHolders(holders)).toStartWith("mounted on '/srv/data', mounted on '/mnt/with");
});

test('devices on the disk and on its partition', () => {
  const found = who({
    'sys/class/block/ublkb3/holders/dm-0': '',
    'sys/class/block/ublkb3p1/holders/md127': '',
    'sys/class/block/ublkb33/holders/dm-1': '',
  });
  expect(found).toBe('device dm-0, device md127');
});

test('swap on the disk or its partition', () => {
  const swaps = 'Filename Type Size Used Priority\n/dev/ublkb3p1 partition 8188 0 -2\n';
  expect(who({ 'proc/swaps': swaps })).toBe('swap on /dev/ublkb3p1');
  expect(who({ 'proc/swaps': '/dev/ublkb3\tpartition\t8188\t0\t-2\n' })).toBe(
    'swap on /dev/ublkb3',
  );
  expect(who({ 'proc/swaps': '/dev/ublkb33\tpartition\t8188\t0\t-2\n' })).toBe('');
});

test('processes that have it open, each once, and not this one', () => {
  const found = who({
    'proc/12/comm': 'dd\n',
    'proc/12/fd/0': '->/dev/null',
    'proc/12/fd/3': '->/dev/ublkb3',
    'proc/12/fd/4': '->/dev/ublkb3p1',
    'proc/13/comm': 'other\n',
    'proc/13/fd/3': '->/dev/ublkb33',
    'proc/14/comm': 'server\n',
    'proc/14/fd/9': '->/dev/ublkc3',
    [`proc/${process.pid}/comm`]: 'bun\n',
    [`proc/${process.pid}/fd/5`]: '->/dev/ublkb3',
    'proc/15/comm': 'fsck\n',
    'proc/15/fd/3': '->/dev/ublkb3p1',
    'proc/bus/fd/3': '->/dev/ublkb3',
  });
  expect(found).toBe('process 12 (dd), process 15 (fsck)');
});

test('all kinds together make one phrase', () => {
  const found = who({
    'proc/self/mountinfo': '30 22 259:0 / /srv rw - ext4 /dev/ublkb3 rw\n',
    'sys/class/block/ublkb3/holders/dm-0': '',
    'proc/swaps': '/dev/ublkb3p1\tpartition\t8188\t0\t-2\n',
    'proc/12/comm': 'dd\n',
    'proc/12/fd/3': '->/dev/ublkb3',
  });
  expect(found).toBe("mounted on '/srv', device dm-0, swap on /dev/ublkb3p1, process 12 (dd)");
});

test('a system that shows nothing has no holders', () => {
  const root = mkdtempSync(join(tmpdir(), 'ubiblk-holders-'));
  roots.push(root);
  expect(holdersOf(3, root)).toEqual({ mounts: [], others: [] });
});
