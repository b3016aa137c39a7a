/** Runs that are killed at random moments, or told to end: what is there afterwards, and going on. */
import { expect, setDefaultTimeout, test } from 'bun:test';
import { existsSync, readdirSync, statSync } from 'node:fs';
import { archive, archivedDisk, fillDisk, folderPlace, sizeOf, targetConfig } from './archives.ts';
import { binary } from './processes.ts';
import { Bed, Random, seed, soak } from './support.ts';

setDefaultTimeout(60_000);

const ROUNDS = soak ? 100 : 12;
const STRIPES = 320;
const sizeBytes = sizeOf('partial', STRIPES);

/** Two disks, the archive of the first one, and how long that took. */
async function prepare(bed: Bed, options: string[]) {
  const images = [seed, seed + 1].map((start) => {
    const image = bed.disk({ sizeBytes });
    fillDisk(image, 'partial', sizeBytes, start);
    return image;
  });
  const configs: string[] = [];
  for (const image of images) configs.push((await archivedDisk(bed, image)).config);
  const place = folderPlace(bed);
  const target = ['--target-config', targetConfig(bed, place)];
  const beganMs = performance.now();
  await archive(bed, ['--config', configs[0], ...target, ...options]);
  return { images, configs, place, target, elapsedMs: performance.now() - beganMs };
}

/** Which of the disks the archive holds: it is whole, whatever has happened. */
async function held(bed: Bed, target: string[], images: string[]): Promise<number> {
  await archive(bed, ['verify', ...target]);
  await archive(bed, ['export', ...target, '--force', bed.path('exported.raw')]);
  for (const [i, image] of images.entries()) {
    const { stdout } = await bed.run([
      'sh',
      '-c',
      'cmp -s "$0" "$1" && echo same || echo other',
      image,
      bed.path('exported.raw'),
    ]);
    if (stdout.text === 'same\n') return i;
  }
  throw new Error('the archive holds neither of the disks');
}

const forms: [string, string[]][] = [
  ['format 1, plain', ['--compress']],
  ['format 1, encrypted', ['--encrypt', '--compress']],
  ['format 2, encrypted', ['--format', '2', '--encrypt']],
];

test.each(forms)(
  'an archive that is replaced by runs that are killed: %s',
  async (_, options) => {
    await using bed = new Bed();
    const { images, configs, target, elapsedMs } = await prepare(bed, options);
    const random = new Random(seed);
    let now = 0;
    for (let round = 0; round < ROUNDS; round++) {
      // Towards the other disk; it may go on with what the run before has left.
      const wanted = 1 - now;
      const resume = random.chance(2) ? ['--resume'] : [];
      const argv = ['--config', configs[wanted], ...target, ...options, '--force', ...resume];
      const child = bed.spawn([binary, 'archive', ...argv]);
      await Bun.sleep(random.below(elapsedMs * 1.1));
      child.signal('SIGKILL');
      await child.reaped(10_000);
      now = await held(bed, target, images);
    }
    await archive(bed, ['--config', configs[1], ...target, ...options, '--force', '--resume']);
    expect(await held(bed, target, images)).toBe(1);
    expect(readdirSync(bed.path('archive')).sort()).toHaveLength(3);
    await archive(bed, ['gc', ...target, '--delete']);
    const { stdout } = await archive(bed, ['list', ...target, '--json']);
    expect(JSON.parse(stdout)).toMatchObject({ unused: 0, missing: 0 });
    expect(await held(bed, target, images)).toBe(1);
  },
  180_000,
);

test.each(forms)(
  'a run that was told to end says how to go on, and what is there is kept: %s',
  async (_, options) => {
    await using bed = new Bed();
    const { configs, target } = await prepare(bed, options);
    const other = folderPlace(bed, 'other');
    const there = ['--target-config', targetConfig(bed, other)];
    const argv = [binary, 'archive', '--config', configs[0], ...there, ...options];
    // Anew until a signal comes in its middle.
    let left = 0;
    for (let attempt = 0; left === 0; attempt++) {
      const child = bed.spawn(argv);
      while (child.running && objectsIn(bed.path('other')) < 20) await Bun.sleep(1);
      child.signal('SIGINT');
      const status = await child.exit(10_000);
      if (status === 0) {
        expect(attempt).toBeLessThan(20);
        await bed.run(['rm', '-r', bed.path('other')]);
        continue;
      }
      expect(status).toBe(130);
      expect(child.stderr.text).toMatch(/SIGINT: ended before everything was done; to go on, give/);
      left = objectsIn(bed.path('other'));
    }
    await archive(bed, ['verify', ...there], { expect: 1 });
    const names = readdirSync(`${bed.path('other')}/data`);
    expect(names.filter((name) => name.endsWith('.tmp'))).toEqual([]);
    const args = ['--config', configs[0], ...there, ...options, '--resume', '--json'];
    const { kept, objects } = JSON.parse((await archive(bed, args)).stdout);
    expect(kept).toBe(left);
    expect(objectsIn(bed.path('other'))).toBe(objects);
    await archive(bed, ['verify', ...there]);
    await archive(bed, ['verify', ...target]);
  },
  60_000,
);

