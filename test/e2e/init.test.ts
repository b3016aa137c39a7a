/** Folders that `ubiblk init` makes: served as they are, all of them or nothing. */
import { expect, test } from 'bun:test';
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { type CommandSpec, commands } from '../../src/commands/table.ts';
import { Dialogue } from './dialogue.ts';
import { binary, client } from './processes.ts';
import { Bed, need, qemuDisk, quote, seed, testWith } from './support.ts';

const MIB = 1 << 20;

async function init(bed: Bed, argv: string[], expect_ = 0) {
  return await bed.run([binary, 'init', ...argv], { expect: expect_ });
}

/** Serves the folder as its user is told to. */
async function serve(bed: Bed, said: string) {
  const command = /^ +ubiblk (serve .*)$/m.exec(said)?.[1] ?? '';
  const child = bed.spawn(['bash', '-c', `exec '${binary}' ${command}`]);
  await bed.listening(child, 10_000);
  return child;
}

for (const [name, options] of [
  ['plain', []],
  ['encrypted', ['--encrypt']],
  ['from an image', ['--autofetch']],
  ['from an image, encrypted', ['--encrypt', '--copy-on-read', '--stripe-size', '64k']],
] as const) {
  test(`a folder is made and can be served: ${name}`, async () => {
    await using bed = new Bed();
    const folder = bed.path('new/vm 7');
    const image = bed.path('image.raw');
    writeFileSync(image, '');
    bed.fill(image, 5 * MIB + 512, seed);
    const base = name.includes('image') ? ['--base', image] : [];
    const { stdout, stderr } = await init(bed, [folder, '--size', '9M', ...base, ...options]);
    expect(stderr.text).toBe('');
    const kek = name.includes('encrypted') ? ['kek.yaml'] : [];
    const files = ['config.yaml', 'disk.meta', 'disk.raw', ...kek, 'ubiblk-vm_7.service'];
    expect(readdirSync(folder).sort()).toEqual(files);
    for (const file of files) {
      expect(statSync(join(folder, file)).mode & 0o777).toBe(0o600);
      expect(stdout.text).toContain(`${join(folder, file)}  `);
    }
    expect(statSync(folder).mode & 0o777).toBe(0o700);
    const disk = statSync(join(folder, 'disk.raw'));
    expect(disk.size).toBe(9 * MIB);
    expect(disk.blocks * 512).toBeLessThanOrEqual(4096);

    const server = await serve(bed, stdout.text);
    const socket = join(folder, 'vhost.sock');
    const { stdout: probed } = await bed.run([binary, 'probe', '-s', socket, '--stage', 'config']);
    expect(probed.text).toMatch(/^capacity +9 MiB$/m);
    if (base.length > 0) {
      const more = ['--verify', image, '--size', '5M'];
      await bed.run([binary, 'probe', '-s', socket, ...more]);
    }
    const io = ['-c', 'write -P 7 8M 64k', '-c', 'flush', '-c', 'read -P 7 8M 64k'];
    await bed.run([client('qemu-io'), '--image-opts', qemuDisk(socket), ...io]);
    server.signal('SIGTERM');
    expect(await server.exit(10_000)).toBe(0);
    const bytes = readFileSync(join(folder, 'disk.raw')).subarray(8 * MIB, 8 * MIB + 65536);
    expect(bytes.equals(Buffer.alloc(65536, 7))).toBe(kek.length === 0);
  }, 60_000);
}

