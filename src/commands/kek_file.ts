import { existsSync } from 'node:fs';
import { join } from 'node:path';
import type { Arguments } from './arguments.ts';

const CREDENTIAL = 'kek';

/**
 * The KEK file that `--kek` names or, without it, the credential `kek` that the service manager has passed
 * to this process (LoadCredential= of systemd.exec(5)).
 */
export function kekFileOf(args: Arguments): string | undefined {
  const given = args.value('kek');
  const folder = process.env.CREDENTIALS_DIRECTORY;
  if (given !== undefined || !folder) return given;
  const credential = join(folder, CREDENTIAL);
  return existsSync(credential) ? credential : undefined;
}
