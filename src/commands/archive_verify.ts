import { verifyArchive } from '../archive/audit.ts';
import { Archive } from '../archive/reader.ts';
import type { Log } from '../log.ts';
import { withTarget } from './archive_target.ts';
import type { Arguments } from './arguments.ts';
import { interruptibly } from './interruption.ts';
import { writeOutput } from './output.ts';
import { longProgress } from './progress.ts';

/** `ubiblk archive verify`: fetches and checks every object (docs/archives.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const progress = longProgress(args.has('quiet'));
  return await withTarget(args, log, async ({ store, kek }) => {
    const work = async (signal: AbortSignal) => {
      signal.addEventListener('abort', () => store.giveUp());
      const archive = await Archive.open(store, kek);
      try {
        const verified = await verifyArchive(archive, {
          signal,
          progress: (done, total) => progress.update(done, total),
          problem: (sentence) => {
            progress.clear();
            log.error(sentence);
          },
        });
        progress.clear();
        const { stripes, objects, problems } = verified;
        const result = problems === 0 ? 'all are as they should be' : `${problems} are not`;
        if (args.has('json')) {
          writeOutput(`${JSON.stringify(verified)}\n`);
        } else if (!args.has('quiet')) {
          writeOutput(`verified ${objects} objects of ${stripes} stripes: ${result}\n`);
        }
        return problems === 0 ? 0 : 1;
      } finally {
        archive.close();
      }
    };
    return await interruptibly(work, 'verify it again from its beginning', progress, log);
  });
}
