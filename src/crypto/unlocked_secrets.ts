/** Secrets that could not be locked into memory: said once, whenever it comes to that. */
import type { Log } from '../log.ts';
import { secretsAreLocked } from './secret.ts';

let told = false;

/** To be called after secrets were made: they take more memory as there are more. */
export function warnOfUnlockedSecrets(log: Log): void {
  if (told || secretsAreLocked()) return;
  told = true;
  log.warn(
    'the keys may be swapped to disk: they could not be locked into memory; raise the memlock limit ' +
      '(ulimit -l, LimitMEMLOCK=)',
  );
}
