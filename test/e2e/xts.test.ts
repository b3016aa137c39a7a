/**
 * `ubiblk xts` against node's AES-XTS, sector by sector, from and to all that can be read and written;
 * what it refuses, and that nothing is left behind, also where it is stopped half-way.
 */

import { expect, test } from 'bun:test';
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  closeSync,
  constants,
  existsSync,
  linkSync,
  mkdirSync,
  open,
  openSync,
  read,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  statSync,
  symlinkSync,
  truncateSync,
  write,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { promisify } from 'node:util';
import { binary, type Child, within } from './processes.ts';
import { Bed, need, quote, Random, seed, testWith } from './support.ts';

const SECTOR = 512;
const MIB = 1024 * 1024;
const keys = [0, 0x80].map((first) => Buffer.from(Array.from({ length: 32 }, (_, i) => first + i)));
const encryptionKey = keys.map((key) => key.toString('base64'));
const random = new Random(seed);
const openFile = promisify(open);
const readBytes = promisify(read);
const writeBytes = promisify(write);

type Action = 'encode' | 'decode';

const nodeScript = `
const { createCipheriv, createDecipheriv } = require('node:crypto');
const [action, key, start] = process.argv.slice(1);
const make = action === 'encode' ? createCipheriv : createDecipheriv;
const bytes = require('node:fs').readFileSync(0);
const tweak = Buffer.alloc(16);
for (let at = 0; at < bytes.length; at += 512) {
  tweak.writeBigUInt64LE(BigInt(start) + BigInt(at / 512), 8);
  const cipher = make('aes-256-xts', Buffer.from(key, 'hex'), tweak);
  cipher.update(bytes.subarray(at, at + 512)).copy(bytes, at);
}
require('node:fs').writeSync(1, bytes.length.toString() + '\\n');
require('node:fs').writeFileSync(1, bytes);
`;

/** What node makes of the bytes, the first of which is that of sector `start`. */
function byNode(action: Action, bytes: Buffer, start = 0): Buffer {
  const key = Buffer.concat(keys).toString('hex');
  const done = spawnSync('node', ['-e', nodeScript, action, key, String(start)], {
    input: bytes,
    maxBuffer: bytes.length + MIB,
    timeout: 60_000,
  });
  const head = done.stdout.indexOf('\n') + 1;
  if (done.status !== 0 || done.stdout.length !== head + bytes.length) {
    throw new Error(`node: ${done.stderr}`);
  }
  return done.stdout.subarray(head);
}

function randomBytes(length: number): Buffer {
  const words = new Uint32Array(Math.ceil(length / 4)).map(() => random.next());
  return Buffer.from(words.buffer, 0, length);
}

/** A test bed with a configuration whose other fields name nothing that is there. */
class XtsBed extends Bed {
  readonly configFile = this.config(
    {
      path: 'absent.img',
      metadata_path: 'absent.meta',
      rpc_socket_path: 'absent/rpc.sock',
      track_written: true,
      cpus: [9999],
      encryption_key: encryptionKey,
    },
    'vm.yaml',
  );

  file(name: string, content: Buffer): string {
    writeFileSync(this.path(name), content);
    return this.path(name);
  }

  argv(...args: string[]): string[] {
    return [binary, 'xts', '--config', this.configFile, ...args];
  }

  async xts(...args: string[]): Promise<Child> {
    const child = await this.run(this.argv(...args));
    expect(child.stderr.text).toBe('');
    return child;
  }

  /** Runs it as a part of a shell's command, where `XTS` stands. */
  async shell(command: string, status = 0): Promise<Child> {
    const xts = this.argv().map(quote).join(' ');
    const script = `set -o pipefail; ${command.replaceAll('XTS', xts)}`;
    return await this.run(['bash', '-c', script], { expect: status });
  }

  /** A run that must fail with this one sentence and leave the folder as it was. */
  async refuses(sentence: string, ...args: string[]): Promise<void> {
    const before = this.list();
    const child = await this.run(this.argv(...args), { expect: 1 });
    expect(child.stderr.text).toBe(`[ERROR xts] ${sentence}\n`);
    expect(child.stdout.text).toBe('');
    expect(this.list()).toEqual(before);
  }

  list(): string[] {
    return readdirSync(this.folder).sort();
  }