function objectsIn(folder: string): number {
  const data = `${folder}/data`;
  return existsSync(data) ? readdirSync(data).filter((name) => !name.startsWith('.')).length : 0;
}

test('a run that goes on with other options is refused, and so is gc without a word', async () => {
  await using bed = new Bed();
  const { configs, target } = await prepare(bed, ['--encrypt']);
  const argv = ['--config', configs[1], ...target, '--force', '--encrypt'];
  const child = bed.spawn([binary, 'archive', ...argv]);
  const note = `${bed.path('archive')}/resume.json`;
  while (child.running && !statSync(note, { throwIfNoEntry: false })?.size) await Bun.sleep(1);
  child.signal('SIGKILL');
  await child.reaped(10_000);
  const gc = await archive(bed, ['gc', ...target, '--delete'], { expect: 1 });
  expect(gc.stderr).toMatch(/a run was interrupted in .*--resume.*--abandon/);
  const other = [...argv, '--compress', '--resume'];
  const refused = await archive(bed, other, { expect: 1 });
  expect(refused.stderr).toMatch(/compression none, this one with snappy; go on with the same/);
  await archive(bed, ['gc', ...target, '--delete', '--abandon']);
  await archive(bed, ['verify', ...target]);
  expect(existsSync(`${bed.path('archive')}/resume.json`)).toBe(false);
});

test('an export that is killed goes on, and no partial image has its name', async () => {
  await using bed = new Bed();
  const { images, target, elapsedMs } = await prepare(bed, ['--compress', '--encrypt']);
  const random = new Random(seed);
  const exported = bed.path('image.raw');
  for (let round = 0; round < ROUNDS; round++) {
    const child = bed.spawn([binary, 'archive', 'export', ...target, exported]);
    await Bun.sleep(random.below(elapsedMs));
    child.signal('SIGKILL');
    await child.reaped(10_000);
    if (!existsSync(exported)) continue;
    await bed.run(['cmp', images[0], exported]);
    await bed.run(['rm', exported]);
  }
  await archive(bed, ['export', ...target, exported]);
  await bed.run(['cmp', images[0], exported]);
  expect(readdirSync(bed.folder).filter((name) => name.includes('partial'))).toEqual([]);
}, 120_000);

test('an export that was told to end writes only what is missing, and nothing of another archive', async () => {
  await using bed = new Bed();
  const { images, configs, target } = await prepare(bed, []);
  const exported = bed.path('image.raw');
  const interrupt = async () => {
    for (let attempt = 0; attempt < 30; attempt++) {
      const child = bed.spawn([binary, 'archive', 'export', ...target, exported]);
      while (child.running && !existsSync(`${exported}.partial`)) await Bun.sleep(1);
      await Bun.sleep(new Random(seed + attempt).below(30));
      child.signal('SIGINT');
      if ((await child.exit(10_000)) === 130 && existsSync(`${exported}.partial`)) return;
      await bed.run(['rm', '-f', exported]);
    }
    throw new Error('the export always ended before its signal');
  };
  await interrupt();
  const { stdout } = await archive(bed, ['export', ...target, exported, '--json']);
  const { kept, written, stripes } = JSON.parse(stdout);
  expect(kept + written).toBe(stripes);
  await bed.run(['cmp', images[0], exported]);
  await bed.run(['rm', exported]);

  await interrupt();
  await archive(bed, ['--config', configs[1], ...target, '--force']);
  const other = JSON.parse((await archive(bed, ['export', ...target, exported, '--json'])).stdout);
  expect(other.kept).toBe(0);
  await bed.run(['cmp', images[1], exported]);
}, 60_000);

test('two runs do not write at once', async () => {
  await using bed = new Bed();
  const { configs, target } = await prepare(bed, []);
  const argv = ['--config', configs[1], ...target, '--force'];
  const first = bed.spawn([binary, 'archive', ...argv]);
  // What has a note has its lock.
  const note = `${bed.path('archive')}/resume.json`;
  while (first.running && !statSync(note, { throwIfNoEntry: false })?.size) await Bun.sleep(1);
  first.signal('SIGSTOP');
  const second = await archive(bed, argv, { expect: 1 });
  expect(second.stderr).toMatch(/another run is writing to the archive .*wait for its end/);
  first.signal('SIGCONT');
  expect(await first.exit(20_000)).toBe(0);
});
