/** What was found of one thing that a host or a disk must have, or should. */
export interface Finding {
  /** What was looked at, in a word or two. */
  check: string;
  level: 'ok' | 'warn' | 'fail';
  /** What it is like. */
  message: string;
  /** What to do, a sentence; empty where all is well. */
  fix: string;
}

export function ok(check: string, message: string): Finding {
  return { check, level: 'ok', message, fix: '' };
}

/** It works, but worse than it could. */
export function warn(check: string, message: string, fix: string): Finding {
  return { check, level: 'warn', message, fix };
}

/** It doesn't work. */
export function fail(check: string, message: string, fix: string): Finding {
  return { check, level: 'fail', message, fix };
}