test('each choice is in the configuration; the JSON says what was made', async () => {
  await using bed = new Bed();
  const folder = bed.path('vm');
  const kek = bed.path('secret.kek');
  const { stdout } = await init(bed, [
    ...[folder, '--size', '1G', '--encrypt', '--kek', kek, '--socket', bed.path('s.sock')],
    ...['--num-queues', '4', '--queue-size', '256', '--seg-size-max', '8192', '--json'],
    ...['--seg-count-max', '16', '--poll-timeout-us', '0', '--io-engine', 'sync'],
    ...['--write-through', '--track-written', '--device-id', 'seven', '--stripe-size', '4M'],
  ]);
  const report = JSON.parse(stdout.text);
  expect(report).toEqual({
    folder,
    sizeBytes: 2 ** 30,
    base: null,
    kek,
    files: [
      join(folder, 'disk.raw'),
      kek,
      join(folder, 'config.yaml'),
      join(folder, 'disk.meta'),
      join(folder, 'ubiblk-vm.service'),
    ],
    serve: `ubiblk serve vhost --config ${folder}/config.yaml --kek ${kek}`,
    service: `systemctl enable --now ${folder}/ubiblk-vm.service`,
  });
  const config = Bun.YAML.parse(readFileSync(join(folder, 'config.yaml'), 'utf8')) as object;
  expect(config).toMatchObject({
    path: join(folder, 'disk.raw'),
    metadata_path: join(folder, 'disk.meta'),
    socket: bed.path('s.sock'),
    rpc_socket_path: join(folder, 'rpc.sock'),
    device_id: 'seven',
    num_queues: 4,
    queue_size: 256,
    seg_size_max: 8192,
    seg_count_max: 16,
    poll_queue_timeout_us: 0,
    io_engine: 'sync',
    write_through: true,
    track_written: true,
  });
  const dump = await bed.run([
    ...[binary, 'metadata', 'dump', '-f', join(folder, 'config.yaml'), '-k', kek],
  ]);
  expect(dump.stdout.text).toContain(`stripe size: ${4 * MIB} bytes`);
}, 60_000);

testWith(
  'units are what systemd takes, also of odd folders, for ublk and for NBD',
  [need.program('systemd-analyze')],
  async () => {
    await using bed = new Bed();
    // The verifier wants ExecStart= to be there, and nothing of the host's own units.
    for (const [name, options] of [
      ['plain', []],
      ['odd $name %n;', ['--encrypt']],
      ['ublk', ['--frontend', 'ublk', '--encrypt', '--kek', bed.path('100% kek')]],
      ['nbd', ['--frontend', 'nbd', '--socket', bed.path('$my %nbd.sock')]],
    ] as const) {
      const folder = bed.path(name);
      await init(bed, [folder, '--size', '1M', ...options]);
      const unit = readdirSync(folder).find((file) => file.endsWith('.service')) as string;
      const text = readFileSync(join(folder, unit), 'utf8');
      const frontend = ['ublk', 'nbd'].includes(name) ? name : 'vhost';
      expect(text).toContain(`serve ${frontend} --config`);
      const analyze = (...argv: string[]) =>
        bed.run(['systemd-analyze', ...argv, join(folder, unit)]);
      const verified = await analyze('verify', '--man=no');
      expect(verified.stderr.text.split('\n').filter((line) => line.includes(unit))).toEqual([]);
      await analyze('security', '--offline=yes', '--threshold=45');
    }
  },
  60_000,
);

