/** `ubiblk copy` between all that it knows, compared by tools that are not ours. */
import { expect, test } from 'bun:test';
import { existsSync, rmSync, statSync } from 'node:fs';
import { archivedDisk, folderPlace, targetConfig } from './archives.ts';
import { lazyDisk } from './lazy.ts';
import { compareImages, endNbd, MIB, nbdkit, nbdPrograms, serveNbd } from './nbd.ts';
import { binary } from './processes.ts';
import { Bed, need, quote, testKeys, testWith } from './support.ts';

const needs = nbdPrograms.map((name) => need.program(name));
const SIZE = 24 * MIB;

/** An image with data at both ends, in the middle, and zeroes that are written. */
async function image(bed: Bed, sizeBytes = SIZE): Promise<string> {
  const path = bed.disk({ sizeBytes });
  const script = [
    [0, 3],
    [150, 7],
    [Math.floor(sizeBytes / 65536) - 2, 2],
  ].map(
    ([seek, count]) =>
      `dd if=/dev/urandom of=${quote(path)} bs=64k conv=notrunc seek=${seek} count=${count}`,
  );
  script.push(`dd if=/dev/zero of=${quote(path)} bs=64k conv=notrunc seek=200 count=50`);
  await bed.run(['bash', '-ec', script.join('\n')]);
  return path;
}

const kibOf = (path: string) => statSync(path).blocks / 2;

test('a file is copied with its holes, and written zeroes become holes', async () => {
  await using bed = new Bed();
  const from = await image(bed);
  const to = bed.path('copy.raw');
  const { stdout } = await bed.run([binary, 'copy', '--json', from, to]);
  await bed.run(['cmp', from, to]);
  expect(JSON.parse(stdout.text)).toEqual({
    sizeBytes: SIZE,
    dataBytes: 62 * 65536,
    zeroBytes: SIZE - 62 * 65536,
    keptBytes: 0,
  });
  expect(kibOf(to)).toBeLessThan(13 * 64);
  expect(existsSync(`${to}.partial`)).toBe(false);
  const again = await bed.run([binary, 'copy', from, to], { expect: 1 });
  expect(again.stderr.text).toContain('give --force');
  await bed.run([binary, 'copy', '--force', '-q', from, to]);
});

test('an archive is copied as the disk that it is of', async () => {
  await using bed = new Bed();
  const from = await image(bed, SIZE + 512);
  const { config } = await archivedDisk(bed, from, { encrypted: false });
  const target = targetConfig(bed, folderPlace(bed));
  const create = ['--config', config, '--target-config', target, '--compress', '--encrypt'];
  await bed.run([binary, 'archive', ...create]);
  const to = bed.path('copy.raw');
  const { stdout } = await bed.run([binary, 'copy', '--json', target, to]);
  await bed.run(['cmp', from, to]);
  expect(JSON.parse(stdout.text)).toMatchObject({ sizeBytes: SIZE + 512, keptBytes: 0 });
  expect(kibOf(to)).toBeLessThan(20 * 64);
  const back = await bed.run([binary, 'copy', to, target], { expect: 1 });
  expect(back.stderr.text).toContain(
    "names an archive: 'ubiblk archive --target-config' makes one",
  );
});

test('a file of any length is copied', async () => {
  await using bed = new Bed();
  const from = await image(bed);
  await bed.run(['truncate', '-s', '9000001', from]);
  const to = bed.path('copy.raw');
  await bed.run([binary, 'copy', from, to]);
  await bed.run(['cmp', from, to]);
});

testWith(
  'NBD to file, file to NBD, NBD to NBD',
  needs,
  async () => {
    await using bed = new Bed();
    const from = await image(bed);
    const source = await nbdkit(bed, ['file', from], 'from.sock');
    const file = bed.path('copy.raw');
    const { stdout } = await bed.run([binary, 'copy', '--json', source.uri, file]);
    await bed.run(['cmp', from, file]);
    // Written zeroes are carried: the server says that they are data.
    expect(JSON.parse(stdout.text).dataBytes).toBe(62 * 65536);
    for (const argv of [
      ['memory', '24M'],
      ['--no-sr', 'memory', '24M'],
      ['--filter=nozero', 'memory', '25M'],
    ]) {
      const target = await nbdkit(bed, argv, `to${argv.length}${argv[0]}.sock`);
      // What is there is not zeroes.
      await bed.run(['qemu-io', '-f', 'raw', '-c', 'write -P 9 0 24M', target.uri]);
      await bed.run([binary, 'copy', source.uri, target.uri]);
      const back = bed.path('back.raw');
      await bed.run(['nbdcopy', target.uri, back]);
      await bed.run(['cmp', '-n', String(SIZE), from, back]);
    }
    const small = await nbdkit(bed, ['memory', '1M'], 'small.sock');
    const refused = await bed.run([binary, 'copy', from, small.uri], { expect: 1 });
    expect(refused.stderr.text).toContain('fewer than');
  },
  60_000,
);

