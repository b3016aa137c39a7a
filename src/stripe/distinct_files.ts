import { statSync } from 'node:fs';
import { UserError } from '../errors.ts';

/** A file of a configuration. */
export interface NamedFile {
  /** What it is, for messages: `the metadata file`. */
  role: string;
  path: string;
}

/**
 * Sees that no two of a configuration's files are one and the same, by whatever names: one would be
 * overwritten with the other. Files that aren't there are passed over.
 * @throws UserError
 */
export function refuseSameFiles(files: readonly NamedFile[]): void {
  const seen = new Map<string, NamedFile>();
  for (const file of files) {
    const identity = identityOf(file.path);
    if (identity === undefined) continue;
    const other = seen.get(identity);
    if (other !== undefined) {
      throw new UserError(
        `'${file.path}' is both ${other.role} and ${file.role}; give each a file of its own`,
      );
    }
    seen.set(identity, file);
  }
}

function identityOf(path: string): string | undefined {
  try {
    const status = statSync(path);
    return status.isBlockDevice() ? `device ${status.rdev}` : `${status.dev} ${status.ino}`;
  } catch {
    return undefined;
  }
}