test('what will not do is refused in a sentence, and nothing is made', async () => {
  await using bed = new Bed();
  const image = bed.path('image.raw');
  writeFileSync(image, Buffer.alloc(2 * MIB));
  writeFileSync(bed.path('image.qcow2'), 'QFI\xfb', 'latin1');
  writeFileSync(bed.path('odd.raw'), 'odd');
  const before = readdirSync(bed.folder);
  const folder = bed.path('a/b');
  const size = ['--size', '1M'];
  for (const [argv, status, sentence] of [
    [[], 2, "option '--size' is required (on a terminal it would be asked for)"],
    [['--size', '1000'], 2, '--size must be a multiple of 512 bytes'],
    [[...size, '--num-queues', '0'], 2, '--num-queues must be a whole number from 1 to 64'],
    [[...size, '--queue-size', '100'], 2, '--queue-size must be a power of two from 1 to 32768'],
    [[...size, '--stripe-size', '48K'], 2, '--stripe-size must be a power of two from 32K to 32M'],
    [[...size, '--io-engine', 'aio'], 2, '--io-engine must be one of io_uring, sync'],
    [[...size, '--frontend', 'iscsi'], 2, '--frontend must be one of vhost, ublk, nbd'],
    [[...size, '--kek', 'x'], 2, "option '--kek' needs '--encrypt'"],
    [[...size, '--autofetch'], 2, "option '--autofetch' needs '--base IMAGE'"],
    [[...size, '--frontend', 'ublk', '--socket', 'x'], 2, "is not for '--frontend ublk'"],
    [[...size, '--device-id', 'x'.repeat(21)], 2, '--device-id must be at most 20 bytes'],
    [[...size, '--base', image], 1, 'more than the disk; give --size 2097152 or more'],
    [[...size, '--base', bed.path('none')], 1, "none' cannot be read: ENOENT"],
    [
      [...size, '--base', bed.path('image.qcow2')],
      1,
      'is a qcow2 image; make it raw first: qemu-img',
    ],
    [[...size, '--base', bed.path('odd.raw')], 1, 'has 3 bytes, which is no multiple of 512'],
    [[...size, '--socket', `/${'x'.repeat(107)}`], 1, 'has at most 107; give a shorter --socket'],
    [[...size, '--encrypt', '--kek', bed.path('no/kek')], 1, 'does not exist; create it'],
    [[...size, '--encrypt', '--kek', bed.path("my'kek")], 1, 'has quotes or control characters'],
    [[...size, '--encrypt', '--kek', bed.path('a\nb')], 1, 'has quotes or control characters'],
    [[...size, '--socket', bed.path('s"ock/s')], 1, 'has quotes or control characters'],
    [[...size, '--encrypt', '--kek', join(folder, 'disk.raw')], 1, 'where another file goes'],
    [['--size', '8191T', '--stripe-size', '32K'], 1, /cannot get \d+ bytes|would have \d+ stripes/],
  ] as const) {
    const { stdout, stderr } = await init(bed, [folder, ...argv], status);
    expect(stderr.text).toMatch(typeof sentence === 'string' ? escaped(sentence) : sentence);
    expect(stdout.text).toBe('');
    expect(readdirSync(bed.folder)).toEqual(before);
  }
}, 120_000);

