import { type Kek, KekError, loadKekFile, noKek } from '../config/kek.ts';
import { randomSecret } from '../crypto/random.ts';
import type { Secret } from '../crypto/secret.ts';
import { XTS_KEY_BYTES, type XtsKeys } from '../crypto/xts.ts';
import { UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { secretText } from './secret_text.ts';

/** `ubiblk keys generate`: prints new keys for a disk (docs/keys.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const kekFile = args.value('kek');
  const kek = kekFile === undefined ? noKek : loadKekFile(kekFile, false, (line) => log.warn(line));
  try {
    const keys = wrapKeys(freshKeys(), kek);
    const text = secretText(args.has('json') ? jsonParts(keys, kek) : yamlParts(keys, kek));
    for (const key of keys) key.wipe();
    try {
      writeOutput(text.reveal());
    } finally {
      text.wipe();
    }
  } finally {
    kek.wipe();
  }
  return 0;
}

/** Two keys that differ, as AES-XTS needs them; `random` makes bytes for the caller to wipe. */
export function freshKeys(random: (lengthBytes: number) => Secret = randomSecret): XtsKeys {
  const data = random(XTS_KEY_BYTES);
  let tweak = random(XTS_KEY_BYTES);
  while (Buffer.compare(data.reveal(), tweak.reveal()) === 0) {
    tweak.wipe();
    tweak = random(XTS_KEY_BYTES);
  }
  return [data, tweak];
}

/** Takes over the keys, and gives them as a KEK wraps them. @throws UserError */
export function wrapKeys([data, tweak]: XtsKeys, kek: Kek): XtsKeys {
  try {
    return [kek.wrap(data), kek.wrap(tweak)];
  } catch (error) {
    if (error instanceof KekError) throw new UserError(`new keys ${error.message}`);
    throw error;
  }
}

/** The line of a configuration that holds keys. */
export function yamlParts([data, tweak]: XtsKeys, { isNone }: Kek): (string | Secret)[] {
  const comment = isNone ? '# Whoever reads these keys reads the disk.\n' : '';
  return [`${comment}encryption_key: ["`, data, '", "', tweak, '"]\n'];
}

function jsonParts([data, tweak]: XtsKeys, { isNone }: Kek): (string | Secret)[] {
  return ['{"encryption_key":["', data, '","', tweak, `"],"wrapped":${!isNone}}\n`];
}
