import { type Inventory, takeInventory } from '../archive/audit.ts';
import { Archive } from '../archive/reader.ts';
import { isSweepNote, StoreAwayError, SWEEP_NOTE } from '../archive/store.ts';
import { UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { sizeText } from '../size_text.ts';
import { type ArchiveTarget, withTarget } from './archive_target.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';

/** Objects that are removed at once. */
const BATCH = 1000;

/** `ubiblk archive gc`: shows or deletes what no archive needs (docs/archives.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  return await withTarget(args, log, async (target) => {
    const report = args.has('delete')
      ? await sweep(target, args.has('abandon'))
      : { ...countsOf(await unusedOf(target)), deleted: false };
    const what = `${report.unused} unused objects, ${sizeText(report.unusedBytes)}`;
    const hint = report.unused > 0 ? '; --delete deletes them' : '';
    const text = report.deleted ? `deleted ${what}` : `${what}${hint}`;
    writeOutput(args.has('json') ? `${JSON.stringify(report)}\n` : `${text}\n`);
    return 0;
  });
}

async function unusedOf({ store, kek }: ArchiveTarget): Promise<Inventory> {
  const archive = await Archive.open(store, kek);
  try {
    return await takeInventory(archive);
  } finally {
    archive.close();
  }
}

function countsOf({ unused, unusedBytes }: Inventory) {
  return { unused: unused.length, unusedBytes };
}

/** As a run of its own, so that no other one puts what is deleted here. */
async function sweep(target: ArchiveTarget, abandon: boolean) {
  const { store } = target;
  // Where there is no archive, nothing is begun.
  await unusedOf(target);
  const run = await store.begin();
  try {
    if (run.left && !abandon && !isSweepNote(run.left)) {
      throw new UserError(
        `a run was interrupted in ${store.name}: go on with it ('ubiblk archive ... --resume'), or give ` +
          '--abandon to delete what it has left',
      );
    }
    if (!store.locks) await run.note(SWEEP_NOTE);
    try {
      // A run before may have replaced the index meanwhile.
      const inventory = await unusedOf(target);
      for (let at = 0; at < inventory.unused.length; at += BATCH) {
        await store.remove(inventory.unused.slice(at, at + BATCH));
      }
      await run.end();
      return { ...countsOf(inventory), deleted: true };
    } catch (error) {
      // What was refused isn't being deleted: runs need not wait. Of what has no answer nobody knows.
      const refused = error instanceof UserError && !(error instanceof StoreAwayError);
      if (refused && !store.locks) await run.end();
      throw error;
    }
  } finally {
    run.leave();
  }
}