function escaped(text: string): RegExp {
  return new RegExp(text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
}

test('nothing is replaced without --force, and nothing that is in use with it', async () => {
  await using bed = new Bed();
  const folder = bed.path('vm');
  mkdirSync(folder);
  writeFileSync(join(folder, 'disk.meta'), 'mine');
  const refused = await init(bed, [folder, '--size', '1M'], 1);
  expect(refused.stderr.text).toContain(`'${folder}/disk.meta' is there already; choose another`);
  expect(readdirSync(folder)).toEqual(['disk.meta']);
  const first = await init(bed, [folder, '--size', '1M', '--encrypt', '--force']);
  const kek = readFileSync(join(folder, 'kek.yaml'), 'utf8');

  const server = await serve(bed, first.stdout.text);
  const used = await init(bed, [folder, '--size', '2M', '--encrypt', '--force'], 1);
  expect(used.stderr.text).toContain('is in use by another process');
  server.signal('SIGTERM');
  await server.exit(10_000);
  expect(readFileSync(join(folder, 'kek.yaml'), 'utf8')).toBe(kek);

  // An image that would be replaced.
  truncateSync(join(folder, 'disk.raw'), MIB);
  symlinkSync(join(folder, 'disk.raw'), bed.path('link.raw'));
  const base = ['--base', bed.path('link.raw')];
  const image = await init(bed, [folder, '--size', '2M', '--force', ...base], 1);
  expect(image.stderr.text).toContain('is both a file to be made and the image');

  await init(bed, [folder, '--size', '2M', '--encrypt', '--force']);
  expect(statSync(join(folder, 'disk.raw')).size).toBe(2 * MIB);
  expect(readFileSync(join(folder, 'kek.yaml'), 'utf8')).not.toBe(kek);
}, 60_000);

test('a KEK that other disks may need is never replaced', async () => {
  await using bed = new Bed();
  const kek = bed.path('shared.yaml');
  const encrypt = ['--size', '1M', '--encrypt', '--kek', kek];
  await init(bed, [bed.path('first'), ...encrypt]);
  const before = readFileSync(kek, 'utf8');
  for (const more of [[], ['--force']]) {
    const { stderr } = await init(bed, [bed.path('second'), ...encrypt, ...more], 1);
    expect(stderr.text).toContain(`the KEK '${kek}' is there already, and other disks may need it`);
    expect(stderr.text).not.toContain('--force');
  }
  expect(readFileSync(kek, 'utf8')).toBe(before);
  expect(readdirSync(bed.folder)).not.toContain('second');
}, 60_000);

/** Runs `ubiblk init` on a terminal, and types each answer when its question is there. */
async function converse(bed: Bed, argv: string[], talk: [string, string][]) {
  const command = [binary, 'init', ...argv].map(quote).join(' ');
  await using terminal = new Dialogue(command, bed.folder);
  const shown: string[] = [];
  for (const [question, answer] of talk) {
    await terminal.says(question);
    if (answer === '') continue;
    shown.push(terminal.shown);
    terminal.type(answer);
  }
  const status = await terminal.exit();
  return { status, text: `${shown.join('')}${terminal.shown}` };
}

testWith(
  'on a terminal what was not given is asked for, until the answer will do',
  [need.program('script')],
  async () => {
    await using bed = new Bed();
    const image = bed.path('image.raw');
    writeFileSync(image, Buffer.alloc(2 * MIB, 3));
    const { status, text } = await converse(
      bed,
      ['--encrypt', '--num-queues', '2'],
      [
        ['Folder [.]: ', 'vm\r'],
        ['Size of the disk [1G]: ', '5\r'],
        ['the size must be a multiple of 512', ''],
        ['Size of the disk [1G]: ', '4M\r'],
        ['Raw image to start from, or nothing: ', 'nothing\r'],
        ["the image 'nothing' cannot be read: ENOENT", ''],
        ['Raw image to start from, or nothing: ', 'image.raw\r'],
        ['Size of its stripes, 32K to 32M [1M]: ', '\r'],
        ["Make the disk in 'vm'? [y]: ", '\r'],
      ],
    );
    expect(text).not.toContain('Encrypt the disk');
    expect(text).not.toContain('Queues');
    expect(status).toBe(0);
    const config = Bun.YAML.parse(readFileSync(bed.path('vm/config.yaml'), 'utf8'));
    expect(config).toMatchObject({ num_queues: 2, stripe_source: { path: image } });
    expect(statSync(bed.path('vm/disk.raw')).size).toBe(4 * MIB);
    expect(existsSync(bed.path('vm/kek.yaml'))).toBe(true);
  },
  60_000,
);

testWith(
  'a wizard that is refused, interrupted or left makes nothing',
  [need.program('script')],
  async () => {
    await using bed = new Bed();
    const argv = ['vm', '--base', '/dev/null'];
    for (const [talk, expected, said] of [
      [[['Size', '\x03']], 130, ''],
      [[['Size', '\x04']], 1, 'the answers ended; nothing was made'],
    ] as [[string, string][], number, string][]) {
      const { status, text } = await converse(bed, argv, talk);
      expect(status).toBe(expected);
      expect(text).toContain(said);
    }
    const no = await converse(
      bed,
      ['vm'],
      [
        ['Size of the disk', '\r'],
        ['Raw image', '\r'],
        ['Encrypt the disk? [n]: ', 'perhaps\r'],
        ["y or n, not 'perhaps'", ''],
        ['Encrypt the disk? [n]: ', 'yes\r'],
        ['Size of its stripes', '64k\r'],
        ['Queues, 1 to 64 [1]: ', '1\r'],
        ["Make the disk in 'vm'? [y]: ", 'n\r'],
      ],
    );
    expect(no.status).toBe(0);
    expect(no.text).toContain('nothing was made');
    expect(readdirSync(bed.folder)).toEqual([]);
  },
  60_000,
);

test('the page names every option', () => {
  const page = readFileSync('docs/init.md', 'utf8');
  const { options } = commands.find(({ name }) => name === 'init') as CommandSpec;
  expect(options.map(({ long }) => long).filter((long) => !page.includes(`--${long}`))).toEqual([]);
});