  fifo(name: string): string {
    const made = spawnSync('mkfifo', [this.path(name)]);
    if (made.status !== 0) throw new Error(`mkfifo: ${made.stderr}`);
    return this.path(name);
  }

  /** Waits until the result is being written, to a file that has no name yet or another one. */
  async begun(start: () => Child): Promise<Child> {
    const child = start();
    const find = async () => {
      while (!this.openFiles().some((path) => /( \(deleted\)|\.tmp)$/.test(path)))
        await Bun.sleep(5);
    };
    await within(find(), 20_000, () => `the new file of ${child.report()}`);
    return child;
  }

  /** Files of the folder that any process has open. */
  private openFiles(): string[] {
    const found: string[] = [];
    for (const pid of readdirSync('/proc').filter((name) => /^\d+$/.test(name))) {
      try {
        for (const fd of readdirSync(`/proc/${pid}/fd`)) {
          const path = readlinkSync(`/proc/${pid}/fd/${fd}`);
          if (path.startsWith(`${this.folder}/`)) found.push(path);
        }
      } catch {
        // It, or its file, is gone, or somebody else's.
      }
    }
    return found;
  }
}

test('whole files of all lengths, both ways', async () => {
  await using bed = new XtsBed();
  for (const length of [SECTOR, MIB - SECTOR, MIB, MIB + SECTOR, 3 * MIB, 5 * MIB + 7 * SECTOR]) {
    const plain = randomBytes(length);
    const disk = byNode('encode', plain);
    await bed.xts('--action', 'encode', bed.file('plain', plain), bed.path('ours'));
    expect(readFileSync(bed.path('ours')).equals(disk)).toBe(true);
    await bed.xts(bed.file('disk', disk), bed.path('back'));
    expect(readFileSync(bed.path('back')).equals(plain)).toBe(true);
    expect(byNode('decode', readFileSync(bed.path('ours'))).equals(plain)).toBe(true);
  }
  expect(statSync(bed.path('ours')).mode & 0o7777).toBe(0o600);
  expect(bed.list()).toEqual(['back', 'disk', 'ours', 'plain', 'vm.yaml']);
}, 60_000);

test('parts: decoded ones are packed, encoded ones keep their offsets, and either on request', async () => {
  await using bed = new XtsBed();
  const sectors = 6000;
  const plain = randomBytes(sectors * SECTOR);
  const whole = byNode('encode', plain);
  const disk = bed.file('disk', whole);
  const image = bed.file('plain', plain);
  const out = bed.path('out');
  for (const [start, len] of [
    [0, 1],
    [1, 1],
    [5999, 1],
    [2048, 2049],
    [17, undefined],
    ...Array.from({ length: 3 }, () => [random.below(3000), 1 + random.below(3000)]),
  ] as [number, number | undefined][]) {
    const part = ['--start', String(start), ...(len === undefined ? [] : ['--len', String(len)])];
    const end = len === undefined ? sectors : start + len;
    const [from, to] = [start * SECTOR, end * SECTOR];
    const hole = Buffer.alloc(from);

    for (const packed of [[], ['--packed']]) {
      await bed.xts(...part, ...packed, disk, out);
      expect(readFileSync(out).equals(plain.subarray(from, to))).toBe(true);
    }
    await bed.xts(...part, '--keep-offsets', disk, out);
    const kept = readFileSync(out);
    expect(kept.equals(Buffer.concat([hole, plain.subarray(from, to)]))).toBe(true);

    // What kept its offsets can be encoded again.
    for (const keep of [[], ['--keep-offsets']]) {
      await bed.xts('--action', 'encode', ...part, ...keep, out, bed.path('again'));
      const expected = Buffer.concat([hole, whole.subarray(from, to)]);
      expect(readFileSync(bed.path('again')).equals(expected)).toBe(true);
    }
    await bed.xts('--action=encode', ...part, '--packed', image, out);
    expect(readFileSync(out).equals(whole.subarray(from, to))).toBe(true);
  }
}, 60_000);

test('--len 0 makes an empty file', async () => {
  await using bed = new XtsBed();
  const input = bed.file('in', randomBytes(8 * SECTOR));
  for (const action of ['encode', 'decode']) {
    const out = bed.file('out', Buffer.from('old'));
    await bed.xts('--action', action, '--start', '7', '--len', '0', input, out);
    expect(statSync(out).size).toBe(0);
    await bed.shell(`XTS --action ${action} --start 7 --len 0 - ${out} < ${input}`);
    expect(statSync(out).size).toBe(0);
  }
});

