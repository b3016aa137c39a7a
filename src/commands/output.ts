import { writeSync } from 'node:fs';
import { errorName, UserError } from '../errors.ts';

const stdoutFd = 1;

/**
 * Writes text, or the bytes of one, to stdout, synchronously. A reader that has gone away
 * (`| head -1`) has seen all it wanted: that is no error.
 * @throws UserError for anything else (a full disk)
 */
export function writeOutput(text: string | Uint8Array): void {
  const bytes = typeof text === 'string' ? Buffer.from(text) : text;
  let written = 0;
  while (written < bytes.length) {
    try {
      written += writeSync(stdoutFd, bytes, written);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'EPIPE') {
        return;
      }
      if (code !== 'EAGAIN') {
        throw new UserError(`cannot write to standard output: ${errorName(error)}`);
      }
      Bun.sleepSync(1);
    }
  }
}
