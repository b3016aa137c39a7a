import { readFileSync, statSync } from 'node:fs';
import { Archive } from '../archive/reader.ts';
import { loadDeviceConfig } from '../config/load_device_config.ts';
import { loadTargetConfig } from '../config/load_remote_config.ts';
import { isNbdUri } from '../config/nbd_uri.ts';
import { ArchiveCopySource } from '../copy/archive_end.ts';
import { type Copied, copy } from '../copy/copier.ts';
import { DiskCopySource, DiskCopyTarget } from '../copy/disk_end.ts';
import type { CopySource, CopyTarget } from '../copy/ends.ts';
import { FileSource, FileTarget, StreamFileTarget } from '../copy/file_end.ts';
import { NbdCopySource, NbdCopyTarget } from '../copy/nbd_end.ts';
import { copyFromStream, copyToStream } from '../copy/stream.ts';
import { freeXts } from '../crypto/xts.ts';
import { openDisk } from '../device/disk.ts';
import { UsageError, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { sizeText } from '../size_text.ts';
import { openStore } from './archive_store.ts';
import type { Arguments } from './arguments.ts';
import { openDiskStripes } from './disk_stripes.ts';
import { interruptibly } from './interruption.ts';
import { writeOutput } from './output.ts';
import { longProgress, type Progress } from './progress.ts';
import { expandKeys } from './served_disk.ts';

const STREAM = '-';
/** A server that is dying is waited for, one that lives is not. */
const LOCK_WAIT_MS = 2000;

/** `ubiblk copy`: copies between files, devices, NBD exports and disks (docs/copy.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const [from, to] = args.operands;
  if (from === STREAM && to === STREAM) throw new UsageError("SOURCE and TARGET can't both be '-'");
  const progress = longProgress(args.has('quiet'));
  const remedy =
    from === STREAM || to === STREAM || kindOf(to) !== 'file'
      ? 'the target is not complete'
      : `to go on with '${to}.partial', give the same command again`;
  const work = async (signal: AbortSignal) => {
    if (from === STREAM) await fromStream(args, to, signal, progress, log);
    else await fromSource(args, from, to, signal, progress, log);
    return 0;
  };
  return await interruptibly(work, remedy, progress, log);
}

async function fromSource(
  args: Arguments,
  from: string,
  to: string,
  signal: AbortSignal,
  progress: Progress,
  log: Log,
): Promise<void> {
  const source = await openSource(args, from, log);
  const update = (done: number, total: number) => progress.update(done, total);
  try {
    if (to === STREAM) {
      await copyToStream(source, signal, update);
      progress.clear();
      return;
    }
    const target = await openTarget(args, to, source, log);
    try {
      const copied = await copy(source, target, { signal, progress: update });
      progress.clear();
      tell(args, copied, to);
    } finally {
      await target.close();
    }
  } finally {
    await source.close();
  }
}

async function fromStream(
  args: Arguments,
  to: string,
  signal: AbortSignal,
  progress: Progress,
  log: Log,
): Promise<void> {
  const target = await openTarget(args, to, null, log);
  try {
    const bytes = await copyFromStream(target, signal, (done) => progress.update(done, undefined));
    progress.clear();
    tell(args, { sizeBytes: bytes, dataBytes: bytes, zeroBytes: 0, keptBytes: 0 }, to);
  } finally {
    await target.close();
  }
}

function tell(args: Arguments, copied: Copied, to: string): void {
  if (args.has('json')) {
    writeOutput(`${JSON.stringify(copied)}\n`);
  } else if (!args.has('quiet')) {
    const { sizeBytes, dataBytes, keptBytes } = copied;
    const kept = keptBytes > 0 ? `, ${sizeText(keptBytes)} were there` : '';
    writeOutput(`'${to}': ${sizeText(sizeBytes)}, ${sizeText(dataBytes)} of data${kept}\n`);
  }
}

type Kind = 'nbd' | 'archive' | 'disk' | 'device' | 'file';

/** Disks and archives are named by their configuration files. */
function kindOf(name: string): Kind {
  if (isNbdUri(name)) return 'nbd';
  if (/\.ya?ml$/.test(name)) return namesArchive(name) ? 'archive' : 'disk';
  return statSync(name, { throwIfNoEntry: false })?.isBlockDevice() ? 'device' : 'file';
}

/** Whether it is a configuration as `--target-config` has it; what can't be read is said by who loads it. */
function namesArchive(file: string): boolean {
  try {
    return /^type\s*:/m.test(readFileSync(file, 'utf8'));
  } catch {
    return false;
  }
}

async function openSource(args: Arguments, name: string, log: Log): Promise<CopySource> {
  const kind = kindOf(name);
  if (kind === 'nbd') return await NbdCopySource.open(name, log);
  if (kind === 'archive') return await openArchive(args, name, log);
  if (kind !== 'disk') return FileSource.open(name);
  const { config, wipeSecrets } = load(args, name, log);
  let xts = 0;
  try {
    xts = expandKeys(config, log);
    const settings = { directIo: false, readOnly: true, lockWaitMs: LOCK_WAIT_MS };
    const disk = await openDisk({ ...config, ...settings, xts }, log);
    try {
      const { shift, headers, source } = await openDiskStripes(disk, config, xts, log);
      return new DiskCopySource(disk, { ...disk.facts, xts }, shift, headers, source);
    } catch (error) {
      disk.close();
      xts = 0;
      throw error;
    }
  } catch (error) {
    freeXts(xts);
    throw error;
  } finally {
    wipeSecrets();
  }
}

async function openArchive(args: Arguments, file: string, log: Log): Promise<CopySource> {
  const { config, wipeSecrets } = loadTargetConfig(file, optionsOf(args, log));
  try {
    const store = await openStore(config, log);
    try {
      return new ArchiveCopySource(await Archive.open(store, config.archiveKek));
    } catch (error) {
      store.close();
      throw error;
    }
  } finally {
    wipeSecrets();
  }
}

/** @param source what is copied, null for a stream */
async function openTarget(
  args: Arguments,
  name: string,
  source: CopySource | null,
  log: Log,
): Promise<CopyTarget> {
  const kind = kindOf(name);
  const sizeBytes = source?.sizeBytes ?? 0;
  const isZero = args.has('target-is-zero');
  if (kind === 'nbd') return await NbdCopyTarget.open(name, sizeBytes, isZero, log);
  if (kind === 'archive') {
    throw new UserError(`'${name}' names an archive: 'ubiblk archive --target-config' makes one`);
  }
  if (kind === 'file') {
    const force = args.has('force');
    return source ? FileTarget.open(name, source, force) : new StreamFileTarget(name, force);
  }
  const settings = {
    ioEngine: 'sync',
    directIo: false,
    writeThrough: false,
    readOnly: false,
    lockWaitMs: LOCK_WAIT_MS,
  } as const;
  if (kind === 'device') {
    return new DiskCopyTarget(await openDisk({ path: name, ...settings }, log), sizeBytes, isZero);
  }
  const { config, wipeSecrets } = load(args, name, log);
  let xts = 0;
  try {
    if (config.metadataPath !== undefined) {
      throw new UserError(
        `'${name}' has 'metadata_path': its stripes can't be written past their metadata; serve it with ` +
          "'ubiblk serve nbd' and copy to that",
      );
    }
    xts = expandKeys(config, log);
    const disk = await openDisk({ ...config, ...settings, xts }, log);
    // Zeroes of an encrypted disk are written.
    return new DiskCopyTarget(disk, sizeBytes, isZero && xts === 0);
  } catch (error) {
    freeXts(xts);
    throw error;
  } finally {
    wipeSecrets();
  }
}

function load(args: Arguments, file: string, log: Log): ReturnType<typeof loadDeviceConfig> {
  const allowWeakKey = args.has('allow-weak-key');
  return loadDeviceConfig(file, { ...optionsOf(args, log), allowWeakKey });
}

function optionsOf(args: Arguments, log: Log) {
  const kekFile = args.value('kek');
  return {
    ...(kekFile !== undefined && { kekFile }),
    strict: args.has('strict'),
    warn: (line: string) => log.warn(line),
  };
}
