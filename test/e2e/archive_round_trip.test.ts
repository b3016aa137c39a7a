/** Archives of disks of every kind, in folders and in S3, compared with the disk byte by byte. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test';
import { readFileSync, statSync } from 'node:fs';
import {
  archive,
  archivedDisk,
  CONTENTS,
  compareLazily,
  fillDisk,
  folderPlace,
  type Place,
  S3Server,
  STRIPE_BYTES,
  sizeOf,
  targetConfig,
} from './archives.ts';
import { client } from './processes.ts';
import { Bed, matrix, seed } from './support.ts';

setDefaultTimeout(60_000);

const STRIPES = 40;
const FORMS = {
  '1 none': [],
  '1 snappy': ['--compress'],
  '2 none': ['--format', '2'],
  '2 zstd': ['--format', '2', '--compression', 'zstd'],
} as const;

let s3: S3Server;
beforeAll(async () => {
  s3 = await S3Server.start();
}, 150_000);
afterAll(() => s3?.stop());

const rows = matrix({
  store: ['filesystem', 's3'],
  form: Object.keys(FORMS) as (keyof typeof FORMS)[],
  encrypted: [true, false],
  content: CONTENTS,
  disk: ['plain', 'encrypted'],
} as const);

let buckets = 0;
async function placeOf(bed: Bed, store: 'filesystem' | 's3'): Promise<Place> {
  if (store === 'filesystem') return folderPlace(bed);
  const bucket = `round-trip-${buckets++}`;
  await s3.bucket(bucket);
  return s3.place(bucket);
}

for (const { store, form, encrypted, content, disk } of rows) {
  const name = `${store}, format ${form}, encrypted=${encrypted}, ${content}, ${disk} disk`;
  test(`what was archived comes back: ${name}`, async () => {
    await using bed = new Bed();
    const sizeBytes = sizeOf(content, STRIPES);
    const image = bed.disk({ sizeBytes });
    fillDisk(image, content, sizeBytes, seed);
    const place = await placeOf(bed, store);
    const target = ['--target-config', targetConfig(bed, place)];
    const { config } = await archivedDisk(bed, image, { encrypted: disk === 'encrypted' });
    const stats = bed.path('stats.json');
    const options = [...FORMS[form], ...(encrypted ? ['--encrypt'] : []), '--stats', stats];
    const made = await archive(bed, ['--config', config, ...target, ...options, '--json']);
    const { stripes, archived, storedBytes } = JSON.parse(made.stdout);
    // No writes were recorded, so any stripe may have been written to.
    expect({ stripes, archived }).toEqual({ stripes: STRIPES, archived: STRIPES });
    expect(JSON.parse(readFileSync(stats, 'utf8'))).toEqual({
      physical_size_bytes: storedBytes,
      logical_size_bytes: sizeBytes,
    });

    const verified = JSON.parse((await archive(bed, ['verify', ...target, '--json'])).stdout);
    expect(verified).toMatchObject({ stripes: STRIPES, problems: 0 });
    const listed = JSON.parse((await archive(bed, ['list', ...target, '--json'])).stdout);
    expect(listed).toMatchObject({ diskBytes: sizeBytes, missing: 0, unused: 0, encrypted });
    expect(listed.objectBytes + listed.headBytes).toBe(storedBytes);

    const exported = bed.path('exported.raw');
    await archive(bed, ['export', ...target, exported]);
    await bed.run(['cmp', image, exported]);
    if (content === 'zero') expect(statSync(exported).blocks).toBe(0);
    const lazy = { encrypted: disk === 'plain', autofetch: encrypted };
    await compareLazily(bed, place, image, sizeBytes, lazy);
  }, 90_000);
}

test('equal stripes are one object, and what compresses is smaller', async () => {
  await using bed = new Bed();
  const sizeBytes = sizeOf('repeated', 200);
  const image = bed.disk({ sizeBytes });
  fillDisk(image, 'repeated', sizeBytes, seed);
  const target = ['--target-config', targetConfig(bed, folderPlace(bed))];
  const { config } = await archivedDisk(bed, image);
  await archive(bed, ['create', '--config', config, ...target, '--compress']);
  const { stdout } = await archive(bed, ['list', ...target, '--json']);
  const { dedupeRatio, compressionRatio, objects } = JSON.parse(stdout);
  expect(objects).toBeLessThan(120);
  expect(dedupeRatio).toBeCloseTo(200 / objects, 2);
  expect(compressionRatio).toBeGreaterThan(1.8);
});

test('behind the end of the disk the last object holds zeroes, and nothing of other stripes', async () => {
  await using bed = new Bed();
  const sizeBytes = sizeOf('partial', STRIPES);
  const image = bed.disk({ sizeBytes });
  fillDisk(image, 'partial', sizeBytes, seed);
  for (const encrypted of [false, true]) {
    const { config } = await archivedDisk(bed, image, { encrypted });
    const folder = bed.path(`archive-${encrypted}`);
    const place = { type: 'filesystem', path: folder };
    await archive(bed, ['--config', config, '--target-config', targetConfig(bed, place)]);
    const hashes = JSON.parse(readFileSync(`${folder}/stripe-hashes.json`, 'utf8'));
    const object = readFileSync(`${folder}/data/${hashes[STRIPES - 1]}`);
    const end = sizeBytes % STRIPE_BYTES;
    const last = readFileSync(image).subarray(-end);
    expect(object.equals(Buffer.concat([last, Buffer.alloc(STRIPE_BYTES - end)]))).toBe(true);
  }
});

test('stripes that were never written to and have no source are left out where writes are recorded', async () => {
  await using bed = new Bed();
  const sizeBytes = sizeOf('random', STRIPES);
  const image = bed.disk({ sizeBytes });
  const settings = { track_written: true };
  const { config } = await archivedDisk(bed, image, { settings });
  const server = await bed.serve(image, { metadata_path: `${image}.meta`, ...settings });
  const served = `driver=virtio-blk-vhost-user,path=${server.socket},cache.direct=on`;
  const io = [
    client('qemu-io'),
    '--image-opts',
    served,
    '-c',
    'write -P 7 128k 64k',
    '-c',
    'flush',
  ];
  await bed.run(io);
  await bed.stop(server);
  const target = ['--target-config', targetConfig(bed, folderPlace(bed))];
  const made = await archive(bed, ['--config', config, ...target, '--json']);
  expect(JSON.parse(made.stdout)).toMatchObject({ stripes: STRIPES, archived: 1 });
  await archive(bed, ['export', ...target, bed.path('exported.raw')]);
  await bed.run(['cmp', image, bed.path('exported.raw')]);
});

test('stripes that are still to be fetched come from the source: a raw image, and another archive', async () => {
  await using bed = new Bed();
  const sizeBytes = sizeOf('partial', STRIPES);
  const image = bed.disk({ sizeBytes });
  fillDisk(image, 'partial', sizeBytes, seed);
  const first = folderPlace(bed, 'first');
  const target = ['--target-config', targetConfig(bed, first)];
  const source = { source: 'raw', path: image } as unknown as string;
  const empty = bed.disk({ sizeBytes });
  const { config } = await archivedDisk(bed, empty, { settings: { stripe_source: source } });
  await archive(bed, ['--config', config, ...target, '--encrypt', '--compress']);

  const again = { source: 'archive', ...first } as unknown as string;
  const settings = { stripe_source: again, copy_on_read: true };
  const other = await archivedDisk(bed, bed.disk({ sizeBytes }), { encrypted: true, settings });
  const second = ['--target-config', targetConfig(bed, folderPlace(bed, 'second'))];
  await archive(bed, ['--config', other.config, ...second, '--format', '2']);
  await archive(bed, ['export', ...second, bed.path('exported.raw')]);
  await bed.run(['cmp', image, bed.path('exported.raw')]);
});
