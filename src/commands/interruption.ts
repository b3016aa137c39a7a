import { constants } from 'node:os';
import { UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { Progress } from './progress.ts';

const SIGNALS = ['SIGINT', 'SIGTERM'] as const;

/**
 * Has a signal end a long work as an error would, so that it can note how far it has come; a second one
 * ends the process at once.
 * @param remedy how to go on: the end of a sentence
 * @returns what the work returns, or 128 + the signal's number
 */
export async function interruptibly(
  work: (signal: AbortSignal) => Promise<number>,
  remedy: string,
  progress: Progress,
  log: Log,
): Promise<number> {
  const abort = new AbortController();
  let ended: (typeof SIGNALS)[number] | undefined;
  for (const name of SIGNALS) {
    process.on(name, () => {
      if (ended) process.exit(128 + constants.signals[name]);
      ended = name;
      abort.abort(new UserError(name));
    });
  }
  try {
    return await work(abort.signal);
  } catch (error) {
    progress.clear();
    if (!ended) throw error;
    log.error(`${ended}: ended before everything was done; ${remedy}`);
    return 128 + constants.signals[ended];
  } finally {
    progress.clear();
  }
}
