/** What main makes of zeroes on a device whose sectors are larger than a stripe. */
import { afterAll, expect } from 'bun:test';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { openDisk } from '../../src/device/disk.ts';
import { Log } from '../../src/log.ts';
import { DiskTarget } from '../../src/stripe/disk_target.ts';
import { folders } from '../e2e/processes.ts';
import { need, testWith } from '../e2e/support.ts';

const folder = mkdtempSync(join(folders.disk ?? '/tmp', 'ubiblk-target-'));
const log = new Log({ level: 'error', format: 'human' }, 'test');
const SIZE = 64 << 10;

afterAll(() => rmSync(folder, { recursive: true, force: true }));

for (const directIo of [false, true]) {
  testWith(
    `parts of the sectors of a device are zeroed, and nothing beside them: direct_io=${directIo}`,
    [need.loop()],
    async () => {
      const file = join(folder, `disk${directIo}`);
      writeFileSync(file, Buffer.alloc(SIZE, 7));
      const made = spawnSync('losetup', ['-f', '--show', '-b', '4096', file], { encoding: 'utf8' });
      const device = made.stdout.trim();
      try {
        const settings = { path: device, directIo, writeThrough: false, ioEngine: 'sync' } as const;
        const disk = await openDisk(settings, log);
        const target = new DiskTarget(disk.facts);
        // One within a sector, one across two of them, and whole ones.
        const ranges = [
          [512, 1024],
          [8192 - 512, 1024],
          [16384, 8192],
        ];
        for (const [offset, length] of ranges) await target.zero(offset, length);
        await target.sync();
        target.close();
        disk.close();
        const wanted = Buffer.alloc(SIZE, 7);
        for (const [offset, length] of ranges) wanted.fill(0, offset, offset + length);
        expect(readFileSync(device).equals(wanted)).toBe(true);
      } finally {
        spawnSync('losetup', ['-d', device]);
      }
    },
    20_000,
  );
}