test('sectors beyond 4 GiB have their numbers, and holes stay holes or are encrypted', async () => {
  await using bed = new XtsBed();
  const start = 12 * 1024 * 1024 * 2 + 3;
  const input = bed.file('in', Buffer.alloc(0));
  truncateSync(input, (start + 10) * SECTOR);
  const zeroes = Buffer.alloc(10 * SECTOR);
  const out = bed.path('out');
  await bed.xts('--action', 'encode', '--start', String(start), input, out);
  const { size, blocks } = statSync(out);
  expect(size).toBe((start + 10) * SECTOR);
  expect(blocks * 512).toBeLessThan(MIB);
  const fd = openSync(out, 'r');
  const tail = Buffer.alloc(10 * SECTOR);
  readSync(fd, tail, 0, tail.length, start * SECTOR);
  closeSync(fd);
  expect(tail.equals(byNode('encode', zeroes, start))).toBe(true);

  // The same from a stream, which has to be read from its beginning.
  const near = 5 * 2048 + 1;
  const bytes = (near + 10) * SECTOR;
  await bed.shell(`head -c ${bytes} /dev/zero | XTS --start ${near} --len 10 - ${out}`);
  expect(readFileSync(out).equals(byNode('decode', zeroes, near))).toBe(true);
});

test('INPUT and OUTPUT may be the same file', async () => {
  await using bed = new XtsBed();
  const plain = randomBytes(3 * MIB + SECTOR);
  const file = bed.file('disk', plain);
  linkSync(file, bed.path('other-name'));
  symlinkSync('disk', bed.path('link'));
  await bed.xts('--action', 'encode', file, bed.path('link'));
  expect(readFileSync(file).equals(byNode('encode', plain))).toBe(true);
  expect(readFileSync(bed.path('other-name')).equals(plain)).toBe(true);
  await bed.shell(`XTS - ${file} < ${file}`);
  expect(readFileSync(file).equals(plain)).toBe(true);
  expect(bed.list()).toEqual(['disk', 'link', 'other-name', 'vm.yaml']);
});

test('streams: standard ones, FIFOs, in any pieces', async () => {
  await using bed = new XtsBed();
  const plain = randomBytes(2 * MIB + 3 * SECTOR);
  const whole = byNode('encode', plain);
  const disk = bed.file('disk', whole);
  bed.file('plain', plain);
  const out = bed.path('out');
  const result = () => readFileSync(out);

  await bed.shell(`cat ${disk} | XTS - - | cat > ${out}`);
  expect(result().equals(plain)).toBe(true);
  await bed.shell(`dd if=${bed.path('plain')} obs=1111 status=none | XTS --action encode - ${out}`);
  expect(result().equals(whole)).toBe(true);
  await bed.shell(`XTS --start 100 --len 3000 ${disk} - > ${out}`);
  expect(result().equals(plain.subarray(100 * SECTOR, 3100 * SECTOR))).toBe(true);
  // Of an endless stream no more is read than is asked for.
  await bed.shell(`(cat ${disk}; cat /dev/zero 2> /dev/null || true) | XTS --len 4 - ${out}`);
  expect(result().equals(plain.subarray(0, 4 * SECTOR))).toBe(true);
  await bed.shell(`XTS --action encode --packed --start 9 --len 3 ${bed.path('plain')} - > ${out}`);
  expect(result().equals(whole.subarray(9 * SECTOR, 12 * SECTOR))).toBe(true);

  const [first, second] = [bed.fifo('first'), bed.fifo('second')];
  await bed.shell(`cat ${disk} > ${first} & cat ${second} > ${out} & XTS ${first} ${second}; wait`);
  expect(result().equals(plain)).toBe(true);
  await bed.xts('--action', 'encode', '--len', '5', '/dev/zero', out);
  expect(result().equals(byNode('encode', Buffer.alloc(5 * SECTOR)))).toBe(true);
  await bed.xts(disk, '/dev/null');
}, 60_000);

