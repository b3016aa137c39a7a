/** Runs what the pages about ublk show, in a guest. */
import { join } from 'node:path';
import { root } from '../e2e/processes.ts';
import { Bed, quote, testWith } from '../e2e/support.ts';
import { ublkPages } from '../e2e/ublk_pages.ts';
import { runInGuest } from './ublk.ts';

testWith(
  'pages about ublk show what happens',
  [],
  async () => {
    await using bed = new Bed();
    const pages = ublkPages.map((page) => quote(join(root, page))).join(' ');
    const program = quote(join(root, 'test/tools/page_runs.ts'));
    await runInGuest(
      bed,
      { seconds: 240 },
      `export UBIBLK="$ubiblk"
step what pages show
${quote(process.execPath)} ${program} ${pages}
`,
    );
  },
  5 * 60_000,
);
