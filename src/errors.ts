/**
 * A mistake or a condition that the user can act on. The message is one clear sentence per line (what,
 * where, what to do), is printed without a stack trace, and ends the process with exit status 1.
 */
export class UserError extends Error {
  override name = 'UserError';
}

/** Wrong command-line arguments: printed like a UserError, exit status 2. */
export class UsageError extends Error {
  override name = 'UsageError';
}

/** The name of a system error (`ENOSPC`), or the message of any other thrown value. */
export function errorName(error: unknown): string {
  if (!(error instanceof Error)) {
    return String(error);
  }
  const code = (error as NodeJS.ErrnoException).code;
  return typeof code === 'string' ? code : error.message;
}

/** Whether a thrown value is a system error with a name (`EIO`). */
export function isErrno(error: unknown): error is NodeJS.ErrnoException {
  return error instanceof Error && typeof (error as NodeJS.ErrnoException).code === 'string';
}
