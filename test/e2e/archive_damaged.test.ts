/** Archives that are damaged, or were changed by somebody. */
import { expect, setDefaultTimeout, test } from 'bun:test';
import { existsSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import {
  archive,
  archivedDisk,
  archiveKek,
  fillDisk,
  folderPlace,
  kekFile,
  type Place,
  SHIFT,
  sizeOf,
  targetConfig,
} from './archives.ts';
import { binary } from './processes.ts';
import { Bed, Random, type Settings, seed, soak } from './support.ts';

setDefaultTimeout(60_000);

const sizeBytes = sizeOf('partial', 12);
const FLIPS = soak ? 2000 : 40;

async function prepare(bed: Bed, options: string[], place: Place = folderPlace(bed)) {
  const image = bed.disk({ sizeBytes });
  fillDisk(image, 'partial', sizeBytes, seed);
  const target = ['--target-config', targetConfig(bed, place)];
  const { config } = await archivedDisk(bed, image);
  await archive(bed, ['--config', config, ...target, ...options]);
  return { image, target, config, folder: bed.path('archive') };
}

const forms: [string, string[]][] = [
  ['format 1', []],
  ['format 1, snappy, encrypted', ['--compress', '--encrypt']],
  ['format 2', ['--format', '2']],
  ['format 2, zstd, encrypted', ['--format', '2', '--compress', '--encrypt']],
];

/** Exports; a failure must be told in a sentence. @returns whether it worked */
async function exports(bed: Bed, target: string[]): Promise<boolean> {
  const exported = bed.path('exported.raw');
  const child = bed.spawn([binary, 'archive', 'export', ...target, '--force', exported]);
  const status = await child.exit(20_000);
  if (status === 0) return true;
  expect(status).toBe(1);
  expect(child.stderr.text).toMatch(/^\[ERROR archive-export\] \S.* in '.*\n$/);
  expect(child.stderr.text).not.toMatch(/internal error/);
  rmSync(`${exported}.partial`, { force: true });
  rmSync(`${exported}.partial.note`, { force: true });
  return false;
}

test.each(forms)(
  'a bit that flips anywhere is told, or changes nothing: %s',
  async (_, options) => {
    await using bed = new Bed();
    const { image, target, folder } = await prepare(bed, options);
    const random = new Random(seed);
    const heads = readdirSync(folder).filter((name) => name !== 'data');
    const objects = readdirSync(join(folder, 'data')).map((name) => `data/${name}`);
    let told = 0;
    for (let flip = 0; flip < FLIPS; flip++) {
      const name = random.chance(4) ? random.pick(objects) : random.pick(heads);
      const path = join(folder, name);
      const bytes = readFileSync(path);
      const changed = Buffer.from(bytes);
      const at = random.below(changed.length);
      changed[at] ^= 1 << random.below(8);
      writeFileSync(path, changed);
      if (await exports(bed, target)) {
        const same = readFileSync(image).equals(readFileSync(bed.path('exported.raw')));
        expect({ name, at, byte: changed[at], same }).toMatchObject({ same: true });
      } else {
        told++;
      }
      writeFileSync(path, bytes);
    }
    expect(told).toBeGreaterThan(FLIPS * 0.7);
  },
  soak ? 900_000 : 120_000,
);

test('verify names every object that is damaged, missing or of another length', async () => {
  await using bed = new Bed();
  const { target, folder } = await prepare(bed, ['--compress']);
  const names = readdirSync(join(folder, 'data'));
  const path = (i: number) => join(folder, 'data', names[i]);
  rmSync(path(0));
  writeFileSync(path(1), readFileSync(path(1)).subarray(0, 100));
  writeFileSync(path(2), Buffer.alloc(1 << 20));
  writeFileSync(path(3), readFileSync(path(4)));
  const kek = kekFile(bed, 'none');
  const argv = ['verify', ...target, '--json', '--kek', kek.file, '--unlink-kek'];
  const { stdout, stderr } = await archive(bed, argv, { expect: 1 });
  // Who looks again needs it.
  expect(existsSync(kek.file)).toBe(true);
  expect(JSON.parse(stdout)).toMatchObject({ problems: 4 });
  for (const i of [0, 1, 2, 3]) expect(stderr).toContain(names[i]);
  expect(stderr.trim().split('\n')).toHaveLength(4);
  expect(stderr).toMatch(/is missing in the archive/);
  expect(stderr).toMatch(/has other bytes than its name says/);
  expect(stderr).toMatch(/has 1048576 bytes, more than the \d+ that a stripe takes/);
});

test('an index of another run is not taken for this one: format 1, encrypted', async () => {
  await using bed = new Bed();
  const first = await prepare(bed, ['--encrypt']);
  const kept = readFileSync(join(first.folder, 'stripe-hashes.json'));
  await archive(bed, ['--config', first.config, ...first.target, '--encrypt', '--force']);
  writeFileSync(join(first.folder, 'stripe-hashes.json'), kept);
  const { stderr } = await archive(bed, ['verify', ...first.target], { expect: 1 });
  expect(stderr).toMatch(/'stripe-hashes.json' of the archive in .* was changed, or is damaged/);
});

/** As an older run, which knows no digest of the index, would have left it. */
function replaceIndex(folder: string, index: Record<string, string>): void {
  const description = JSON.parse(readFileSync(join(folder, 'metadata.json'), 'utf8'));
  const { check: _, index_sha256: __, ...older } = description;
  writeFileSync(join(folder, 'metadata.json'), JSON.stringify(older));
  writeFileSync(join(folder, 'stripe-hashes.json'), JSON.stringify(index));
}

test('a path in the place of a hash is refused', async () => {
  await using bed = new Bed();
  const { target, folder } = await prepare(bed, []);
  replaceIndex(folder, { 0: '../../../../etc/passwd' });
  const { stderr } = await archive(bed, ['export', ...target, bed.path('x')], { expect: 1 });
  expect(stderr).toMatch(/stripe 0 something else than 64 lower-case hexadecimal digits/);
});

test('a stripe behind the end of the disk is refused', async () => {
  await using bed = new Bed();
  const { target, folder } = await prepare(bed, []);
  replaceIndex(folder, { 1000000: '00'.repeat(32) });
  const { stderr } = await archive(bed, ['verify', ...target], { expect: 1 });
  expect(stderr).toMatch(/lists stripe 1000000, behind the end of a disk of \d+ bytes/);
});

const other = { ...archiveKek, key: Buffer.alloc(32, 1).toString('base64') };

test.each(forms.filter(([, options]) => options.length > 0))(
  'another KEK, and none, are told: %s',
  async (_, options) => {
    await using bed = new Bed();
    const { folder } = await prepare(bed, options);
    for (const kek of [{ archive_kek: other }, {}]) {
      const config = targetConfig(bed, { type: 'filesystem', path: folder, ...kek });
      const { stderr } = await archive(bed, ['verify', '--target-config', config], { expect: 1 });
      expect(stderr).toMatch(/'metadata.json' of the archive in .*'archive_kek'/);
    }
  },
);

test('what is no archive, and one that is not complete, are told; nothing is made where something is read', async () => {
  await using bed = new Bed();
  const { target, folder } = await prepare(bed, []);
  renameSync(join(folder, 'stripe-hashes.json'), bed.path('kept'));
  const incomplete = await archive(bed, ['list', ...target], { expect: 1 });
  expect(incomplete.stderr).toMatch(/is not complete: it has no 'stripe-hashes.json'; run/);
  const place = { type: 'filesystem', path: bed.path('mistyped') };
  const nowhere = ['--target-config', targetConfig(bed, place)];
  for (const command of ['list', 'verify', 'gc', 'export']) {
    const argv =
      command === 'export' ? [command, ...nowhere, bed.path('x')] : [command, ...nowhere];
    const { stderr } = await archive(bed, argv, { expect: 1 });
    expect(stderr).toMatch(/there is no archive in '.*mistyped': it has no 'metadata.json'/);
  }
  await archive(bed, ['gc', ...nowhere, '--delete'], { expect: 1 });
  expect(readdirSync(bed.folder).filter((name) => /mistyped|partial/.test(name))).toEqual([]);
});

test('a lazy disk of another stripe size is refused, and so is one that is too small', async () => {
  await using bed = new Bed();
  const place = folderPlace(bed);
  await prepare(bed, [], place);
  const source = { source: 'archive', ...place } as unknown as string;
  const settings: Settings = { stripe_source: source, copy_on_read: true };
  const init = async (diskBytes: number, shift: number) => {
    const path = bed.disk({ sizeBytes: diskBytes });
    const config = bed.config({ path, metadata_path: `${path}.meta`, ...settings });
    const argv = [binary, 'metadata', 'init', '--config', config, '-s', String(shift)];
    return (await bed.run(argv, { expect: 1 })).stderr.text;
  };
  expect(await init(sizeBytes, SHIFT + 1)).toMatch(
    /has stripes of 65536 bytes, .* have 131072; make/,
  );
  expect(await init(sizeBytes - 512, SHIFT)).toMatch(
    new RegExp(`grow the disk to ${sizeBytes} bytes`),
  );
});

test('an archive that is damaged is told at the start of a server, and its objects when they are read', async () => {
  await using bed = new Bed();
  const place = folderPlace(bed);
  const { folder } = await prepare(bed, ['--format', '2'], place);
  const source = { source: 'archive', ...place } as unknown as string;
  const disk = bed.disk({ sizeBytes });
  const settings: Settings = {
    metadata_path: `${disk}.meta`,
    stripe_source: source,
    copy_on_read: true,
  };
  const config = bed.config({ path: disk, ...settings });
  await bed.run([binary, 'metadata', 'init', '--config', config, '-s', String(SHIFT)]);
  const index = readFileSync(join(folder, 'stripe-mapping'));
  writeFileSync(join(folder, 'stripe-mapping'), index.subarray(0, index.length - 1));
  const refused = bed.spawn([
    ...[binary, 'serve', 'vhost', '--config', config, '--socket', bed.path('s')],
  ]);
  expect(await refused.exit(20_000)).toBe(1);
  expect(refused.stderr.text).toMatch(/'stripe-mapping' of the archive in .* damaged/);
  writeFileSync(join(folder, 'stripe-mapping'), index);
  const [name] = readdirSync(join(folder, 'data'));
  const object = readFileSync(join(folder, 'data', name));
  object[5] ^= 1;
  writeFileSync(join(folder, 'data', name), object);
  const server = await bed.serve(disk, { ...settings, autofetch: true });
  await server.child.said(/has other bytes than its name says/, 20_000, 0, server.child.stderr);
  object[5] ^= 1;
  writeFileSync(join(folder, 'data', name), object);
  await bed.stop(server);
});
