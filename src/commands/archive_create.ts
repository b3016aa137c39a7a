import { writeFileSync } from 'node:fs';
import { type Compression, MAX_ZSTD_LEVEL, MIN_ZSTD_LEVEL } from '../archive/compression.ts';
import type { ArchiveFormat } from '../archive/description.ts';
import { type WriteOptions, type Written, writeArchive } from '../archive/writer.ts';
import { freeXts } from '../crypto/xts.ts';
import { openDisk } from '../device/disk.ts';
import { errorName, UsageError, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { sizeText } from '../size_text.ts';
import { refuseSameFilesOf } from '../stripe/distinct_files.ts';
import { type ArchiveTarget, withTarget } from './archive_target.ts';
import type { Arguments } from './arguments.ts';
import { openDiskStripes } from './disk_stripes.ts';
import { interruptibly } from './interruption.ts';
import { writeOutput } from './output.ts';
import { longProgress, type Progress } from './progress.ts';
import { expandKeys, readSettings, type Settings } from './served_disk.ts';

/** A server that is dying is waited for, one that lives is not. */
const LOCK_WAIT_MS = 2000;

type Shape = Pick<WriteOptions, 'shape' | 'encrypted'>;

/** `ubiblk archive`: makes an archive of a disk (docs/archives.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const shape = readShape(args);
  if (args.value('config') === undefined)
    throw new UsageError("option '--config FILE' is required");
  args.required('target-config');
  if (args.has('live')) {
    throw new UserError(
      '--live needs a server that can hold a disk at one consistent point, which none of this version ' +
        'can; stop the server, or archive a snapshot of its file',
    );
  }
  const settings = await readSettings(args, log);
  const progress = longProgress(args.has('quiet'));
  try {
    refuseSameFilesOf(settings.config);
    return await withTarget(args, log, async (target) => {
      warnOfPlaintextKeys(args, shape, target, log);
      const again = shape.encrypted || shape.shape.format === 2 ? ', and --resume' : '';
      return await interruptibly(
        (signal) => archive(args, settings, target, { ...shape, signal }, progress, log),
        `to go on, give the same command again${again}: what was put is not put once more`,
        progress,
        log,
      );
    });
  } finally {
    settings.wipeSecrets();
  }
}

async function archive(
  args: Arguments,
  settings: Settings,
  { store, kek }: ArchiveTarget,
  shape: Shape & { signal: AbortSignal },
  progress: Progress,
  log: Log,
): Promise<number> {
  const { config } = settings;
  shape.signal.addEventListener('abort', () => store.giveUp());
  const xts = expandKeys(config, log);
  try {
    const disk = await openDisk(
      { ...config, directIo: false, readOnly: true, lockWaitMs: LOCK_WAIT_MS },
      log,
    );
    try {
      const { shift, headers, source } = await openDiskStripes(disk, config, xts, log);
      const facts = { ...disk.facts, xts };
      const diskBytes = facts.sizeBytes;
      try {
        const written = await writeArchive(
          { facts, diskBytes, stripeBytes: 512 << shift, headers, source },
          store,
          {
            ...shape,
            kek,
            force: args.has('force'),
            resume: args.has('resume'),
            progress: (done, total) => progress.update(done, total),
          },
          log,
        );
        progress.clear();
        tell(args, written, diskBytes, store.name);
      } finally {
        await source?.close();
      }
    } finally {
      disk.close();
    }
  } finally {
    freeXts(xts);
  }
  return 0;
}

function readShape(args: Arguments): Shape {
  const formatText = args.value('format') ?? '1';
  if (formatText !== '1' && formatText !== '2') {
    throw new UsageError(`--format must be one of 1, 2, not '${formatText}'`);
  }
  const format = Number(formatText) as ArchiveFormat;
  const compression = readCompression(args, format);
  return { shape: { format, compression }, encrypted: args.has('encrypt') };
}

function readCompression(args: Arguments, format: ArchiveFormat): Compression {
  const usual = format === 1 ? 'snappy' : 'zstd';
  const method = args.value('compression') ?? (args.has('compress') ? usual : 'none');
  const level = args.value('zstd-level');
  if (level !== undefined && method !== 'zstd') {
    throw new UsageError("option '--zstd-level' needs '--compression zstd'");
  }
  if (method === 'none' && args.has('compress')) {
    throw new UsageError("options '--compress' and '--compression none' exclude each other");
  }
  if (method === 'none') return { method };
  if (method !== usual) {
    throw new UsageError(
      `--compression must be one of none, ${usual} with --format ${format}, not '${method}'`,
    );
  }
  return method === 'snappy' ? { method } : { method: 'zstd', level: readLevel(level) };
}

function readLevel(text = '3'): number {
  const level = Number(text);
  if (!/^\d+$/.test(text) || level < MIN_ZSTD_LEVEL || level > MAX_ZSTD_LEVEL) {
    throw new UsageError(
      `--zstd-level must be a whole number from ${MIN_ZSTD_LEVEL} to ${MAX_ZSTD_LEVEL}, not '${text}'`,
    );
  }
  return level;
}

function warnOfPlaintextKeys(
  args: Arguments,
  { encrypted, shape }: Shape,
  { kek, store }: ArchiveTarget,
  log: Log,
): void {
  const hasKeys = encrypted || shape.format === 2;
  if (kek.method !== 'none' || !hasKeys || args.has('allow-plaintext-keys')) return;
  const loss = encrypted
    ? 'WHOEVER CAN READ THE ARCHIVE CAN DECRYPT IT'
    : 'whoever can write to the archive can change it unnoticed';
  log.warn(
    `the keys of the archive in ${store.name} go out IN THE CLEAR: ${loss}; configure 'archive_kek' ` +
      'to wrap them, or say that it is meant so by --allow-plaintext-keys',
  );
}

function tell(args: Arguments, written: Written, diskBytes: number, place: string): void {
  const { stripes, archived, zeroes, objects, kept, objectBytes, headBytes } = written;
  const storedBytes = objectBytes + headBytes;
  const stats = args.value('stats');
  if (stats !== undefined) writeStats(stats, storedBytes, diskBytes);
  if (args.has('json')) {
    const report = { stripes, archived, zeroes, objects, kept, storedBytes, diskBytes };
    writeOutput(`${JSON.stringify(report)}\n`);
  } else if (!args.has('quiet')) {
    const there = kept > 0 ? `, ${kept} of which were there` : '';
    writeOutput(
      `archived ${archived} of ${stripes} stripes in ${place}: ${objects} objects${there}, ` +
        `${sizeText(storedBytes)} for a disk of ${sizeText(diskBytes)}\n`,
    );
  }
}

/** As the reference system's program has it (spec/archive.md section 5). */
function writeStats(file: string, physicalBytes: number, diskBytes: number): void {
  const stats = { physical_size_bytes: physicalBytes, logical_size_bytes: diskBytes };
  try {
    writeFileSync(file, `${JSON.stringify(stats, null, 2)}\n`);
  } catch (error) {
    throw new UserError(`'${file}' can't be written: ${errorName(error)}`);
  }
}