testWith(
  'disks by their configuration: encrypted, lazy, to and from',
  needs,
  async () => {
    await using bed = new Bed();
    const from = await image(bed);
    const encrypted = bed.disk({ sizeBytes: SIZE });
    const config = bed.config({ path: encrypted, encryption_key: testKeys });
    await bed.run([binary, 'copy', from, config]);
    const back = bed.path('back.raw');
    await bed.run([binary, 'copy', config, back]);
    await bed.run(['cmp', from, back]);
    // What is on the disk is what a server of it shows.
    const server = await serveNbd(bed, encrypted, {}, { encrypted: true });
    await compareImages(bed, server.uri, from);
    const busy = await bed.run([binary, 'copy', '--force', config, back], { expect: 1 });
    expect(busy.stderr.text).toContain('in use by another process');
    await endNbd(server);
    const lazy = await lazyDisk(bed, { sizeBytes: 8 * MIB, imageBytes: 8 * MIB, shift: 9 });
    const filled = bed.path('lazy.raw');
    await bed.run([binary, 'copy', lazy.config, filled]);
    await bed.run(['cmp', filled, lazy.reference]);
    const refused = await bed.run([binary, 'copy', from, lazy.config], { expect: 1 });
    expect(refused.stderr.text).toContain("has 'metadata_path'");
  },
  60_000,
);

testWith(
  'holes that begin and end within a sector, to an encrypted disk',
  needs,
  async () => {
    await using bed = new Bed();
    const from = bed.path('from.raw');
    await bed.run([
      'bash',
      '-ec',
      `(head -c 1000 /dev/zero; yes) | head -c ${MIB} > ${quote(from)}`,
    ]);
    const argv = ['eval', 'get_size=echo 1M', 'can_extents=exit 0'];
    argv.push(`pread=tail -c +$(($4+1)) ${from} | head -c $3`);
    argv.push('extents=echo 0 1000 hole,zero; echo 1000 1047576');
    const source = await nbdkit(bed, argv);
    const config = bed.config({ path: bed.disk({ sizeBytes: MIB }), encryption_key: testKeys });
    await bed.run([binary, 'copy', source.uri, config]);
    const back = bed.path('back.raw');
    await bed.run([binary, 'copy', config, back]);
    await bed.run(['cmp', from, back]);
  },
  60_000,
);

testWith(
  'streams, both ways',
  needs,
  async () => {
    await using bed = new Bed();
    const from = await image(bed);
    await bed.run(['bash', '-ec', `${binary} copy ${quote(from)} - | cmp - ${quote(from)}`]);
    const target = await nbdkit(bed, ['memory', '24M']);
    await bed.run(['bash', '-ec', `cat ${quote(from)} | ${binary} copy - '${target.uri}'`]);
    await compareImages(bed, target.uri, from);
    const cut = await bed.run(
      ['bash', '-c', `set -o pipefail; ${binary} copy ${quote(from)} - | head -c 10`],
      { expect: 1 },
    );
    expect(cut.stderr.text).toContain('EPIPE');
    expect((await bed.run([binary, 'copy', '-', '-'], { expect: 2 })).stderr.text).toContain(
      "can't both",
    );
  },
  60_000,
);

test('a stream fills a new file, with holes, and a disk no further than it goes', async () => {
  await using bed = new Bed();
  const from = await image(bed, SIZE + 513);
  const to = bed.path('copy.raw');
  const stream = (target: string) => ['bash', '-c', `${binary} copy - ${target} < ${quote(from)}`];
  await bed.run(stream(quote(to)));
  await bed.run(['cmp', from, to]);
  expect(kibOf(to)).toBeLessThan(SIZE / 2048);
  const again = await bed.run(stream(quote(to)), { expect: 1 });
  expect(again.stderr.text).toContain('give --force');
  await bed.run(stream(`--force ${quote(to)}`));
  const disk = bed.disk({ sizeBytes: SIZE });
  const config = quote(bed.config({ path: disk }));
  const long = await bed.run(stream(config), { expect: 1 });
  expect(long.stderr.text).toContain(`more than the ${SIZE} bytes`);
  expect(statSync(disk).size).toBe(SIZE);
  await bed.run(['truncate', '-s', String(SIZE - 1), from]);
  const odd = await bed.run(stream(config), { expect: 1 });
  expect(odd.stderr.text).toContain('which is no multiple of 512');
});

