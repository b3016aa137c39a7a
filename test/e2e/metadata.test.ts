/**
 * `ubiblk metadata init` and `ubiblk metadata dump`: the bytes that are made, against a description of the
 * formats of its own; what is refused, and that it leaves everything as it was.
 */
import { expect, test } from 'bun:test';
import {
  chmodSync,
  closeSync,
  existsSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  statSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { binary, type Child } from './processes.ts';
import { Bed, need, quote, testKeys, testWith } from './support.ts';

const MIB = 1 << 20;
const versions = [1, 2] as const;

/** A metadata file of whole MiB stripes in its shortest form. */
function metadataBytes(version: 1 | 2, headers: readonly number[], shift = 11) {
  const perSector = version === 1 ? 512 : 508;
  const bytes = Buffer.alloc(512 * (1 + Math.ceil(headers.length / perSector)));
  bytes.write('BDEV_UBI', 'latin1');
  bytes.writeUInt16LE(version, 9);
  bytes[13] = shift;
  if (version === 2) bytes.writeUInt32LE(headers.length, 14);
  for (const [stripe, header] of headers.entries()) {
    bytes[512 * (1 + Math.floor(stripe / perSector)) + (stripe % perSector)] = header;
  }
  for (let at = 0; at < bytes.length && version === 2; at += 512) {
    bytes.writeUInt32LE(crc32(bytes.subarray(at, at + 508)), at + 508);
  }
  return bytes;
}

const repeat = (header: number, count: number) => Array<number>(count).fill(header);

interface Device {
  diskBytes?: number;
  /** Of the image, where there is one. */
  imageBytes?: number;
  /** Further fields of the configuration. */
  more?: Record<string, unknown>;
}

/** A test bed with a disk, perhaps an image, and a configuration that names them. */
class MetadataBed extends Bed {
  readonly metadata = this.path('vm.meta');
  disk_ = '';
  image = '';
  configFile = '';

  /** Makes them; what was there before is left alone. */
  device({ diskBytes = 5 * MIB, imageBytes, more = {} }: Device = {}): this {
    this.disk_ = this.sized('vm.raw', diskBytes);
    const fields: Record<string, unknown> = { path: this.disk_, metadata_path: this.metadata };
    if (imageBytes !== undefined) {
      this.image = this.sized('image.raw', imageBytes);
      fields.stripe_source = { source: 'raw', path: this.image };
    }
    return this.configure({ ...fields, ...more });
  }

  configure(fields: Record<string, unknown>): this {
    this.configFile = this.path('vm.yaml');
    const lines = Object.entries(fields).map(
      ([key, value]) => `${key}: ${JSON.stringify(value)}\n`,
    );
    writeFileSync(this.configFile, lines.join(''), { mode: 0o600 });
    return this;
  }

  sized(name: string, sizeBytes: number): string {
    const path = this.path(name);
    if (!existsSync(path)) writeFileSync(path, '');
    if (statSync(path).isFile()) truncateSync(path, sizeBytes);
    return path;
  }

  argv(command: 'init' | 'dump', ...args: string[]): string[] {
    return [binary, 'metadata', command, '--config', this.configFile, ...args];
  }

  /** @returns what it printed, in a run that must succeed without a word on stderr */
  async init(...args: string[]): Promise<string> {
    return said(await this.run(this.argv('init', ...args)));
  }

  async dump(...args: string[]): Promise<string> {
    return said(await this.run(this.argv('dump', ...args)));
  }

  /** A run that must fail with one sentence and leave every file as it was. */
  async refuses(
    sentence: RegExp | string,
    command: 'init' | 'dump' = 'init',
    ...args: string[]
  ): Promise<void> {
    await this.refusesRun(sentence, command, this.argv(command, ...args));
  }

  async refusesRun(
    sentence: RegExp | string,
    command: string,
    argv: string[],
    status = 1,
  ): Promise<void> {
    const before = this.state();
    const child = await this.run(argv, { expect: status });
    const [line, ...more] = child.stderr.text.split('\n');
    const start = status === 1 ? `[ERROR metadata-${command}] ` : `ubiblk metadata ${command}: `;
    expect(line).toStartWith(start);
    if (typeof sentence === 'string') expect(line).toBe(start + sentence);
    else expect(line).toMatch(sentence);
    expect(more.filter((text) => text !== '' && !text.startsWith('Try '))).toEqual([]);
    expect(child.stdout.text).toBe('');
    expect(this.state()).toEqual(before);
  }

  /** What the files of the folder are: names, modes, small files' bytes. */
  state(): string[] {
    return readdirSync(this.folder)
      .sort()
      .map((name) => {
        const { mode, size } = lstatSync(this.path(name));
        const small = size < MIB && lstatSync(this.path(name)).isFile();
        return `${name} ${mode} ${size} ${small ? Bun.hash(readFileSync(this.path(name))) : ''}`;
      });
  }

  /** Writes into the metadata file. */
  patch(offset: number, ...bytes: number[]): void {
    const fd = openSync(this.metadata, 'r+');
    writeSync(fd, Buffer.from(bytes), 0, bytes.length, offset);
    closeSync(fd);
  }
}

function said(child: Child): string {
  expect(child.stderr.text).toBe('');
  return child.stdout.text;
}

const rows: [string, Device, number[], string[]][] = [
  ['no source', { diskBytes: 5 * MIB }, repeat(0, 5), []],
  ['a source as large as the disk', { imageBytes: 5 * MIB }, repeat(4, 5), []],
  ['a smaller one', { imageBytes: 2 * MIB }, [4, 4, 0, 0, 0], []],
  ['one that ends within a stripe', { imageBytes: 2 * MIB + 512 }, [4, 4, 4, 0, 0], []],
  ['a source of one sector', { imageBytes: 512 }, [4, 0, 0, 0, 0], []],
  ['a partial last stripe', { diskBytes: 4 * MIB + 512 }, repeat(0, 5), []],
  [
    'a partial last stripe that the source has a part of',
    { diskBytes: 4 * MIB + 1024, imageBytes: 4 * MIB + 512 },
    repeat(4, 5),
    [],
  ],
  ['a disk smaller than a stripe', { diskBytes: 512, imageBytes: 512 }, [4], []],
  ['stripes of 32 KiB', { diskBytes: MIB + 512, imageBytes: MIB }, [...repeat(4, 32), 0], ['-s6']],
  ['stripes of 32 MiB', { diskBytes: 65 * MIB, imageBytes: MIB }, [4, 0, 0], ['-s', '16']],
  [
    'a full sector',
    { diskBytes: 16 * MIB, imageBytes: MIB },
    [...repeat(4, 32), ...repeat(0, 480)],
    ['-s6'],
  ],
  ['many sectors', { diskBytes: 52 * MIB, imageBytes: 52 * MIB }, repeat(4, 1664), ['-s6']],
];
for (const version of versions) {
  test.each(rows)(`init makes version ${version}.0 of %s`, async (_, device, headers, args) => {
    await using bed = new MetadataBed().device(device);
    const before = readdirSync(bed.folder);
    const line = await bed.init(...args, '--format', String(version));
    expect(readdirSync(bed.folder).sort()).toEqual([...before, 'vm.meta'].sort());
    const shift = Number(args.at(-1)?.replace('-s', '') ?? 11);
    const bytes = readFileSync(bed.metadata);
    expect(Buffer.compare(bytes, metadataBytes(version, headers, shift))).toBe(0);
    expect(statSync(bed.metadata).mode & 0o7777).toBe(0o600);
    const origin =
      device.imageBytes === undefined
        ? 'no source'
        : `${headers.filter(Boolean).length} of them in the source raw (path: ${bed.image}, ` +
          `size: ${device.imageBytes} bytes)`;
    expect(line).toBe(
      `'${bed.metadata}': version ${version}.0, ${headers.length} stripes of ` +
        `${512 << shift} bytes, ${origin}\n`,
    );
  });
}

test.each(versions)(
  'init makes version %d.0 of an encrypted disk, padding and all',
  async (version) => {
    await using bed = new MetadataBed().device({
      imageBytes: 2 * MIB,
      more: { encryption_key: testKeys },
    });
    bed.sized('vm.meta', 4096);
    expect(await bed.init(`--format=${version}`)).toContain(`version ${version}.0, encrypted, 5 `);
    const plain = readFileSync(bed.decrypted(bed.metadata));
    const map = metadataBytes(version, [4, 4, 0, 0, 0]);
    expect(Buffer.compare(plain, Buffer.concat([map, Buffer.alloc(4096 - map.length)]))).toBe(0);
    expect(await bed.dump()).toContain('has-source stripes: 0, 1\n');
  },
);

test('init is version 1.0 with stripes of 1 MiB if nothing is said', async () => {
  await using bed = new MetadataBed().device();
  await bed.init();
  expect(readFileSync(bed.metadata)).toEqual(metadataBytes(1, repeat(0, 5)));
});

test('init does not depend on the umask', async () => {
  for (const umask of ['0000', '0777']) {
    await using bed = new MetadataBed().device();
    const command = `umask ${umask}; ${bed.argv('init').map(quote).join(' ')}`;
    said(await bed.run(['bash', '-c', command]));
    expect(statSync(bed.metadata).mode & 0o7777).toBe(0o600);
  }
});

test('init uses a file that is there: grown where it must, never cut, closed to others', async () => {
  const wanted = metadataBytes(2, repeat(4, 5));
  for (const sizeBytes of [0, 100, 512, 1024, 1025, 8192]) {
    await using bed = new MetadataBed().device({ imageBytes: 5 * MIB });
    bed.sized('vm.meta', sizeBytes);
    chmodSync(bed.metadata, 0o1666);
    await bed.init('--format=2');
    const bytes = readFileSync(bed.metadata);
    expect(bytes.length).toBe(Math.max(1024, Math.ceil(sizeBytes / 512) * 512));
    expect(bytes.subarray(0, 1024)).toEqual(wanted);
    expect(bytes.subarray(1024).every((byte) => byte === 0)).toBe(true);
    expect(statSync(bed.metadata).mode & 0o7777).toBe(0o600);
  }
});

test('init makes a map anew that records nothing, by another geometry too', async () => {
  await using bed = new MetadataBed().device({ imageBytes: 5 * MIB });
  await bed.init();
  await bed.init('--format', '2', '-s', '9');
  await bed.init('--format', '2');
  expect(readFileSync(bed.metadata).subarray(0, 1024)).toEqual(metadataBytes(2, repeat(4, 5)));
});

test.each([
  ['fetched', 5, /records 1 fetched and 0 written stripes, which would be forgotten; .*--force$/],
  ['written', 2, /records 0 fetched and 1 written stripes/],
  ['damaged', 0x14, /holds something that would be lost: it has a header of stripe 3 .*--force$/],
])(
  'init overwrites a map with a stripe that is %s only with --force',
  async (_, header, sentence) => {
    await using bed = new MetadataBed().device({ imageBytes: 5 * MIB });
    await bed.init();
    bed.patch(515, header);
    await bed.refuses(sentence);
    await bed.init('--force');
    expect(readFileSync(bed.metadata)).toEqual(metadataBytes(1, repeat(4, 5)));
  },
);

test('init overwrites anything else only with --force', async () => {
  await using bed = new MetadataBed().device();
  writeFileSync(bed.metadata, 'a letter to a friend', { mode: 0o644 });
  await bed.refuses(/holds something that would be lost/);
  await bed.init('--force');
  expect(readFileSync(bed.metadata)).toEqual(metadataBytes(1, repeat(0, 5)));
  bed.patch(9, 0);
  await bed.refuses(/it is of version 0\.0, .*\(Seed, v0\.2 and v0\.3\)/);
  bed.patch(9, 2);
  await bed.refuses(/it is damaged: the CRC of sector 0 is wrong/);
});

test('init does not take a map for its own that has other keys', async () => {
  await using bed = new MetadataBed().device({ more: { encryption_key: testKeys } });
  await bed.init();
  bed.device({ more: { encryption_key: [...testKeys].reverse() } });
  await bed.refuses(/it is no metadata file, or .* other keys/);
  bed.device();
  await bed.refuses(/it is no metadata file, or .* other keys/);
});

test('init follows a link to a file, and makes none through a link', async () => {
  await using bed = new MetadataBed().device();
  symlinkSync(bed.path('real.meta'), bed.metadata);
  await bed.refuses(/is a symbolic link that leads nowhere/);
  writeFileSync(bed.path('real.meta'), '');
  await bed.init();
  expect(readlinkSync(bed.metadata)).toBe(bed.path('real.meta'));
  expect(readFileSync(bed.path('real.meta'))).toEqual(metadataBytes(1, repeat(0, 5)));
});

test('init deletes the KEK file when all is done, not before', async () => {
  await using bed = new MetadataBed().device();
  const kek = bed.path('vm.kek');
  writeFileSync(kek, 'method: none\n', { mode: 0o600 });
  mkdirSync(bed.metadata);
  await bed.refuses(/neither a regular file nor a block device/, 'init', '-u', '--kek', kek);
  expect(existsSync(kek)).toBe(true);
  bed.configure({ path: bed.disk_, metadata_path: bed.path('other.meta') });
  await bed.init('-uk', kek);
  expect(existsSync(kek)).toBe(false);
});

test('init refuses to run while the disk is served', async () => {
  await using bed = new MetadataBed().device();
  const server = await bed.serve(bed.disk_);
  await bed.refuses(
    `'${bed.disk_}' is in use by another process, which holds its lock; stop that one first`,
  );
  await bed.stop(server);
  await bed.init();
}, 30_000);

testWith(
  'init leaves nothing behind where there is no room',
  [need.root()],
  async () => {
    await using bed = new MetadataBed();
    const folder = bed.path('small');
    mkdirSync(folder);
    await bed.run(['mount', '-t', 'tmpfs', '-o', 'size=64k', 'none', folder]);
    try {
      const path = bed.sized('vm.raw', 4096 * MIB);
      const metadata = join(folder, 'vm.meta');
      bed.configure({ path, metadata_path: metadata });
      const full = `'${metadata}' can't be given 131584 bytes: ENOSPC`;
      await bed.refuses(full, 'init', '-s', '6');
      expect(readdirSync(folder)).toEqual([]);
      bed.configure({ path: bed.sized('other.raw', 5 * MIB), metadata_path: metadata });
      await bed.init();
      bed.configure({ path, metadata_path: metadata });
      const before = readFileSync(metadata);
      await bed.refuses(full, 'init', '-s6', '--force');
      expect(readFileSync(metadata)).toEqual(before);
    } finally {
      await bed.run(['umount', folder]);
    }
  },
  30_000,
);

testWith(
  'init uses block devices as they are, as disk, image and metadata',
  [need.loop()],
  async () => {
    for (const kind of ['loop512', 'loop4096'] as const) {
      await using bed = new MetadataBed();
      const disk = bed.disk({ kind, sizeBytes: 5 * MIB + 4096 });
      const image = bed.disk({ kind, sizeBytes: 2 * MIB + 4096 });
      const metadata = bed.disk({ kind, sizeBytes: 64 << 10 });
      const source = { stripe_source: { source: 'raw', path: image } };
      bed.configure({ path: disk, metadata_path: metadata, ...source });
      const { mode } = statSync(metadata);
      for (const version of versions) {
        const line = await bed.init('--force', `--format=${version}`);
        expect(line).toContain(`6 stripes of ${MIB} bytes, 3 of them in the source raw`);
        const map = metadataBytes(version, [4, 4, 4, 0, 0, 0]);
        const rest = Buffer.alloc((64 << 10) - map.length);
        expect(readFileSync(metadata)).toEqual(Buffer.concat([map, rest]));
        expect(statSync(metadata).mode).toBe(mode);
        expect(await bed.dump()).toContain(`version: ${version}.0\n`);
      }
      bed.configure({ path: disk, metadata_path: bed.disk({ kind, sizeBytes: 4096 }) });
      await bed.init('-s6', '--force');
      bed.configure({ path: bed.disk({ sizeBytes: 256 * MIB }), metadata_path: metadata });
      await bed.init('-s6', '--force');
      bed.configure({ path: bed.disk({ sizeBytes: 3 * 1024 * MIB }), metadata_path: metadata });
      await bed.refuses(
        /has 65536 bytes, but .* takes 98816; give a larger device/,
        'init',
        '-s6',
        '--force',
      );
    }
  },
  60_000,
);

test.each<[string, Device, RegExp | string]>([
  [
    'a source larger than the disk',
    { diskBytes: 4 * MIB, imageBytes: 4 * MIB + 512 },
    /the disk '.*vm\.raw' has 4194304 bytes, less than its source raw \(.*\); grow the disk to 4194816 bytes or more/,
  ],
  ['a disk of half a sector', { diskBytes: 700 }, /vm\.raw' has 700 bytes, .* grow it to 1024/],
  ['an empty disk', { diskBytes: 0 }, /vm\.raw' is empty/],
  [
    'an image of half a sector',
    { imageBytes: 700 },
    /image\.raw' has 700 bytes, .* grow it to 1024/,
  ],
  ['an empty image', { imageBytes: 0 }, /image\.raw' is empty; name the image/],
  ['no metadata_path', { more: { metadata_path: null } }, /vm\.yaml: metadata_path: is required/],
  [
    'a missing folder',
    { more: { metadata_path: '/nowhere/vm.meta' } },
    "the folder '/nowhere' of '/nowhere/vm.meta' does not exist; create it",
  ],
  ['a path through a file', { more: { metadata_path: '/etc/passwd/x' } }, /x' .*ENOTDIR/],
  ['a character device', { more: { metadata_path: '/dev/null' } }, /neither a regular file nor/],
  [
    'a missing image',
    { more: { stripe_source: { source: 'raw', path: '/nowhere' } } },
    "'/nowhere' does not exist; name the image that the disk is to be filled from",
  ],
  [
    'an archive without an image',
    {
      more: {
        copy_on_read: true,
        stripe_source: { source: 'archive', type: 'filesystem', path: 'a' },
      },
    },
    /there is no archive in 'a': it has no 'metadata.json'; is it the right place\?/,
  ],
])('refused: %s', async (_, device, sentence) => {
  await using bed = new MetadataBed().device(device);
  await bed.refuses(sentence);
  if (!/larger|folder|through|image/.test(_)) await bed.refuses(sentence, 'dump');
});

test('refused: one file for two purposes, by whatever names', async () => {
  await using bed = new MetadataBed().device({ imageBytes: MIB });
  const alias = bed.path('alias');
  symlinkSync(bed.disk_, alias);
  const [path, image] = [bed.disk_, bed.image];
  bed.configure({ path, metadata_path: alias });
  await bed.refuses(
    `'${alias}' is both the disk's data file and the metadata file; give each a file of its own`,
  );
  bed.configure({ path, metadata_path: image, stripe_source: { source: 'raw', path: image } });
  await bed.refuses(/is both the metadata file and the image/);
  bed.configure({
    path,
    metadata_path: bed.metadata,
    stripe_source: { source: 'raw', path: alias },
  });
  await bed.refuses(/is both the disk's data file and the image/);
});

test('refused: a missing disk', async () => {
  await using bed = new MetadataBed().device();
  unlinkSync(bed.disk_);
  await bed.refuses(/vm\.raw' does not exist/);
  await bed.refuses(/vm\.raw' does not exist/, 'dump');
});

test("refused: metadata that is not there, or not this disk's", async () => {
  await using bed = new MetadataBed().device();
  await bed.refuses(/vm\.meta' does not exist; make it with 'ubiblk metadata init'/, 'dump');
  await bed.init();
  bed.device({ diskBytes: 600 * MIB });
  await bed.refuses(/vm\.meta' has room for 512 stripes, but the disk has 600 of 1048576/, 'dump');
  bed.device();
  bed.patch(9, 0);
  await bed.refuses(/version 0\.0, .*'ubiblk metadata init'/, 'dump');
  bed.device({ more: { encryption_key: testKeys } });
  await bed.refuses(/vm\.meta' is no metadata file, or .* keys/, 'dump');
});

test.each([
  ['init', ['-s', '5'], /must be a whole number from 6 \(.*\) to 16 \(.*\), not '5'/],
  ['init', ['-s17'], /, not '17'/],
  ['init', ['-s', '0x8'], /, not '0x8'/],
  ['init', ['--format', '3'], /--format must be one of 1, 2, not '3'/],
  ['init', ['-u'], /'--unlink-kek' needs '--kek FILE'/],
  ['init', ['extra'], /unexpected argument 'extra'/],
  ['dump', ['--json', '--map'], /'--json' and '--map' exclude each other/],
  ['dump', ['--force'], /unknown option '--force'/],
])('refused: %s %p', async (command, args, sentence) => {
  await using bed = new MetadataBed().device();
  const argv = bed.argv(command as 'init' | 'dump', ...args);
  await bed.refusesRun(sentence, command, argv, 2);
});

test('refused: no configuration', async () => {
  await using bed = new MetadataBed();
  for (const command of ['init', 'dump']) {
    const sentence = /option '--config FILE' is required/;
    await bed.refusesRun(sentence, command, [binary, 'metadata', command], 2);
  }
});

/** A disk of ten stripes, the last of which is partial. */
async function filled(bed: MetadataBed, version: 1 | 2, more: Record<string, unknown> = {}) {
  bed.device({ diskBytes: 9 * MIB + 512, imageBytes: 6 * MIB, more });
  await bed.init(`--format=${version}`);
  const headers = [7, 5, 4, 4, 7, 5, 2, 0, 0, 2];
  const bytes = metadataBytes(version, headers);
  if (more.encryption_key === undefined) writeFileSync(bed.metadata, bytes);
}

test.each(versions)('dump prints the seven lines of version %d.0', async (version) => {
  await using bed = new MetadataBed();
  await filled(bed, version);
  const before = bed.state();
  expect(await bed.dump()).toBe(
    `data file: ${bed.disk_} (9437696 bytes)\n` +
      `source: raw (path: ${bed.image}, size: 6291456 bytes)\n` +
      `metadata version: ${version}.0\n` +
      'stripe size: 1048576 bytes\n' +
      'fetched stripes: 0, 1, 4, 5\n' +
      'written stripes: 0, 4, 6, 9\n' +
      'has-source stripes: 0-5\n',
  );
  expect(bed.state()).toEqual(before);
});

test('dump writes lists as the reference system does, and empty ones as nothing', async () => {
  await using bed = new MetadataBed().device({ diskBytes: 10 * MIB });
  writeFileSync(bed.metadata, metadataBytes(1, [1, 1, 0, 0, 1, 1, 1, 0, 0, 1]));
  const text = await bed.dump();
  expect(text).toContain('source: None\n');
  expect(text).toContain(
    'fetched stripes: 0, 1, 4-6, 9\nwritten stripes: \nhas-source stripes: \n',
  );
});

test('dump works beside a server of the disk', async () => {
  await using bed = new MetadataBed();
  await filled(bed, 1);
  const server = await bed.serve(bed.disk_);
  expect(await bed.dump()).toContain('fetched stripes: 0, 1, 4, 5\n');
  await bed.stop(server);
});

test('dump prints JSON', async () => {
  await using bed = new MetadataBed();
  await filled(bed, 2);
  expect(JSON.parse(await bed.dump('--json'))).toEqual({
    dataFile: { path: bed.disk_, bytes: 9 * MIB + 512 },
    source: { description: `raw (path: ${bed.image}, size: 6291456 bytes)`, bytes: 6 * MIB },
    metadata: { path: bed.metadata, version: '2.0', encrypted: false },
    stripes: {
      bytes: MIB,
      total: 10,
      lastBytes: 512,
      fetched: 4,
      written: 4,
      hasSource: 6,
      missing: 2,
    },
    fetched: [
      [0, 1],
      [4, 5],
    ],
    written: [
      [0, 0],
      [4, 4],
      [6, 6],
      [9, 9],
    ],
    hasSource: [[0, 5]],
  });
  bed.device({ more: { encryption_key: testKeys } });
  await bed.init('--force');
  const { source, metadata, stripes } = JSON.parse(await bed.dump('--json'));
  expect({ source, metadata }).toMatchObject({ source: null, metadata: { encrypted: true } });
  expect(stripes).toMatchObject({ total: 5, lastBytes: MIB, missing: 0 });
});

test('dump draws a map', async () => {
  await using bed = new MetadataBed();
  await filled(bed, 1);
  expect(await bed.dump('--map')).toBe(
    '10 stripes of 1048576 bytes, one in each place\n\n' +
      '0  #=..#=#==#\n\n' +
      '= local 4   # written 4   . missing 2\n' +
      'stripe 9, the last one, has only 512 bytes\n',
  );
});

test('dump draws it as large as the terminal, in colours', async () => {
  await using bed = new MetadataBed().device({ diskBytes: 64 * MIB, imageBytes: 33 * MIB });
  await bed.init('-s6');
  const dump = bed.argv('dump', '--map').map(quote).join(' ');
  const onTerminal = async (columns: number, rows: number, more = '') => {
    const command = `stty cols ${columns} rows ${rows}; ${more} ${dump}`;
    const { stdout } = await bed.run(['script', '-qec', command, '/dev/null']);
    return stdout.text.replaceAll('\r', '');
  };
  for (const [columns, rows] of [
    [40, 12],
    [132, 50],
    [20, 7],
  ]) {
    const plain = await onTerminal(columns, rows, 'NO_COLOR=1');
    const lines = plain.trimEnd().split('\n');
    const cells = lines.filter((line) => /^ *\d+ {2}[.=#~]+$/.test(line));
    expect(Math.max(...cells.map((line) => line.length))).toBeLessThanOrEqual(columns);
    // Without the line for a partial stripe, and with one for the prompt.
    expect(lines.length).toBeLessThanOrEqual(Math.max(rows - 2, 5));
    const perCell = Number(/(\d+|one) in each place/.exec(plain)?.[1].replace('one', '1'));
    const drawn = cells.map((line) => line.replace(/^ *\d+ {2}/, '')).join('');
    expect(drawn.length).toBe(Math.ceil(2048 / perCell));
    const missing = Math.floor(1056 / perCell);
    expect(drawn).toStartWith('.'.repeat(missing));
    expect(drawn).toEndWith('='.repeat(Math.floor(992 / perCell)));
    expect(plain).toContain('= local 992   # written 0   . missing 1056');
    const coloured = await onTerminal(columns, rows);
    expect(Bun.stripANSI(coloured)).toBe(plain);
    expect(coloured.length).toBeGreaterThan(plain.length);
  }
});

test('both programs have their names of the reference system', async () => {
  await using bed = new MetadataBed().device();
  for (const [name, shown] of [
    ['init-metadata', 'vhost-user-blk metadata init'],
    ['dump-metadata', 'dump-metadata'],
  ]) {
    symlinkSync(binary, bed.path(name));
    const version = await bed.run([bed.path(name), '--version']);
    expect(version.stdout.text).toMatch(new RegExp(`^${shown} \\d+\\.\\d+\\.\\d+\n`));
    const help = await bed.run([bed.path(name), '--help']);
    expect(help.stdout.text).toContain(`$ ${name} [options]`);
  }
  said(await bed.run([bed.path('init-metadata'), '-f', bed.configFile, '-s', '10']));
  const dump = said(await bed.run([bed.path('dump-metadata'), '-f', bed.configFile]));
  expect(dump).toContain('metadata version: 1.0\nstripe size: 524288 bytes\n');
});
