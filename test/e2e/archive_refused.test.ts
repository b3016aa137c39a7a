/** What `ubiblk archive` refuses, in which words, and what it warns of. */
import { expect, setDefaultTimeout, test } from 'bun:test';
import { chmodSync, existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { archive, archivedDisk, fillDisk, folderPlace, sizeOf, targetConfig } from './archives.ts';
import { binary } from './processes.ts';
import { Bed, type Settings, seed } from './support.ts';

setDefaultTimeout(60_000);

const sizeBytes = sizeOf('random', 4);

async function prepare(bed: Bed, settings: Settings = {}) {
  const image = bed.disk({ sizeBytes });
  fillDisk(image, 'random', sizeBytes, seed);
  const { config } = await archivedDisk(bed, image, { settings });
  const target = ['--target-config', targetConfig(bed, folderPlace(bed))];
  return { image, config, target, argv: ['--config', config, ...target] };
}

test.each<[string[], RegExp]>([
  [['--format', '3'], /--format must be one of 1, 2, not '3'/],
  [['--compression', 'zstd'], /must be one of none, snappy with --format 1, not 'zstd'/],
  [['--compression', 'snappy', '--format', '2'], /one of none, zstd with --format 2, not 'snappy'/],
  [['--zstd-level', '3'], /'--zstd-level' needs '--compression zstd'/],
  [['--format', '2', '-c', '--zstd-level', '23'], /whole number from 1 to 22, not '23'/],
  [['--format', '2', '-c', '--zstd-level', '0'], /whole number from 1 to 22, not '0'/],
  [['--compress', '--compression', 'none'], /exclude each other/],
  [['--unlink-kek'], /needs '--kek FILE'/],
  [['rest'], /unexpected argument 'rest'/],
])('arguments: %j', async (options, sentence) => {
  await using bed = new Bed();
  const argv = ['create', '--config', 'x', '--target-config', 'y', ...options];
  expect((await archive(bed, argv, { expect: 2 })).stderr).toMatch(sentence);
});

test('each command needs its options', async () => {
  await using bed = new Bed();
  const expectMissing = async (argv: string[], sentence: RegExp) =>
    expect((await archive(bed, argv, { expect: 2 })).stderr).toMatch(sentence);
  await expectMissing(['--target-config', 'x'], /'--config FILE' is required/);
  await expectMissing(['--config', 'x'], /'--target-config' is required/);
  for (const command of ['verify', 'list', 'gc']) {
    await expectMissing([command], /'--target-config' is required/);
  }
  await expectMissing(['export', '--target-config', 'x'], /argument IMAGE is missing/);
});

test.each<[string, string, RegExp]>([
  ['no type', 'path: a\n', /:1:1: type: is required/],
  ['an unknown type', 'type: tape\n', /type: must be 'filesystem' or 's3', not 'tape'/],
  ['no path', 'type: filesystem\n', /path: is required/],
  ['no bucket', 'type: s3\n', /bucket: is required/],
  ['a prefix with dots', 'type: s3\nbucket: b\nprefix: a/../b\n', /prefix: must not have/],
  [
    'half a KEK',
    'type: filesystem\npath: a\narchive_kek: {method: aes256-gcm}\n',
    /key: is required/,
  ],
])('a target configuration with %s', async (_, text, sentence) => {
  await using bed = new Bed();
  const file = bed.path('target.yaml');
  writeFileSync(file, text, { mode: 0o600 });
  const { stderr } = await archive(bed, ['list', '--target-config', file], { expect: 1 });
  expect(stderr).toMatch(sentence);
});

test('an archive that is there is replaced only with --force', async () => {
  await using bed = new Bed();
  const { argv, target } = await prepare(bed);
  await archive(bed, argv);
  const before = readFileSync(`${bed.path('archive')}/metadata.json`);
  const { stderr } = await archive(bed, argv, { expect: 1 });
  expect(stderr).toMatch(/there is an archive in '.*' already; give --force to replace it/);
  expect(readFileSync(`${bed.path('archive')}/metadata.json`).equals(before)).toBe(true);
  await archive(bed, [...argv, '--force', '--compress']);
  const listed = JSON.parse((await archive(bed, ['list', ...target, '--json'])).stdout);
  expect(listed).toMatchObject({ compression: 'snappy', unused: 4 });
  const dry = JSON.parse((await archive(bed, ['gc', ...target, '--json'])).stdout);
  expect(dry).toMatchObject({ unused: 4, deleted: false });
  expect(readdirSync(`${bed.path('archive')}/data`)).toHaveLength(8);
  const swept = JSON.parse((await archive(bed, ['gc', ...target, '--delete', '--json'])).stdout);
  expect(swept).toMatchObject({ unused: 4, deleted: true });
  await archive(bed, ['verify', ...target]);
});

test('a disk that is being served is refused, and --live says what is missing', async () => {
  await using bed = new Bed();
  const { image, argv } = await prepare(bed);
  const server = await bed.serve(image);
  const refused = await archive(bed, argv, { expect: 1 });
  expect(refused.stderr).toMatch(
    /is in use by another process, which holds its lock; stop that one/,
  );
  const live = await archive(bed, [...argv, '--live'], { expect: 1 });
  expect(live.stderr).toMatch(/--live needs a server that can hold a disk at one consistent point/);
  expect(existsSync(bed.path('archive'))).toBe(false);
  await bed.stop(server);
  await archive(bed, argv);
});

test('keys in the clear are warned of loudly, unless that is meant', async () => {
  await using bed = new Bed();
  const { config } = await prepare(bed);
  const place = { type: 'filesystem', path: bed.path('plain') };
  const argv = ['--config', config, '--target-config', targetConfig(bed, place), '--force'];
  const warned = await archive(bed, [...argv, '--encrypt']);
  expect(warned.stderr).toMatch(/keys of the archive in .* go out IN THE CLEAR: WHOEVER CAN READ/);
  const tags = await archive(bed, [...argv, '--format', '2']);
  expect(tags.stderr).toMatch(
    /go out IN THE CLEAR: whoever can write to the archive can change it/,
  );
  const meant = await archive(bed, [...argv, '--encrypt', '--allow-plaintext-keys']);
  expect(meant.stderr).toBe('');
  const none = await archive(bed, argv);
  expect(none.stderr).toBe('');
});

test('an image that is there is replaced only with --force', async () => {
  await using bed = new Bed();
  const { image, argv, target } = await prepare(bed);
  await archive(bed, argv);
  const exported = bed.path('image.raw');
  writeFileSync(exported, 'mine');
  const { stderr } = await archive(bed, ['export', ...target, exported], { expect: 1 });
  expect(stderr).toMatch(/'.*image.raw' is there already; give --force to replace it/);
  expect(readFileSync(exported, 'utf8')).toBe('mine');
  await archive(bed, ['export', ...target, exported, '--force']);
  await bed.run(['cmp', image, exported]);
  await bed.run(['mkfifo', bed.path('fifo')]);
  for (const place of [bed.folder, bed.path('fifo')]) {
    const argv = ['export', ...target, place, '--force'];
    expect((await archive(bed, argv, { expect: 1 })).stderr).toMatch(
      /is no regular file; name one/,
    );
    expect(existsSync(`${place}.partial`)).toBe(false);
  }
  const lost = await archive(bed, ['export', ...target, bed.path('none/x')], { expect: 1 });
  expect(lost.stderr).toMatch(/can't be written: ENOENT/);
});

test('a folder that may not be written to, and a file in its place', async () => {
  await using bed = new Bed();
  const { config } = await prepare(bed);
  writeFileSync(bed.path('file'), '');
  const argv = (path: string) => {
    const place = { type: 'filesystem', path };
    return ['--config', config, '--target-config', targetConfig(bed, place)];
  };
  const file = await archive(bed, argv(bed.path('file')), { expect: 1 });
  expect(file.stderr).toMatch(/the archive '.*file' can't be written: E\w+/);
  const proc = await archive(bed, argv('/proc/archive'), { expect: 1 });
  expect(proc.stderr).toMatch(/the archive '\/proc\/archive' can't be written: ENOENT/);
});

test('--quiet prints nothing, and the names of the reference system work', async () => {
  await using bed = new Bed();
  const { image, config, target } = await prepare(bed);
  const made = await bed.run([binary, 'archive', '-f', config, ...target, '--quiet']);
  expect(made.stdout.text + made.stderr.text).toBe('');
  const kek = bed.path('kek.yaml');
  writeFileSync(kek, 'method: none\n');
  chmodSync(kek, 0o600);
  const folder = bed.path('bin');
  Bun.spawnSync(['mkdir', folder]);
  for (const name of ['archive', 'export-archive']) {
    Bun.spawnSync(['ln', '-s', binary, `${folder}/${name}`]);
  }
  await bed.run([
    `${folder}/archive`,
    '-f',
    config,
    ...target,
    '-c',
    '-e',
    '--force',
    '-k',
    kek,
    '-u',
  ]);
  expect(existsSync(kek)).toBe(false);
  await bed.run([`${folder}/export-archive`, ...target, bed.path('out.raw')]);
  await bed.run(['cmp', image, bed.path('out.raw')]);
  const version = await bed.run([`${folder}/archive`, '--version']);
  expect(version.stdout.text).toMatch(/^archive \d/);
});
