import { exportArchive } from '../archive/exporter.ts';
import { Archive } from '../archive/reader.ts';
import type { Log } from '../log.ts';
import { sizeText } from '../size_text.ts';
import { withTarget } from './archive_target.ts';
import type { Arguments } from './arguments.ts';
import { interruptibly } from './interruption.ts';
import { writeOutput } from './output.ts';
import { longProgress } from './progress.ts';

/** `ubiblk archive export`: writes an archive's disk into a file (docs/archives.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const [path] = args.operands;
  const progress = longProgress(args.has('quiet'));
  return await withTarget(args, log, async ({ store, kek }) => {
    const work = async (signal: AbortSignal) => {
      signal.addEventListener('abort', () => store.giveUp());
      const archive = await Archive.open(store, kek);
      const { sizeBytes } = archive;
      try {
        const update = (done: number, total: number) => progress.update(done, total);
        const force = args.has('force');
        const exported = await exportArchive(archive, { path, force, signal, progress: update });
        progress.clear();
        if (args.has('json')) {
          writeOutput(`${JSON.stringify({ ...exported, sizeBytes })}\n`);
        } else if (!args.has('quiet')) {
          const { written, stripes } = exported;
          const size = `${sizeText(sizeBytes)}, ${written} of ${stripes} stripes with data`;
          writeOutput(`'${path}': ${size}\n`);
        }
        return 0;
      } finally {
        archive.close();
      }
    };
    const remedy = `to go on with '${path}.partial', give the same command again`;
    return await interruptibly(work, remedy, progress, log);
  });
}