test('wrapped keys, keys of equal halves, and the name of the reference system', async () => {
  await using bed = new XtsBed();
  const wrapped = [
    'vV2t42plNfVPlXSW4gxDf7U5Z0jAKwbh+OWgQqNLz6n+4sMt/PyELccAmGBh1DGw',
    'rEy88nt0JORehGWH8x1SbqQodlnROhfw6fSxU7Ja3riwtDtpPsivkd9BJMY3vTuu',
  ];
  const plain = bed.file('plain', randomBytes(4 * SECTOR));
  const kek = [
    'method: aes256-gcm',
    'key: ERERERERERERERERERERERERERERERERERERERERERE=',
    'init_vector: IiIiIiIiIiIiIiIi',
    'auth_data: dGVzdC1hYWQ=\n',
  ].join('\n');
  writeFileSync(bed.path('kek.yaml'), kek, { mode: 0o600 });
  const withKek = bed.config({ path: 'x', encryption_key: wrapped });
  const clear = [0xaa, 0xbb].map((byte) => Buffer.alloc(32, byte).toString('base64'));
  const without = bed.config({ path: 'x', encryption_key: clear });
  symlinkSync(binary, bed.path('xts'));
  const encode = [bed.path('xts'), '--action=encode', '-f'];
  await bed.run([...encode, withKek, '-k', bed.path('kek.yaml'), plain, bed.path('a')]);
  await bed.run([...encode, without, plain, bed.path('b')]);
  expect(readFileSync(bed.path('a')).equals(readFileSync(bed.path('b')))).toBe(true);
  expect(existsSync(bed.path('kek.yaml'))).toBe(true);

  const equal = Buffer.alloc(32, 7).toString('base64');
  const weak = bed.config({ path: 'x', encryption_key: [equal, equal] });
  const zero = bed.file('zero', Buffer.alloc(SECTOR));
  const refused = await bed.run([...encode, weak, zero, bed.path('c')], { expect: 1 });
  expect(refused.stderr.text).toContain('--allow-weak-key');
  expect(existsSync(bed.path('c'))).toBe(false);
  await bed.run([...encode, weak, '--allow-weak-key', zero, bed.path('c')]);
  expect(readFileSync(bed.path('c')).subarray(0, 16).toString('hex')).toBe(
    '706cd42abb9c668c556220b558e41d37',
  );
  const version = await bed.run([bed.path('xts'), '-V']);
  expect(version.stdout.text).toStartWith('xts ');
});

test.each([
  [['in', 'out'], "option '--config FILE' is required"],
  [['-f', 'vm.yaml'], 'argument INPUT is missing'],
  [['-f', 'vm.yaml', 'in'], 'argument OUTPUT is missing'],
  [['-f', 'vm.yaml', 'in', 'out', 'more'], "unexpected argument 'more'"],
  [['-f', 'vm.yaml', '-u', 'in', 'out'], "unknown option '-u'"],
  [
    ['-f', 'vm.yaml', '--packed', '--keep-offsets', 'in', 'out'],
    "options '--packed' and '--keep-offsets' exclude each other",
  ],
  [
    ['-f', 'vm.yaml', '--action', 'decrypt', 'in', 'out'],
    "--action must be one of decode, encode, not 'decrypt'",
  ],
  ...['1.5', '0x10', '', '1e3', '-1', '8796093022209', '9'.repeat(40)].flatMap((text) =>
    ['start', 'len'].map((option): [string[], string] => [
      ['-f', 'vm.yaml', `--${option}=${text}`, 'in', 'out'],
      `--${option} must be a whole number of sectors, at most 8796093022208, not '${text}'`,
    ]),
  ),
] as [string[], string][])('%j is wrong usage', async (args, sentence) => {
  await using bed = new XtsBed();
  bed.file('in', Buffer.alloc(SECTOR));
  const child = await bed.run([binary, 'xts', ...args], { expect: 2 });
  expect(child.stderr.text).toBe(`ubiblk xts: ${sentence}\nTry 'ubiblk xts --help'.\n`);
  expect(bed.list()).toEqual(['in', 'vm.yaml']);
});