testWith(
  'a copy that was interrupted is gone on with, unless the source has changed',
  needs,
  async () => {
    await using bed = new Bed();
    const from = bed.disk({ sizeBytes: SIZE });
    bed.fill(from, SIZE);
    const to = bed.path('copy.raw');
    const slow = await nbdkit(bed, ['--threads=1', '--filter=delay', 'file', from, 'rdelay=150ms']);
    const first = bed.spawn([binary, 'copy', slow.uri, to]);
    const deadline = Date.now() + 20_000;
    const blocks = () => (existsSync(`${to}.partial`) ? statSync(`${to}.partial`).blocks : 0);
    while (blocks() < 4 * 2048) {
      if (Date.now() > deadline || !first.running) throw new Error(first.report());
      await Bun.sleep(10);
    }
    first.signal('SIGINT');
    expect(await first.exit(10_000)).toBe(130);
    expect(first.stderr.text).toContain('give the same command again');
    expect(existsSync(to)).toBe(false);
    const { stdout } = await bed.run([binary, 'copy', '--json', slow.uri, to]);
    const { keptBytes, dataBytes } = JSON.parse(stdout.text);
    expect(keptBytes).toBeGreaterThan(0);
    expect(keptBytes).toBeLessThan(SIZE);
    expect(keptBytes + dataBytes).toBe(SIZE);
    await bed.run(['cmp', from, to]);
    expect(existsSync(`${to}.partial.note`)).toBe(false);
    // A note of another source is not believed, though it says that all is there.
    const noted = bed.path('other.raw');
    await bed.run(['truncate', '-s', String(SIZE), `${noted}.partial`]);
    const everything = Buffer.alloc(SIZE / MIB / 8, 0xff);
    await Bun.write(`${noted}.partial.note`, Buffer.concat([Buffer.alloc(32, 5), everything]));
    const anew = await bed.run([binary, 'copy', '--json', from, noted]);
    expect(JSON.parse(anew.stdout.text).keptBytes).toBe(0);
    await bed.run(['cmp', from, noted]);
  },
  60_000,
);

testWith(
  'a target that fails, and one that goes away, end the copy with a sentence',
  needs,
  async () => {
    await using bed = new Bed();
    const from = bed.disk({ sizeBytes: SIZE });
    bed.fill(from, SIZE);
    const broken = await nbdkit(bed, [
      '--filter=error',
      'memory',
      '24M',
      'error-pwrite-rate=50%',
      'error-pwrite=ENOSPC',
    ]);
    const failed = await bed.run([binary, 'copy', from, broken.uri], { expect: 1 });
    expect(failed.stderr.text).toContain('ENOSPC');
    const leaving = await nbdkit(
      bed,
      ['--filter=delay', 'memory', '24M', 'wdelay=200ms'],
      'leaving.sock',
    );
    const child = bed.spawn([binary, 'copy', from, leaving.uri]);
    await Bun.sleep(400);
    leaving.child.signal('SIGKILL');
    expect(await child.exit(20_000)).toBe(1);
    expect(child.stderr.text).toContain("can't be written");
  },
  60_000,
);

testWith(
  'a target that was started anew while nothing was asked of it ends the copy',
  needs,
  async () => {
    await using bed = new Bed();
    const from = bed.disk({ sizeBytes: 8 * MIB });
    bed.fill(from, 8 * MIB);
    const slow = await nbdkit(bed, ['--threads=1', '--filter=delay', 'file', from, 'rdelay=500ms']);
    const kept = bed.disk({ sizeBytes: 8 * MIB });
    const target = await nbdkit(bed, ['file', kept], 'target.sock');
    const child = bed.spawn([binary, 'copy', slow.uri, target.uri]);
    const deadline = Date.now() + 20_000;
    while (statSync(kept).blocks < 2 * 2048) {
      if (Date.now() > deadline || !child.running) throw new Error(child.report());
      await Bun.sleep(10);
    }
    target.child.signal('SIGKILL');
    await target.child.exit(10_000);
    rmSync(target.socket);
    rmSync(`${target.socket}.pid`);
    await nbdkit(bed, ['memory', '8M'], 'target.sock');
    expect(await child.exit(20_000)).toBe(1);
    expect(child.stderr.text).toContain("can't be written");
  },
  60_000,
);

testWith(
  'a block device is overwritten where it is',
  [...needs, need.loop()],
  async () => {
    await using bed = new Bed();
    const from = await image(bed);
    const device = bed.disk({ sizeBytes: SIZE, kind: 'loop512' });
    await bed.run(['bash', '-c', `yes | head -c ${SIZE} > ${device}`]);
    await bed.run([binary, 'copy', from, device]);
    await bed.run(['cmp', from, device]);
    const to = bed.path('from-device.raw');
    await bed.run([binary, 'copy', device, to]);
    await bed.run(['cmp', from, to]);
  },
  60_000,
);
