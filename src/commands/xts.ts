import { loadDeviceConfig } from '../config/load_device_config.ts';
import { expandXts, freeXts } from '../crypto/xts.ts';
import { cipherFile, type XtsAction, type XtsJob } from '../crypto/xts_file.ts';
import { UsageError, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { Arguments } from './arguments.ts';
import { exitOnSignals } from './end_signals.ts';
import { Progress } from './progress.ts';

/** Any two of them together are still a byte offset that a number holds exactly. */
const MAX_SECTORS = 2 ** 43;

/** `ubiblk xts`: decrypts or encrypts sectors of a disk into another file (docs/xts.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const job = readJob(args);
  const xts = loadKeys(args, log);
  const progress = new Progress();
  exitOnSignals((signal) => {
    progress.clear();
    log.error(`${signal}: ended before everything was done`);
  });
  try {
    await cipherFile(xts, job, (doneBytes, totalBytes) => progress.update(doneBytes, totalBytes));
    progress.end();
  } finally {
    progress.clear();
    freeXts(xts);
  }
  return 0;
}

function readJob(args: Arguments): XtsJob {
  const [input, output] = args.operands;
  const action = readAction(args.value('action'));
  if (args.has('packed') && args.has('keep-offsets')) {
    throw new UsageError("options '--packed' and '--keep-offsets' exclude each other");
  }
  return {
    action,
    input,
    output,
    start: readSectors(args, 'start') ?? 0,
    length: readSectors(args, 'len'),
    // As the reference system's program does: what is decoded is packed, what is encoded is not.
    packed: args.has('packed') || (action === 'decode' && !args.has('keep-offsets')),
  };
}

function readAction(text = 'decode'): XtsAction {
  if (text !== 'decode' && text !== 'encode') {
    throw new UsageError(`--action must be one of decode, encode, not '${text}'`);
  }
  return text;
}

function readSectors(args: Arguments, option: string): number | undefined {
  const text = args.value(option);
  if (text === undefined) return undefined;
  const sectors = Number(text);
  if (!/^\d+$/.test(text) || sectors > MAX_SECTORS) {
    throw new UsageError(
      `--${option} must be a whole number of sectors, at most ${MAX_SECTORS}, not '${text}'`,
    );
  }
  return sectors;
}

/** @returns the handle of the expanded keys; of the configuration nothing else counts */
function loadKeys(args: Arguments, log: Log): number {
  const file = args.value('config');
  if (file === undefined) throw new UsageError("option '--config FILE' is required");
  const { config, wipeSecrets } = loadDeviceConfig(file, {
    kekFile: args.value('kek'),
    strict: args.has('strict'),
    allowWeakKey: args.has('allow-weak-key'),
    // The configuration may be another host's.
    keysOnly: true,
    maxCpu: Number.MAX_SAFE_INTEGER,
    warn: (line) => log.warn(line),
  });
  try {
    if (config.encryptionKey === undefined) {
      throw new UserError(
        `${file}: encryption_key: is required to encrypt and decrypt; add the two keys of the disk`,
      );
    }
    return expandXts(config.encryptionKey);
  } finally {
    wipeSecrets();
  }
}
