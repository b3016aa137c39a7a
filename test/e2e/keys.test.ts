/** `ubiblk keys` against another implementation of AES-GCM, and against `serve vhost`. */
import { expect, test } from 'bun:test';
import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { binary } from './processes.ts';
import { Bed, need, testWith } from './support.ts';

const comment = '# Whoever reads these keys reads the disk.\n';
const hint = (command: string) => `Try 'ubiblk keys ${command} --help'.\n`;

/** Unwraps with node's OpenSSL what is named on its command line, and prints it in hexadecimal. */
const unwrapInNode = `
  const { createDecipheriv } = require('node:crypto');
  const [kekFile, ...texts] = process.argv.slice(1);
  const kek = require('node:fs').readFileSync(kekFile, 'utf8');
  const part = (name) =>
    Buffer.from(new RegExp('^' + name + ': "([A-Za-z0-9+/=]*)"$', 'm').exec(kek)[1], 'base64');
  for (const text of texts) {
    const wrapped = Buffer.from(text, 'base64');
    const decipher = createDecipheriv('aes-256-gcm', part('key'), part('init_vector'));
    decipher.setAAD(part('auth_data'));
    decipher.setAuthTag(wrapped.subarray(-16));
    const plain = [decipher.update(wrapped.subarray(0, -16)), decipher.final()];
    console.log(Buffer.concat(plain).toString('hex'));
  }`;

async function keys(bed: Bed, args: string[], status = 0) {
  const { stdout, stderr } = await bed.run([binary, 'keys', ...args], { expect: status });
  return { stdout: stdout.text, stderr: stderr.text };
}

/** The two texts of a line for a configuration, as they are. */
function textsOf(output: string): [string, string] {
  const [, data, tweak] = /^encryption_key: \["([^"]*)", "([^"]*)"\]\n$/m.exec(output) ?? [];
  return [data, tweak];
}

/** Whether a server takes a configuration with these lines more for an encrypted disk. */
async function accepts(bed: Bed, lines: string, ...more: string[]): Promise<void> {
  const config = bed.config({ path: bed.disk({ sizeBytes: 1 << 20 }), socket: bed.path('s') });
  chmodSync(config, 0o600);
  appendFileSync(config, lines);
  const argv = [binary, 'serve', 'vhost', '--check', '--strict', '--config', config, ...more];
  const { stdout, stderr } = await bed.run(argv);
  expect(stdout.text).toContain(' of 1048576 bytes, encrypted');
  expect(stderr.text).toBe('');
}

test('plain keys are 32 bytes each, say what they are, and are taken by a server', async () => {
  await using bed = new Bed();
  const { stdout, stderr } = await keys(bed, ['generate']);
  expect(stderr).toBe('');
  expect(stdout).toStartWith(`${comment}encryption_key: `);
  const texts = textsOf(stdout);
  expect(texts.map((text) => Buffer.from(text, 'base64').length)).toEqual([32, 32]);
  const others = textsOf((await keys(bed, ['generate'])).stdout);
  expect(new Set([...texts, ...others]).size).toBe(4);
  await accepts(bed, stdout);
});

test('wrapped keys are unwrapped by another implementation, and by a server', async () => {
  await using bed = new Bed();
  const kek = bed.path('disk.kek');
  await keys(bed, ['kek', '--output', kek, '--auth-data', 'disk 7 ü']);
  const { stdout, stderr } = await keys(bed, ['generate', '--kek', kek]);
  expect(stderr).toBe('');
  expect(stdout).toStartWith('encryption_key: ');
  const node = await bed.run(['node', '-e', unwrapInNode, kek, ...textsOf(stdout)]);
  const [data, tweak] = node.stdout.text.trimEnd().split('\n');
  expect(data).toMatch(/^[0-9a-f]{64}$/);
  expect(tweak).toMatch(/^[0-9a-f]{64}$/);
  expect(data).not.toBe(tweak);
  await accepts(bed, stdout, '--kek', kek);
});

test('the same keys are one object as JSON', async () => {
  await using bed = new Bed();
  const kek = bed.path('disk.kek');
  await keys(bed, ['kek', '--output', kek]);
  for (const [args, lengthBytes, wrapped] of [
    [[], 32, false],
    [['-k', kek], 48, true],
  ] as const) {
    const { stdout } = await keys(bed, ['generate', '--json', ...args]);
    const { encryption_key: texts, ...rest } = JSON.parse(stdout);
    expect(texts.map((text: string) => Buffer.from(text, 'base64').length)).toEqual(
      Array(2).fill(lengthBytes),
    );
    expect(rest).toEqual({ wrapped });
  }
});

test('a KEK that wraps nothing wraps nothing, one that is not whole is refused', async () => {
  await using bed = new Bed();
  const file = bed.path('a.kek');
  writeFileSync(file, 'method: none\n', { mode: 0o600 });
  const { stdout } = await keys(bed, ['generate', '--kek', file]);
  expect(stdout).toStartWith(comment);
  await accepts(bed, stdout, '--kek', file);

  const nonce = 'init_vector: IiIiIiIiIiIiIiIi\n';
  writeFileSync(file, `method: aes256-gcm\nkey: YQ==\n${nonce}auth_data: ""\n`);
  const short = await keys(bed, ['generate', '--kek', file], 1);
  expect(short).toEqual({
    stdout: '',
    stderr:
      '[ERROR keys-generate] new keys cannot be encrypted: ' +
      `the KEK file '${file}' has a 'key' of 1 bytes instead of 32\n`,
  });
  const absent = await keys(bed, ['generate', '--kek', bed.path('absent')], 1);
  expect(absent).toEqual({
    stdout: '',
    stderr: `[ERROR keys-generate] cannot read the KEK file '${bed.path('absent')}': ENOENT\n`,
  });
});