test('ranges that the input does not have', async () => {
  await using bed = new XtsBed();
  const input = bed.file('in', Buffer.alloc(8 * SECTOR));
  const empty = bed.file('empty', Buffer.alloc(0));
  const odd = bed.file('odd', Buffer.alloc(1000));
  const out = bed.file('out', Buffer.from('old'));
  const behind = (start: number, name = `'${input}'`) =>
    `--start ${start} is behind the end of ${name}, which has 8 sectors; give less`;
  const beyond = (start: number, len: number, name = `'${input}'`) =>
    `--start ${start} --len ${len} goes beyond the end of ${name}, which has 8 sectors; ` +
    `give --len ${8 - start} or less`;
  const nothing = (name: string, done = 'decrypted') =>
    `${name} is empty: there is nothing to be ${done}; is it the right file?`;
  const broken = (name: string) =>
    `${name} has 1000 bytes, which is not a multiple of 512: only whole sectors can be decrypted; ` +
    'make sure that nothing of it is missing';

  await bed.refuses(behind(8), '--start', '8', input, out);
  await bed.refuses(behind(8), '--start', '8', '--len', '0', input, out);
  await bed.refuses(behind(2 ** 43), '--start', String(2 ** 43), input, out);
  await bed.refuses(beyond(4, 5), '--start', '4', '--len', '5', input, out);
  await bed.refuses(beyond(7, 2 ** 43), '--start', '7', '--len', String(2 ** 43), input, out);
  await bed.refuses(nothing(`'${empty}'`), empty, out);
  await bed.refuses(nothing(`'${empty}'`, 'encrypted'), '--action', 'encode', empty, out);
  await bed.refuses(nothing(`'${empty}'`), '--len', '0', empty, out);
  await bed.refuses(broken(`'${odd}'`), odd, out);

  const before = bed.list();
  const stdin = 'standard input';
  for (const [options, file, sentence] of [
    ['--start 8', input, behind(8, stdin)],
    ['--start 9000', input, behind(9000, stdin)],
    ['--start 8 --len 0', input, behind(8, stdin)],
    ['--start 4 --len 5', input, beyond(4, 5, stdin)],
    ['', empty, nothing(stdin)],
    ['--start 3', empty, nothing(stdin)],
    ['--len 0', empty, nothing(stdin)],
    ['', odd, broken(stdin)],
    ['--start 1', odd, broken(stdin)],
    ['--start 1 --len 1', odd, broken(stdin)],
    ['--start 2', odd, broken(stdin)],
  ]) {
    const child = await bed.shell(`cat ${file} | XTS ${options} - ${out}`, 1);
    expect(child.stderr.text).toBe(`[ERROR xts] ${sentence}\n`);
    expect(bed.list()).toEqual(before);
  }
  expect(readFileSync(out, 'utf8')).toBe('old');
}, 60_000);

test('inputs, outputs and configurations that are none', async () => {
  await using bed = new XtsBed();
  const input = bed.file('in', Buffer.alloc(8 * SECTOR));
  const out = bed.path('out');
  mkdirSync(bed.path('folder'));
  const folder = bed.path('folder');
  await bed.refuses(`'${bed.path('absent')}' cannot be read: ENOENT`, bed.path('absent'), out);
  await bed.refuses(`'${folder}' is a folder; give the name of a file`, folder, out);
  await bed.refuses(`'${folder}' is a folder; give the name of a file`, input, folder);
  await bed.refuses(`'${out}/' is no name of a file; give OUTPUT one`, input, `${out}/`);
  await bed.refuses("'' is no name of a file; give OUTPUT one", input, '');
  const lost = bed.path('absent/out');
  const noFolder = `the folder '${bed.path('absent')}' of '${lost}' does not exist; create it`;
  await bed.refuses(noFolder, input, lost);
  await bed.refuses(`'${input}/out' cannot be written: ENOTDIR`, input, `${input}/out`);
  const long = bed.path('x'.repeat(300));
  await bed.refuses(`'${long}' cannot be written: ENAMETOOLONG`, input, long);
  await bed.refuses("cannot write to '/dev/full': ENOSPC", input, '/dev/full');

  const noKey = bed.config({ path: 'absent.img' }, 'nokey.yaml');
  const child = await bed.run([binary, 'xts', '-f', noKey, input, out], { expect: 1 });
  expect(child.stderr.text).toBe(
    `[ERROR xts] ${noKey}: encryption_key: is required to encrypt and decrypt; ` +
      'add the two keys of the disk\n',
  );
  expect(existsSync(out)).toBe(false);
});

