/** Sources that a lazy disk doesn't take, and that nothing of them stays open. */
import { afterAll, expect, test } from 'bun:test';
import {
  mkdtempSync,
  readdirSync,
  readlinkSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { openSource } from '../../src/commands/stripe_sources.ts';
import { openDisk } from '../../src/device/disk.ts';
import { Log } from '../../src/log.ts';
import { openLazyDisk } from '../../src/stripe/lazy_disk.ts';
import { initMetadata } from '../../src/stripe/metadata_init.ts';
import { MetadataLayout } from '../../src/stripe/metadata_layout.ts';
import { folders } from '../e2e/processes.ts';

const folder = mkdtempSync(join(folders.disk ?? '/tmp', 'ubiblk-lazy-'));
const log = new Log({ level: 'error', format: 'human' }, 'test');
const STRIPES = 8;

afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** How often this process has a file open. */
function opened(path: string): number {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) === path;
    } catch {
      return false;
    }
  }).length;
}

for (const [stripes, problem] of [
  [STRIPES + 1, 'is larger than the disk'],
  [STRIPES - 1, `has no stripe ${STRIPES - 1}, which is still to be fetched from it`],
] as const) {
  test(`an image that ${problem} is refused and closed`, async () => {
    const layout = new MetadataLayout(1, 6, STRIPES);
    const diskBytes = STRIPES * layout.stripeBytes;
    const [path, image, metadataPath] = ['disk', 'image', 'meta'].map((name) =>
      join(folder, `${name}${stripes}`),
    );
    for (const file of [path, image]) writeFileSync(file, '');
    truncateSync(path, diskBytes);
    truncateSync(image, stripes * layout.stripeBytes);
    const headers = new Uint8Array(STRIPES).fill(4);
    const plain = { xts: 0, force: false, progress: () => {} };
    await initMetadata({ path: metadataPath, layout, headers, diskBytes, ...plain }, log);
    const files = { directIo: false, writeThrough: false };
    const disk = await openDisk({ path, ioEngine: 'sync', ...files }, log);
    const flags = { copyOnRead: false, trackWritten: false, autofetch: false };
    const stripeSource = { source: 'raw', path: image } as const;
    const config = { metadataPath, stripeSource, ...files, ...flags };
    await expect(openLazyDisk(disk, config, 1, openSource, log)).rejects.toThrow(problem);
    expect([opened(image), opened(metadataPath)]).toEqual([0, 0]);
    disk.close();
  });
}
