/** The units in packaging/, as systemd-analyze judges them. test/vm/systemd.test.ts starts them. */
import { expect } from 'bun:test';
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { binary, root } from './processes.ts';
import { Bed, need, testWith } from './support.ts';

const packaging = join(root, 'packaging');
const units = readdirSync(packaging).filter((name) => /\.(service|socket)$/.test(name));
/** The highest exposure of each that is borne, of 10.0. */
const exposures: Record<string, number> = {
  'ubiblk-vhost@.service': 1.5,
  'ubiblk-nbd@.service': 1.5,
  'ubiblk-stripes@.service': 1.5,
  'ubiblk-ublk@.service': 3.1,
  'ubiblk-owner@.service': 2.3,
};

/** Units that run the executable under test. */
function unitsOf(bed: Bed): string[] {
  return units.map((name) => {
    const text = readFileSync(join(packaging, name), 'utf8');
    writeFileSync(bed.path(name), text.replaceAll('/usr/bin/ubiblk', binary));
    return bed.path(name);
  });
}

testWith(
  'systemd understands every line of every unit',
  [need.program('systemd-analyze')],
  async () => {
    await using bed = new Bed();
    const done = await bed.run(['systemd-analyze', 'verify', '--man=no', ...unitsOf(bed)]);
    const said = done.stderr.text.split('\n').filter((line) => line.includes('ubiblk'));
    expect(said).toEqual([]);
  },
  60_000,
);

testWith(
  'no unit is more exposed than it was',
  [need.program('systemd-analyze')],
  async () => {
    await using bed = new Bed();
    const services = units.filter((name) => name.endsWith('.service'));
    expect(services.sort()).toEqual(Object.keys(exposures).sort());
    unitsOf(bed);
    for (const [unit, exposure] of Object.entries(exposures)) {
      const threshold = `--threshold=${Math.round(exposure * 10)}`;
      const argv = ['systemd-analyze', 'security', '--no-pager', '--offline=true', threshold];
      await bed.run([...argv, bed.path(unit)]);
    }
  },
  60_000,
);
