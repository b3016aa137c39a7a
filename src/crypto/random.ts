import { closeSync, openSync, readSync } from 'node:fs';
import { errorName, UserError } from '../errors.ts';
import { Secret } from './secret.ts';

const randomDevice = '/dev/random';

/**
 * Random bytes for the caller to wipe, at most 256, from the kernel straight into secret memory:
 * `crypto.getRandomValues` leaves a copy of them in a pool of Bun's.
 * @throws UserError where this system has no /dev/random
 */
export function randomSecret(lengthBytes: number): Secret {
  const secret = new Secret(lengthBytes);
  try {
    const fd = openSync(randomDevice, 'r');
    try {
      const got = readSync(fd, secret.reveal(), 0, lengthBytes, null);
      if (got !== lengthBytes) {
        throw new Error(`it gives ${got} of ${lengthBytes} bytes`);
      }
    } finally {
      closeSync(fd);
    }
    return secret;
  } catch (error) {
    secret.wipe();
    throw new UserError(`cannot read random bytes from '${randomDevice}': ${errorName(error)}`);
  }
}
