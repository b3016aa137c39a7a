import { cipherLibrary, liburingVersion } from '../../ffi/library.ts';
import type { ProgramName } from './table.ts';

declare const UBIBLK_VERSION: string;
declare const UBIBLK_COMMIT: string;

/** The version of the package, `0.1.0`; `dev` where it isn't built. */
export const version = typeof UBIBLK_VERSION === 'string' ? UBIBLK_VERSION : 'dev';

/** The commit that it was built from. */
export const commit = typeof UBIBLK_COMMIT === 'string' ? UBIBLK_COMMIT : 'unknown';

/** The version under the name that the executable was called by, and what is built in. */
export function versionText(program?: ProgramName): string {
  return [
    `${program?.displayName ?? 'ubiblk'} ${version}`,
    `commit: ${commit}`,
    `Bun: ${Bun.version}`,
    `cipher library: ${cipherLibrary()}`,
    `liburing: ${liburingVersion()}`,
    '',
  ].join('\n');
}
