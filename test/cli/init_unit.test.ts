/** The systemd units of `ubiblk init`. */
import { expect, test } from 'bun:test';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { readPlan } from '../../src/commands/init_plan.ts';
import { unitText } from '../../src/commands/init_unit.ts';

test('a unit sees its folder also where a link leads to it', () => {
  const real = mkdtempSync('/tmp/ubiblk-unit-');
  const elsewhere = mkdtempSync('/dev/shm/ubiblk-unit-');
  try {
    mkdirSync(join(elsewhere, 'vm'));
    symlinkSync(real, join(elsewhere, 'link'));
    const given = new Map([['size', '1M']]);
    const unit = (folder: string) => {
      const options = {
        has: (name: string) => given.has(name),
        value: (n: string) => given.get(n),
      };
      return unitText(readPlan(join(elsewhere, folder), options), '/usr/bin/ubiblk');
    };
    expect(unit('vm')).toContain('\nPrivateTmp=yes\n');
    expect(unit('not/there/yet')).toContain('\nPrivateTmp=yes\n');
    expect(unit('link')).not.toContain('PrivateTmp');
  } finally {
    for (const made of [real, elsewhere]) rmSync(made, { recursive: true });
  }
});
