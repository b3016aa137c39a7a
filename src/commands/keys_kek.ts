import { writeSync } from 'node:fs';
import { NewFile } from '../../ffi/new_file.ts';
import { GCM_KEY_BYTES, GCM_NONCE_BYTES } from '../crypto/gcm.ts';
import { randomSecret } from '../crypto/random.ts';
import { Secret } from '../crypto/secret.ts';
import { errorName, UsageError, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { Arguments } from './arguments.ts';
import { exitOnSignals } from './end_signals.ts';
import { writeOutput } from './output.ts';
import { secretText } from './secret_text.ts';

const defaultAuthData = 'ubiblk';
const maxAuthDataBytes = 1024;

/** `ubiblk keys kek`: makes a new key-encryption key (docs/keys.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const path = args.value('output');
  const authData = args.value('auth-data') ?? defaultAuthData;
  if (Buffer.byteLength(authData) > maxAuthDataBytes) {
    throw new UsageError(`--auth-data must be at most ${maxAuthDataBytes} bytes`);
  }
  if (args.has('force') && path === undefined) {
    throw new UsageError("option '--force' needs '--output FILE'");
  }
  if (path === '') {
    throw new UsageError("option '--output' needs a path that is not empty");
  }
  const text = freshKek(authData);
  try {
    if (path === undefined) {
      writeOutput(text.reveal());
    } else {
      exitOnSignals((signal) => log.error(`${signal}: ended before the KEK file was complete`));
      await writeFile(path, text.reveal(), args.has('force'));
    }
  } finally {
    text.wipe();
  }
  return 0;
}

/** The text of a new KEK file. */
export function freshKek(authData: string): Secret {
  const key = randomSecret(GCM_KEY_BYTES);
  const initVector = randomSecret(GCM_NONCE_BYTES);
  const auth = Secret.taking(Buffer.from(authData));
  const text = secretText([
    "# For one disk: make another KEK whenever the disk's keys are made anew.\n",
    'method: aes256-gcm\n',
    ...['key: "', key, '"\n'],
    ...['init_vector: "', initVector, '"\n'],
    ...['auth_data: "', auth, '"\n'],
  ]);
  for (const secret of [key, initVector, auth]) secret.wipe();
  return text;
}

async function writeFile(path: string, bytes: Uint8Array, replace: boolean): Promise<void> {
  const file = new NewFile(path);
  try {
    writeNewFile(file.fd, bytes, path);
    if (replace) {
      await file.commit();
    } else if (!(await file.commitAsNew())) {
      throw new UserError(
        `'${path}' is there already; what its KEK has wrapped would be lost: ` +
          'choose another name, or replace it with --force',
      );
    }
  } finally {
    file.discard();
  }
}

/** Writes all of the bytes into a file that has none yet. @throws UserError */
export function writeNewFile(fd: number, bytes: Uint8Array, path: string): void {
  try {
    for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done);
  } catch (error) {
    throw new UserError(`'${path}' cannot be written: ${errorName(error)}`);
  }
}
