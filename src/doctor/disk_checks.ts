/** Whether the files that a configuration names can be served from, and well; nothing is changed. */
import { accessSync, type BigIntStats, constants, statfsSync, statSync } from 'node:fs';
import { dirname, resolve } from 'node:path';
import type { DeviceConfig } from '../config/device_config.ts';
import { type Disk, openDisk } from '../device/disk.ts';
import { errorName, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { sizeText } from '../size_text.ts';
import { refuseSameFilesOf } from '../stripe/distinct_files.ts';
import { openMetadata } from '../stripe/metadata_file.ts';
import { type Finding, fail, ok, warn } from './finding.ts';
import type { Host } from './host.ts';

/** statfs(2): names of file systems, and what is to be known of some. */
const FILE_SYSTEMS: Record<number, { name: string; problem?: string }> = {
  61267: { name: 'ext4' },
  1481003842: { name: 'xfs' },
  2435016766: { name: 'btrfs', problem: 'copies what is overwritten, which fragments disks' },
  801189825: { name: 'zfs' },
  4076150800: { name: 'f2fs' },
  16914836: { name: 'tmpfs', problem: 'is memory: all is lost when the host goes down' },
  2240043254: { name: 'ramfs', problem: 'is memory: all is lost when the host goes down' },
  26985: {
    name: 'NFS',
    problem: "is a network file system: its locks and syncs are another host's",
  },
  4283649346: { name: 'CIFS', problem: "is a network file system: its syncs are another host's" },
  16914839: { name: '9p', problem: "is a network file system: its syncs are another host's" },
  2035054128: { name: 'overlayfs', problem: 'is for containers, and copies whole files' },
  1702057286: { name: 'FUSE', problem: 'is a program of its own, which may hang' },
};

const PAGE_BYTES = 4096;

export interface DiskChecks {
  findings: Finding[];
  /** The stripes' size, where the metadata could be read. */
  stripeBytes: number | null;
}

/**
 * @param config as it was read
 * @param host for what the kernel tells of devices
 * @param xts handle of the expanded keys; 0: the disk is plain
 */
export async function checkDisk(
  config: DeviceConfig,
  host: Host,
  xts: number,
  log: Log,
): Promise<DiskChecks> {
  const findings: Finding[] = [];
  let disk: Disk | null = null;
  let stripeBytes: number | null = null;
  try {
    refuseSameFilesOf(config);
    disk = await look(config, config.path, log);
    findings.push(ok('data file', describe(disk)), ...checkFile(config, disk, host));
  } catch (error) {
    findings.push(...failures('data file', error));
  }
  if (disk && config.metadataPath !== undefined) {
    const checked = await checkMetadata(config, config.metadataPath, disk, xts, log);
    findings.push(...checked.findings);
    stripeBytes = checked.stripeBytes;
  }
  disk?.close();
  return { findings, stripeBytes };
}

/**
 * Findings for what couldn't be had: the user's sentences, divided where the remedy begins.
 * @param remedy where a sentence has none
 */
export function failures(
  check: string,
  error: unknown,
  remedy = 'Name another one in the configuration.',
): Finding[] {
  if (!(error instanceof UserError)) {
    return [fail(check, errorName(error), 'See the log with --log-level debug.')];
  }
  return error.message.split('\n').map((line) => {
    const at = line.lastIndexOf('; ');
    if (at < 0) return fail(check, line, remedy);
    const own = line.slice(at + 2);
    return fail(check, line.slice(0, at), `${own[0].toUpperCase()}${own.slice(1)}.`);
  });
}

/** Opens a file to be looked at beside whoever serves it. */
function look({ directIo }: DeviceConfig, path: string, log: Log): Promise<Disk> {
  const settings = { ioEngine: 'sync', writeThrough: false, readOnly: true } as const;
  return openDisk({ path, directIo, lockWaitMs: null, ...settings }, log);
}

function describe({ path, facts }: Disk): string {
  const kind = facts.isBlockDevice ? 'a block device' : 'a file';
  return `'${path}' is ${kind} of ${sizeText(facts.sizeBytes)}`;
}

function checkFile(config: DeviceConfig, disk: Disk, host: Host): Finding[] {
  const stat = statSync(config.path, { bigint: true });
  const findings = [checkPermission(config.path, stat)];
  if (!disk.facts.isBlockDevice) findings.push(checkFileSystem(config.path), checkRoom(disk, stat));
  findings.push(checkDirect(config, disk), checkAlignment(disk, stat, host));
  findings.push(checkWriteCache(disk, stat, host));
  return findings;
}

function checkPermission(path: string, { mode, uid }: BigIntStats): Finding {
  const check = 'permission';
  const refused = (mode & 0o222n) === 0n ? 'EACCES' : refusedToWrite(path);
  if (refused !== null) {
    return warn(
      check,
      `'${path}' may not be written (${refused}): the disk is read-only`,
      refused === 'EROFS'
        ? 'Mount its file system read-write.'
        : 'Run chmod u+w on it, as its owner, and serve as a user who may write it.',
    );
  }
  if ((mode & 0o007n) !== 0n) {
    const shown = (mode & 0o777n).toString(8);
    return warn(check, `anybody may open '${path}' (mode ${shown})`, 'Run chmod o= on it.');
  }
  return ok(check, `mode ${(mode & 0o777n).toString(8)}, of user ${uid}`);
}

/** @returns why this user may not write a file; null where it may */
function refusedToWrite(path: string): string | null {
  try {
    accessSync(path, constants.W_OK);
    return null;
  } catch (error) {
    return errorName(error);
  }
}

function checkFileSystem(path: string): Finding {
  const check = 'file system';
  const { type } = statfsSync(path);
  const known = FILE_SYSTEMS[type >>> 0];
  if (!known) return ok(check, `of type 0x${(type >>> 0).toString(16)}`);
  if (known.problem === undefined) return ok(check, known.name);
  return warn(check, `${known.name} ${known.problem}`, 'Use ext4 or xfs on a local disk.');
}

/** A sparse file may come to need more than there is. */
function checkRoom({ facts }: Disk, { blocks }: BigIntStats): Finding {
  const check = 'free space';
  const { bavail, bsize } = statfsSync(`/proc/self/fd/${facts.fd}`);
  const free = bavail * bsize;
  const missing = Math.max(facts.sizeBytes - Number(blocks) * 512, 0);
  const rounded = (bytes: number) => sizeText(Math.round(bytes));
  if (missing <= free) return ok(check, `${rounded(free)} for ${rounded(missing)} not yet written`);
  return warn(
    check,
    `${rounded(missing)} of the disk are not written yet, but only ${rounded(free)} are free`,
    'Make room: writes fail with ENOSPC when there is none.',
  );
}

function checkDirect({ directIo }: DeviceConfig, { facts }: Disk): Finding {
  const check = 'direct I/O';
  if (!directIo) {
    const remedy = "Leave 'direct_io' out, unless the page cache is wanted.";
    return warn(check, "'direct_io: false': the host's page cache is in between", remedy);
  }
  if (!facts.direct) {
    const remedy = "Use ext4 or xfs, or set 'direct_io: false' to say that it is meant.";
    return warn(check, 'the file system refuses O_DIRECT', remedy);
  }
  return ok(check, `in units of ${facts.directOffsetAlign} bytes`);
}

function checkAlignment({ facts }: Disk, { rdev }: BigIntStats, host: Host): Finding {
  const check = 'alignment';
  const { sizeBytes, physicalBlock, isBlockDevice } = facts;
  const offset = isBlockDevice ? host.read(`${deviceFolder(rdev)}/alignment_offset`) : null;
  if (offset !== null && offset !== '0') {
    return warn(
      check,
      `the device begins ${offset} bytes beside a physical block`,
      'Make the partition anew, at a multiple of 1 MiB.',
    );
  }
  const unit = Math.max(physicalBlock, PAGE_BYTES);
  if (sizeBytes % unit !== 0) {
    return warn(
      check,
      `the size is no multiple of ${unit} bytes`,
      `Grow it to ${Math.ceil(sizeBytes / unit) * unit} bytes, before a guest uses it.`,
    );
  }
  return ok(check, `the size is a multiple of ${unit} bytes`);
}

function checkWriteCache({ facts }: Disk, { dev, rdev }: BigIntStats, host: Host): Finding {
  const check = 'write cache';
  const folder = deviceFolder(facts.isBlockDevice ? rdev : dev);
  // A partition's is that of its disk.
  const cache =
    host.read(`${folder}/queue/write_cache`) ?? host.read(`${folder}/../queue/write_cache`);
  if (cache === null) return ok(check, 'the device below is not known');
  if (cache === 'write back') return ok(check, 'the device has one, which flushes empty');
  return ok(check, 'the device has none, or one that survives a power cut: flushes are cheap');
}

function deviceFolder(number: bigint): string {
  const major = ((number >> 8n) & 0xfffn) | ((number >> 32n) & ~0xfffn);
  const minor = (number & 0xffn) | ((number >> 12n) & ~0xffn & 0xffffffffn);
  return `/sys/dev/block/${major}:${minor}`;
}

async function checkMetadata(
  config: DeviceConfig,
  path: string,
  { facts }: Disk,
  xts: number,
  log: Log,
): Promise<{ findings: Finding[]; stripeBytes: number | null }> {
  const { directIo } = config;
  try {
    const options = { directIo, writeThrough: false, xts, diskBytes: facts.sizeBytes };
    const metadata = await openMetadata(path, { ...options, use: 'look' }, log);
    const { stripes, stripeBytes } = metadata.layout;
    await metadata.close();
    const message = `'${path}' has ${stripes} stripes of ${sizeText(stripeBytes)}`;
    return { findings: [ok('metadata', message)], stripeBytes };
  } catch (error) {
    return { findings: failures('metadata', error), stripeBytes: null };
  }
}

/** The folder of a server's socket that can be made. */
export function checkSocketFolder(name: string, path: string): Finding {
  const folder = dirname(resolve(path));
  const { mode } = statSync(folder);
  if ((mode & 0o002) !== 0 && (mode & 0o1000) === 0) {
    return warn(name, `anybody may replace what is in '${folder}'`, 'Run chmod o-w on it.');
  }
  return ok(name, `'${path}'`);
}