test('streams keep no offsets, and fail when nobody reads them', async () => {
  await using bed = new XtsBed();
  const input = bed.file('in', Buffer.alloc(4 * MIB));
  const sentence = (name: string) =>
    `${name} is a stream, in which sectors cannot keep their offsets; ` +
    'give --packed, or a file as OUTPUT';
  const stdout = sentence('standard output');
  await bed.refuses(stdout, '--keep-offsets', '--start', '1', input, '-');
  await bed.refuses(stdout, '--action', 'encode', '--start', '1', input, '-');
  await bed.refuses(sentence("'/dev/null'"), '--keep-offsets', '--start=1', input, '/dev/null');
  const whole = await bed.shell(`XTS --keep-offsets ${input} - | wc -c`);
  expect(whole.stdout.text.trim()).toBe(String(4 * MIB));
  const gone = await bed.shell(`XTS ${input} - | true`, 1);
  expect(gone.stderr.text).toBe('[ERROR xts] cannot write to standard output: EPIPE\n');
});

test('a file that becomes too large leaves nothing', async () => {
  await using bed = new XtsBed();
  const input = bed.file('in', Buffer.alloc(10 * MIB));
  const out = bed.file('out', Buffer.from('old'));
  const before = bed.list();
  const child = await bed.shell(`ulimit -f 9000; XTS ${input} ${out}`, 1);
  expect(child.stderr.text).toBe(`[ERROR xts] cannot write to '${out}': EFBIG\n`);
  expect(bed.list()).toEqual(before);
  expect(readFileSync(out, 'utf8')).toBe('old');
});

test('an input that is cut off meanwhile is an error', async () => {
  await using bed = new XtsBed();
  const input = bed.file('in', Buffer.alloc(16 * MIB));
  const output = bed.fifo('output');
  const child = bed.spawn(bed.argv(input, output));
  const report = () => child.report();
  // It waits with its first megabyte until someone reads more than a pipe holds.
  const reader = await within(openFile(output, 'r'), 20_000, report);
  const chunk = Buffer.alloc(MIB);
  const receive = async (length: number) =>
    (await within(readBytes(reader, chunk, 0, length, null), 20_000, report)).bytesRead;
  expect(await receive(1)).toBe(1);
  truncateSync(input, 0);
  while ((await receive(MIB)) > 0);
  closeSync(reader);
  expect(await child.exit(20_000)).toBe(1);
  expect(child.stderr.text).toBe(
    `[ERROR xts] '${input}' became shorter while it was read; see what else writes it\n`,
  );
});

test.each([
  ['SIGINT', 130],
  ['SIGTERM', 143],
  ['SIGHUP', 129],
  ['SIGQUIT', 131],
] as const)('%s in the middle leaves nothing behind', async (signal, status) => {
  await using bed = new XtsBed();
  const input = bed.fifo('input');
  const out = bed.file('out', Buffer.from('old'));
  const before = bed.list();
  // For both directions: opening it waits for nobody.
  const writer = openSync(input, 'r+');
  const child = await bed.begun(() => bed.spawn(bed.argv('--action', 'encode', input, out)));
  // When this is done, at least a megabyte has been taken and the next one is waited for.
  const taken = writeBytes(writer, Buffer.alloc(2 * MIB + 100));
  await within(taken, 20_000, () => child.report());
  child.signal(signal);
  expect(await child.exit(20_000)).toBe(status);
  closeSync(writer);
  expect(child.stderr.text).toBe(`[ERROR xts] ${signal}: ended before everything was done\n`);
  expect(bed.list()).toEqual(before);
  expect(readFileSync(out, 'utf8')).toBe('old');
});

test('a run that waits for its input to be opened can be ended', async () => {
  await using bed = new XtsBed();
  const input = bed.fifo('input');
  const before = bed.list();
  const child = bed.spawn(bed.argv(input, bed.path('out')));
  // The open of a FIFO's other side, without waiting, works once the process is there.
  const opened = async () => {
    for (;;) {
      try {
        return openSync(input, constants.O_WRONLY | constants.O_NONBLOCK);
      } catch {
        await new Promise(setImmediate);
      }
    }
  };
  const writer = await within(opened(), 20_000, () => child.report());
  child.signal('SIGINT');
  expect(await child.exit(20_000)).toBe(130);
  closeSync(writer);
  expect(bed.list()).toEqual(before);
});

