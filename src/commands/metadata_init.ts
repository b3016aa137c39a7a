import type { DeviceConfig } from '../config/device_config.ts';
import { freeXts } from '../crypto/xts.ts';
import { type Disk, openDisk } from '../device/disk.ts';
import { UsageError, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { initMetadata, LOCK_WAIT_MS } from '../stripe/metadata_init.ts';
import {
  countStripes,
  MAX_SHIFT,
  MAX_STRIPES,
  MetadataLayout,
  type MetadataVersion,
  MIN_SHIFT,
  stripeCount,
} from '../stripe/metadata_layout.ts';
import { HAS_SOURCE } from '../stripe/shared_state.ts';
import type { SourceExtent } from '../stripe/sources/extent.ts';
import type { Arguments } from './arguments.ts';
import { exitOnSignals } from './end_signals.ts';
import { readMetadataSettings } from './metadata_settings.ts';
import { writeOutput } from './output.ts';
import { Progress } from './progress.ts';
import { sourceExtent } from './stripe_sources.ts';

/** As the reference system's program: stripes of 1 MiB. */
const DEFAULT_SHIFT = 11;

export interface Geometry {
  shift: number;
  version: MetadataVersion;
}

/** `ubiblk metadata init`: makes the metadata file of a disk (docs/metadata.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const geometry = readGeometry(args);
  const settings = readMetadataSettings(args, log);
  const progress = new Progress();
  exitOnSignals((signal) => {
    progress.clear();
    log.error(`${signal}: ended before everything was done`);
  });
  try {
    const { config, metadataPath, xts } = settings;
    const force = args.has('force');
    const line = await initDisk(config, metadataPath, xts, geometry, force, progress, log);
    progress.clear();
    settings.finish();
    writeOutput(line);
  } finally {
    progress.clear();
    settings.wipeSecrets();
    freeXts(settings.xts);
  }
  return 0;
}

function readGeometry(args: Arguments): Geometry {
  const shiftText = args.value('stripe-sector-count-shift') ?? String(DEFAULT_SHIFT);
  const shift = Number(shiftText);
  if (!/^\d+$/.test(shiftText) || shift < MIN_SHIFT || shift > MAX_SHIFT) {
    throw new UsageError(
      `--stripe-sector-count-shift must be a whole number from ${MIN_SHIFT} (stripes of 32 KiB) to ` +
        `${MAX_SHIFT} (32 MiB), not '${shiftText}'`,
    );
  }
  const format = args.value('format') ?? '1';
  if (format !== '1' && format !== '2') {
    throw new UsageError(`--format must be one of 1, 2, not '${format}'`);
  }
  return { shift, version: format === '1' ? 1 : 2 };
}

/**
 * Makes the metadata file of a disk.
 * @param xts handle of the expanded keys; 0: the disk is plain
 * @param force whether a file that holds something may be overwritten
 * @returns the line that says what was made
 * @throws UserError
 */
export async function initDisk(
  config: DeviceConfig,
  metadataPath: string,
  xts: number,
  { shift, version }: Geometry,
  force: boolean,
  progress: Progress,
  log: Log,
): Promise<string> {
  const disk = await openDisk(
    { ...config, directIo: false, writeThrough: false, lockWaitMs: LOCK_WAIT_MS },
    log,
  );
  try {
    const { sizeBytes } = disk.facts;
    const layout = new MetadataLayout(version, shift, checkedCount(disk, shift));
    const source = await sourceExtent(config.stripeSource, layout.stripeBytes, log);
    checkSource(disk, source);
    const headers = new Uint8Array(layout.stripes);
    for (let stripe = 0; stripe < headers.length; stripe++) {
      if (source.has(stripe)) headers[stripe] = HAS_SOURCE;
    }
    const update = (doneBytes: number, totalBytes: number) =>
      progress.update(doneBytes, totalBytes);
    await initMetadata(
      { path: metadataPath, layout, headers, diskBytes: sizeBytes, xts, force, progress: update },
      log,
    );
    const withSource = countStripes(headers, HAS_SOURCE);
    const origin = config.stripeSource
      ? `${withSource} of them in the source ${source.description}`
      : 'no source';
    return (
      `'${metadataPath}': version ${version}.0${xts === 0 ? '' : ', encrypted'}, ` +
      `${layout.stripes} stripes of ${layout.stripeBytes} bytes, ${origin}\n`
    );
  } finally {
    disk.close();
  }
}

function checkedCount({ path, facts }: Disk, shift: number): number {
  const stripes = stripeCount(facts.sizeBytes, shift);
  if (stripes > MAX_STRIPES) {
    throw new UserError(
      `'${path}' would have ${stripes} stripes, more than the ${MAX_STRIPES} that are possible; make ` +
        'them larger with -s',
    );
  }
  return stripes;
}

function checkSource({ path, facts }: Disk, source: SourceExtent): void {
  const needed = source.leastDiskBytes ?? source.sizeBytes;
  if (needed <= facts.sizeBytes) return;
  throw new UserError(
    `the disk '${path}' has ${facts.sizeBytes} bytes, less than its source ${source.description}; grow ` +
      `the disk to ${source.sizeBytes} bytes or more (truncate -s ${source.sizeBytes})`,
  );
}
