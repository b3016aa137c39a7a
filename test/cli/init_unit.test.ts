/** The systemd units of `ubiblk init`. */
import { expect, test } from 'bun:test';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { readPlan } from '../../src/commands/init_plan.ts';
import { unitText } from '../../src/commands/init_unit.ts';

function unit(folder: string, options: Record<string, string> = {}): string {
  const given = new Map(Object.entries({ size: '1M', ...options }));
  const plan = readPlan(folder, {
    has: (name) => given.has(name),
    value: (name) => given.get(name),
  });
  return unitText(plan, '/usr/bin/ubiblk');
}

test('a unit sees its folder also where a link leads to it', () => {
  const real = mkdtempSync('/tmp/ubiblk-unit-');
  const elsewhere = mkdtempSync('/dev/shm/ubiblk-unit-');
  try {
    mkdirSync(join(elsewhere, 'vm'));
    symlinkSync(real, join(elsewhere, 'link'));
    expect(unit(join(elsewhere, 'vm'))).toContain('\nPrivateTmp=yes\n');
    expect(unit(join(elsewhere, 'not/there/yet'))).toContain('\nPrivateTmp=yes\n');
    expect(unit(join(elsewhere, 'link'))).not.toContain('PrivateTmp');
  } finally {
    for (const made of [real, elsewhere]) rmSync(made, { recursive: true });
  }
});

test("a unit may write its folder and the socket's alone", () => {
  const writable = (options: Record<string, string>) =>
    /^ReadWritePaths=(.*)$/m.exec(unit('/srv/vm7', options))?.[1];
  expect(writable({})).toBe('/srv/vm7');
  expect(writable({ socket: '/run/vm7/vhost.sock' })).toBe('/srv/vm7 /run/vm7');
  expect(writable({ frontend: 'ublk' })).toBe('/srv/vm7');
  expect(writable({ frontend: 'nbd', socket: '/run/vm7/nbd.sock' })).toBe('/srv/vm7 /run/vm7');
});