test('a signal that was ignored from the beginning stays so', async () => {
  await using bed = new XtsBed();
  const input = bed.fifo('input');
  const out = bed.path('out');
  const writer = openSync(input, 'r+');
  const argv = ['bash', '-c', 'trap "" HUP; exec "$@"', '-', ...bed.argv('--len', '2', input, out)];
  const child = await bed.begun(() => bed.spawn(argv));
  child.signal('SIGHUP');
  const bytes = randomBytes(2 * SECTOR);
  writeSync(writer, bytes);
  expect(await child.exit(20_000)).toBe(0);
  closeSync(writer);
  expect(readFileSync(out).equals(byNode('decode', bytes))).toBe(true);
});

testWith(
  'block devices are written in place, if they are large enough and free',
  [need.loop()],
  async () => {
    await using bed = new XtsBed();
    const plain = randomBytes(4 * MIB);
    const input = bed.file('in', plain);
    const device = bed.disk({ kind: 'loop512', sizeBytes: 4 * MIB });
    const other = bed.disk({ kind: 'loop512', sizeBytes: 5 * MIB });
    const small = bed.disk({ kind: 'loop512', sizeBytes: MIB });
    await bed.xts('--action', 'encode', input, device);
    expect(readFileSync(device).equals(byNode('encode', plain))).toBe(true);
    await bed.xts('--start', '100', device, bed.path('out'));
    expect(readFileSync(bed.path('out')).equals(plain.subarray(100 * SECTOR))).toBe(true);
    // From device to device, and behind what is written nothing changes.
    await bed.xts('--start', '8', '--len', '8', '--keep-offsets', device, other);
    const written = readFileSync(other);
    expect(written.subarray(8 * SECTOR, 16 * SECTOR).equals(plain.subarray(4096, 8192))).toBe(true);
    expect(written.subarray(16 * SECTOR).every((byte) => byte === 0)).toBe(true);
    expect(statSync(device).isBlockDevice()).toBe(true);

    const noRoom = (bytes: number) =>
      `'${small}' has ${MIB} bytes, but ${bytes} are needed; ` +
      'give a larger device or a smaller --len';
    await bed.refuses(noRoom(4 * MIB), '--action', 'encode', input, small);
    await bed.refuses(noRoom(MIB + 512), '--keep-offsets', '--start=2048', '--len=1', input, small);
    const piped = await bed.shell(`cat ${input} | XTS - ${small}`, 1);
    expect(piped.stderr.text).toBe(`[ERROR xts] cannot write to '${small}': ENOSPC\n`);
    await bed.refuses(
      `'${device}' is both INPUT and OUTPUT, and a run that is interrupted would leave a mixture; ` +
        'write to another device or file',
      device,
      device,
    );
    const holder = openSync(other, constants.O_RDWR | constants.O_EXCL);
    await bed.refuses(
      `'${other}' cannot be written: it is mounted or in use by another program (EBUSY)`,
      input,
      other,
    );
    closeSync(holder);
  },
  60_000,
);

testWith(
  'files and folders without permission are refused to another user',
  [need.root(), need.program('setpriv')],
  async () => {
    await using bed = new XtsBed();
    const input = bed.file('in', Buffer.alloc(SECTOR));
    const out = bed.file('out', Buffer.from('old'));
    chmodSync(bed.folder, 0o755);
    chmodSync(bed.configFile, 0o644);
    const asNobody = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'];
    const warning = `[WARN xts] the configuration file '${bed.configFile}' holds secrets but is open `;
    const says = async (sentence: string, ...args: string[]) => {
      const child = await bed.run([...asNobody, ...bed.argv(...args)], { expect: 1 });
      expect(child.stderr.text).toStartWith(warning);
      expect(child.stderr.text).toEndWith(`\n[ERROR xts] ${sentence}\n`);
    };
    const fresh = bed.path('fresh');
    await says(`'${fresh}' cannot be made in its folder '${bed.folder}': EACCES`, input, fresh);
    chmodSync(bed.folder, 0o777);
    await says(`'${out}' is there and may not be written: EACCES`, input, out);
    // A folder that takes files and shows none could not be synced.
    chmodSync(out, 0o666);
    chmodSync(bed.folder, 0o733);
    await says(`'${out}' cannot be completed: EACCES`, input, out);
    chmodSync(bed.folder, 0o777);
    chmodSync(input, 0o600);
    await says(`'${input}' cannot be read: EACCES`, input, fresh);
    expect(bed.list()).toEqual(['in', 'out', 'vm.yaml']);
    expect(readFileSync(out, 'utf8')).toBe('old');
  },
  20_000,
);