test('a KEK that others may read is warned of', async () => {
  await using bed = new Bed();
  const kek = bed.path('disk.kek');
  await keys(bed, ['kek', '--output', kek]);
  chmodSync(kek, 0o640);
  const { stderr } = await keys(bed, ['generate', '--kek', kek]);
  expect(stderr).toBe(
    `[WARN keys-generate] the KEK file '${kek}' is open to its group or to others; chmod it to 600\n`,
  );
});

test('a KEK file is for its owner alone, whatever the umask, and is what stdout would get', async () => {
  await using bed = new Bed();
  const script = 'umask 0 && exec "$0" keys kek --output disk.kek --auth-data=""';
  const child = await bed.run(['bash', '-c', script, binary]);
  expect(child.stdout.text + child.stderr.text).toBe('');
  expect(statSync(bed.path('disk.kek')).mode & 0o7777).toBe(0o600);
  expect(readdirSync(bed.folder)).toEqual(['disk.kek']);
  const { stdout } = await keys(bed, ['kek']);
  const shape = (text: string) => text.replace(/^(key|init_vector): "[^"]*"$/gm, '$1');
  expect(shape(stdout)).toBe(
    "# For one disk: make another KEK whenever the disk's keys are made anew.\n" +
      'method: aes256-gcm\nkey\ninit_vector\nauth_data: "dWJpYmxr"\n',
  );
  const text = readFileSync(bed.path('disk.kek'), 'utf8');
  expect(shape(text)).toBe(shape(stdout).replace('dWJpYmxr', ''));
  const secretsOf = (kek: string) =>
    [...kek.matchAll(/^(?:key|init_vector): "(.*)"$/gm)].map(([, part]) => part);
  expect(secretsOf(text).map((part) => Buffer.from(part, 'base64').length)).toEqual([32, 12]);
  expect(new Set([...secretsOf(text), ...secretsOf(stdout)]).size).toBe(4);
});

test('a KEK file that is there stays, unless it is replaced by --force', async () => {
  await using bed = new Bed();
  const kek = bed.path('disk.kek');
  writeFileSync(kek, 'precious', { mode: 0o644 });
  const refused = await keys(bed, ['kek', '--output', kek], 1);
  expect(refused).toEqual({
    stdout: '',
    stderr:
      `[ERROR keys-kek] '${kek}' is there already; what its KEK has wrapped would be lost: ` +
      'choose another name, or replace it with --force\n',
  });
  expect(readFileSync(kek, 'utf8')).toBe('precious');
  expect(readdirSync(bed.folder)).toEqual(['disk.kek']);

  await keys(bed, ['kek', '--output', kek, '--force']);
  expect(readFileSync(kek, 'utf8')).toContain('method: aes256-gcm\n');
  expect(statSync(kek).mode & 0o7777).toBe(0o600);
  expect(readdirSync(bed.folder)).toEqual(['disk.kek']);
});

test('where no file can be made, nothing is left', async () => {
  await using bed = new Bed();
  mkdirSync(bed.path('folder'));
  for (const path of ['folder', 'absent/disk.kek']) {
    for (const force of [[], ['--force']]) {
      const argv = ['kek', '--output', bed.path(path), ...force];
      const { stdout, stderr } = await keys(bed, argv, 1);
      expect(stdout).toBe('');
      expect(stderr).toStartWith('[ERROR keys-kek] ');
      expect(stderr).toContain(bed.path(path));
    }
  }
  expect(readdirSync(bed.folder)).toEqual(['folder']);
  expect(readdirSync(bed.path('folder'))).toEqual([]);
  for (const command of ['generate', 'kek']) {
    const script = '"$0" keys "$1" > /dev/full';
    const full = await bed.run(['bash', '-c', script, binary, command], { expect: 1 });
    expect(full.stderr.text).toBe(
      `[ERROR keys-${command}] cannot write to standard output: ENOSPC\n`,
    );
  }
});

testWith(
  'where there is no room for a KEK, nothing is left',
  [need.root(), need.program('unshare')],
  async () => {
    await using bed = new Bed();
    mkdirSync(bed.path('full'));
    const script = `mount -t tmpfs -o size=4k tmpfs full && head -c 4096 /dev/zero > full/rest || exit 97
"$0" keys kek --output full/disk.kek
status=$?
ls -A full
exit $status`;
    const argv = ['unshare', '-m', '--', 'bash', '-c', script, binary];
    const child = await bed.run(argv, { expect: 1 });
    expect(child.stderr.text).toBe("[ERROR keys-kek] 'full/disk.kek' cannot be written: ENOSPC\n");
    expect(child.stdout.text).toBe('rest\n');
  },
  20_000,
);

test.each([
  [['kek', '--force'], "option '--force' needs '--output FILE'"],
  [['kek', '--output='], "option '--output' needs a path that is not empty"],
  [['kek', `--auth-data=${'x'.repeat(1025)}`], '--auth-data must be at most 1024 bytes'],
  [['generate', 'more'], "unexpected argument 'more'"],
])('wrong arguments: %j', async (args, sentence) => {
  await using bed = new Bed();
  const { stdout, stderr } = await keys(bed, args, 2);
  expect(stdout).toBe('');
  expect(stderr).toBe(`ubiblk keys ${args[0]}: ${sentence}\n${hint(args[0])}`);
});
