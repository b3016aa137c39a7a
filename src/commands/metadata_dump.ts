import { isatty } from 'node:tty';
import { freeXts } from '../crypto/xts.ts';
import { type Disk, openDisk } from '../device/disk.ts';
import { UsageError } from '../errors.ts';
import type { Log } from '../log.ts';
import { type OpenMetadata, openMetadata } from '../stripe/metadata_file.ts';
import { countStripes } from '../stripe/metadata_layout.ts';
import { FETCHED, HAS_SOURCE, WRITTEN } from '../stripe/shared_state.ts';
import type { Arguments } from './arguments.ts';
import { type MetadataSettings, readMetadataSettings } from './metadata_settings.ts';
import { writeOutput } from './output.ts';
import { stripeMap } from './stripe_map.ts';
import { jsonRangeTexts, rangeTexts } from './stripe_ranges.ts';
import { type SourceWords, sourceWords } from './stripe_sources.ts';

const STDOUT = 1;
/** Where it isn't a terminal that is drawn on. */
const DEFAULT_COLUMNS = 80;
const DEFAULT_ROWS = 20;

/** What is printed, in one form or another. */
interface Report extends MetadataSettings {
  disk: Disk;
  source: SourceWords;
  metadata: OpenMetadata;
}

const lists = [
  { name: 'fetched', key: 'fetched', bit: FETCHED },
  { name: 'written', key: 'written', bit: WRITTEN },
  { name: 'has-source', key: 'hasSource', bit: HAS_SOURCE },
] as const;

/** `ubiblk metadata dump`: prints what a metadata file says (docs/metadata.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  if (args.has('json') && args.has('map')) {
    throw new UsageError("options '--json' and '--map' exclude each other");
  }
  const settings = readMetadataSettings(args, log);
  try {
    const report = await read(settings, log);
    if (args.has('json')) printJson(report);
    else if (args.has('map')) printMap(report);
    else printLines(report);
    settings.finish();
  } finally {
    settings.wipeSecrets();
    freeXts(settings.xts);
  }
  return 0;
}

/** Opens all of it without locks, beside a server. */
async function read(settings: MetadataSettings, log: Log): Promise<Report> {
  const { config, metadataPath, xts } = settings;
  const { directIo, writeThrough } = config;
  const disk = await openDisk(
    { ...config, directIo: false, readOnly: true, lockWaitMs: null },
    log,
  );
  disk.close();
  const diskBytes = disk.facts.sizeBytes;
  const metadata = await openMetadata(
    metadataPath,
    { directIo, writeThrough, xts, diskBytes, use: 'look' },
    log,
  );
  await metadata.close();
  const source = await sourceWords(config.stripeSource, metadata.layout.stripeBytes, log);
  return { ...settings, disk, source, metadata };
}

/** The reference system's seven lines. */
function printLines({ disk, source, metadata }: Report): void {
  const { layout, headers } = metadata;
  writeOutput(
    `data file: ${disk.path} (${disk.facts.sizeBytes} bytes)\n` +
      `source: ${source.description}\n` +
      `metadata version: ${layout.version}.0\n` +
      `stripe size: ${layout.stripeBytes} bytes\n`,
  );
  for (const { name, bit } of lists) {
    writeOutput(`${name} stripes: `);
    for (const text of rangeTexts(headers, bit)) writeOutput(text);
    writeOutput('\n');
  }
}

function printJson({ config, disk, source, metadata, metadataPath, xts }: Report): void {
  const { layout, headers } = metadata;
  const report = {
    dataFile: { path: disk.path, bytes: disk.facts.sizeBytes },
    source: config.stripeSource
      ? { description: source.description, bytes: source.sizeBytes }
      : null,
    metadata: { path: metadataPath, version: `${layout.version}.0`, encrypted: xts !== 0 },
    stripes: {
      bytes: layout.stripeBytes,
      total: layout.stripes,
      lastBytes: lastStripeBytes(metadata, disk),
      fetched: countStripes(headers, FETCHED),
      written: countStripes(headers, WRITTEN),
      hasSource: countStripes(headers, HAS_SOURCE),
      missing: countStripes(headers, HAS_SOURCE | FETCHED, HAS_SOURCE),
    },
  };
  writeOutput(JSON.stringify(report).slice(0, -1));
  for (const { key, bit } of lists) {
    writeOutput(`,"${key}":[`);
    for (const text of jsonRangeTexts(headers, bit)) writeOutput(text);
    writeOutput(']');
  }
  writeOutput('}\n');
}

function printMap({ disk, metadata }: Report): void {
  const { layout, headers } = metadata;
  const terminal = isatty(STDOUT);
  writeOutput(
    stripeMap(headers, {
      columns: (terminal && process.stdout.columns) || DEFAULT_COLUMNS,
      rows: (terminal && process.stdout.rows) || DEFAULT_ROWS,
      colours: terminal && !process.env.NO_COLOR,
      stripeBytes: layout.stripeBytes,
      lastStripeBytes: lastStripeBytes(metadata, disk),
    }),
  );
}

function lastStripeBytes({ layout }: OpenMetadata, { facts }: Disk): number {
  return facts.sizeBytes - (layout.stripes - 1) * layout.stripeBytes;
}
