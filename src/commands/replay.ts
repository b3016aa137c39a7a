import { openDisk } from '../device/disk.ts';
import { UsageError, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { IoLogReader } from '../replay/log_reader.ts';
import { type Mismatch, type Replayed, replay } from '../replay/replay.ts';
import { DiskTarget, TrialTarget } from '../replay/replay_target.ts';
import { sizeText } from '../size_text.ts';
import { refuseSameFiles } from '../stripe/distinct_files.ts';
import { LOCK_WAIT_MS } from '../stripe/metadata_init.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { Progress } from './progress.ts';

/** Mismatches that are told of one by one. */
const MOST_TOLD = 10;

/** `ubiblk replay`: carries out an I/O log on a disk (docs/replay.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const [logPath, diskPath] = [args.required('log'), args.required('disk')];
  if (logPath === '' || diskPath === '') {
    throw new UsageError("options '--log' and '--disk' need paths that are not empty");
  }
  refuseSameFiles([
    { role: 'the I/O log', path: logPath },
    { role: 'the disk', path: diskPath },
  ]);
  const dryRun = args.has('dry-run');
  const progress = new Progress();
  try {
    const done = await replayOnto(diskPath, logPath, dryRun, progress, log);
    progress.clear();
    writeOutput(args.has('json') ? json(done, dryRun) : line(done, dryRun));
    if (done.mismatches === 0) return 0;
    throw new UserError(
      `${done.mismatches} of ${done.reads} reads of '${logPath}' differ from '${diskPath}'`,
    );
  } finally {
    progress.clear();
  }
}

async function replayOnto(
  diskPath: string,
  logPath: string,
  dryRun: boolean,
  progress: Progress,
  log: Log,
): Promise<Replayed> {
  const reader = new IoLogReader(logPath);
  try {
    const options = { path: diskPath, directIo: false, writeThrough: false, anySize: true };
    const disk = await openDisk(
      { ...options, ioEngine: 'sync', readOnly: dryRun, lockWaitMs: LOCK_WAIT_MS },
      log,
    );
    try {
      const { fd, readOnly } = disk.facts;
      if (readOnly && !dryRun) {
        throw new UserError(`'${diskPath}' may not be written; replay onto a copy, or --dry-run`);
      }
      const target = dryRun ? new TrialTarget(fd, diskPath) : new DiskTarget(fd, diskPath);
      try {
        return replayAll(reader, target, progress, log);
      } finally {
        target.close();
        disk.sync();
      }
    } finally {
      disk.close();
    }
  } finally {
    reader.close();
  }
}

function replayAll(
  reader: IoLogReader,
  target: DiskTarget,
  progress: Progress,
  log: Log,
): Replayed {
  let mismatches = 0;
  return replay(reader, target, {
    record({ line, kind, sector, length }) {
      log.info(`[${line}] ${kind}: sector ${sector}, len ${length}`);
    },
    mismatch(mismatch) {
      if (++mismatches > MOST_TOLD) return;
      progress.clear();
      log.error(sentence(mismatch));
      if (mismatches === MOST_TOLD) log.error('more of them are only counted');
    },
    progress(doneBytes) {
      progress.update(doneBytes, reader.sizeBytes || undefined);
    },
  });
}

function sentence({ record, at, expected, found }: Mismatch): string {
  const { line, sector, length } = record;
  return (
    `[${line}] READ: sector ${sector}, len ${length}: differs from byte ${at} on: the log has ` +
    `${expected.toString('hex')}, the disk ${found.toString('hex')}`
  );
}

function line({ reads, writes, readBytes, writtenBytes, mismatches }: Replayed, dryRun: boolean) {
  const same = reads - mismatches;
  return (
    `${writes} writes of ${sizeText(writtenBytes)}${dryRun ? ' (tried only)' : ''}, ` +
    `${reads} reads of ${sizeText(readBytes)}, ${same} of them as recorded\n`
  );
}

function json(done: Replayed, dryRun: boolean): string {
  return `${JSON.stringify({ ...done, dryRun })}\n`;
}
