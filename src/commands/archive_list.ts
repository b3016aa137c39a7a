import { takeInventory } from '../archive/audit.ts';
import { describeCompression } from '../archive/compression.ts';
import { Archive } from '../archive/reader.ts';
import type { Log } from '../log.ts';
import { rows } from '../probe/report.ts';
import { sizeText } from '../size_text.ts';
import { withTarget } from './archive_target.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';

/** `ubiblk archive list`: shows what an archive holds (docs/archives.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  return await withTarget(args, log, async ({ store, kek }) => {
    const archive = await Archive.open(store, kek);
    try {
      const report = await reportOf(archive);
      writeOutput(args.has('json') ? `${JSON.stringify(report)}\n` : lines(report));
      return 0;
    } finally {
      archive.close();
    }
  });
}

type Report = Awaited<ReturnType<typeof reportOf>>;

async function reportOf(archive: Archive) {
  const { store, description, index, stripeBytes, stripes, sizeBytes, headBytes } = archive;
  const { unused, ...inventory } = await takeInventory(archive);
  const { objects, objectBytes } = inventory;
  return {
    archive: store.description,
    format: description.format,
    compression: describeCompression(description.compression),
    encrypted: description.encrypted,
    diskBytes: sizeBytes,
    diskSizeRecorded: description.diskBytes !== undefined,
    stripeBytes,
    stripes: { total: stripes, archived: index.listed, zero: index.zeroes },
    ...inventory,
    unused: unused.length,
    headBytes,
    /** Stripes for each object, and bytes of a stripe for each byte of an object. */
    dedupeRatio: ratio(index.listed - index.zeroes, index.objects),
    compressionRatio: ratio(objects * stripeBytes, objectBytes),
  };
}

function ratio(of: number, to: number): number | null {
  return to === 0 ? null : Math.round((of / to) * 1000) / 1000;
}

function lines(report: Report): string {
  const { stripes, missing, unused } = report;
  const recorded = report.diskSizeRecorded ? '' : ' (whole stripes: the size is not recorded)';
  const shown = (value: number | null) => (value === null ? '-' : String(value));
  const list: [string, string][] = [
    ['archive', report.archive],
    ['format', `${report.format}, ${report.encrypted ? 'encrypted' : 'not encrypted'}`],
    ['compression', report.compression],
    ['disk', `${sizeText(report.diskBytes)}${recorded}`],
    [
      'stripes',
      `${stripes.total} of ${sizeText(report.stripeBytes)}, ${stripes.archived} archived`,
    ],
    ['zero', `${stripes.zero} without an object`],
    ['objects', `${report.objects}, ${sizeText(report.objectBytes)}`],
    ['deduplication', shown(report.dedupeRatio)],
    ['compression ratio', shown(report.compressionRatio)],
  ];
  if (missing > 0) list.push(['missing', `${missing} objects: the archive is damaged`]);
  if (unused > 0) list.push(['unused', `${unused} objects, ${sizeText(report.unusedBytes)}`]);
  return rows(list);
}
