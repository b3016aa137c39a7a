/** `ubiblk shell` from a pipe, and on a terminal. */

import { expect, test } from 'bun:test';
import { readFileSync, writeFileSync } from 'node:fs';
import { Dialogue } from './dialogue.ts';
import { binary } from './processes.ts';
import { endStripes, MIB, psk, serveStripes } from './remote.ts';
import { Bed, need, seed, testWith } from './support.ts';

test('the shell answers from a pipe as specified', async () => {
  await using bed = new Bed();
  const image = bed.disk({ sizeBytes: 2 * MIB + 512 });
  bed.fill(image, 2 * MIB + 512, seed);
  const server = await serveStripes(bed, image);
  const commands = [
    'stripe_header 0',
    'stripe_header 3',
    'dump_stripe 1 0 4',
    'fetch_stripe 1',
    'dump_stripe 1 16 8',
    'dump_stripe 1 1048575 2',
    'fetch_stripe 2 more words',
    'dump_stripe 2 510 4',
    'fetch_stripe',
    'fetch_stripe x',
    'bogus',
    'exit',
    'stripe_header 0',
  ].join('\n');
  const argv = [binary, 'shell', '--server-config', server.config];
  await using shell = Bun.spawn(argv, {
    stdin: Buffer.from(commands),
    stdout: 'pipe',
    stderr: 'pipe',
  });
  const text = await new Response(shell.stdout).text();
  expect(await shell.exited).toBe(0);
  const bytes = readFileSync(image);
  const hex = (from: number, length: number) => bytes.subarray(from, from + length).toString('hex');
  expect(text.trimEnd().split('\n')).toEqual([
    '0x07 WRITTEN',
    'INVALID_STRIPE',
    'NOT_FETCHED_FROM_REMOTE',
    'FETCHED',
    hex(MIB + 16, 8),
    'INVALID_RANGE',
    'FETCHED',
    `${hex(2 * MIB + 510, 2)}0000`,
    'error: MISSING_ARGUMENT: N',
    'error: INVALID_NUMBER: x',
    'UNKNOWN_COMMAND: bogus',
    "type 'help' for a list of commands",
  ]);
  await endStripes(server);
  const dead = await bed.run(argv, { expect: 1 });
  expect(dead.stderr.text).toMatch(
    /^\[ERROR shell\] the stripe server can't be used: 127\S+ can't/,
  );
});

testWith(
  'all addresses of a name are tried',
  [need.root(), need.program('unshare')],
  async () => {
    await using bed = new Bed();
    const server = await serveStripes(bed, bed.disk({ sizeBytes: MIB }));
    const port = server.address.split(':')[1];
    const config = bed.config({ address: `two.example:${port}`, ...psk });
    // The first one is that of nobody.
    writeFileSync(bed.path('hosts'), '::1 two.example\n127.0.0.1 two.example\n');
    const script = `mount --bind '${bed.path('hosts')}' /etc/hosts
      echo stripe_header 0 | '${binary}' shell --server-config '${config}'`;
    const { stdout } = await bed.run(['unshare', '-m', 'sh', '-ec', script]);
    expect(stdout.text).toBe('0x07 WRITTEN\n');
    await endStripes(server);
  },
  30_000,
);

/** At the end of what is shown, with the cursor behind it. */
const PROMPT = '> \x1b[3G';

/** Waits for the shell's prompt. */
function prompt(shell: Dialogue): Promise<void> {
  return shell.until(() => shell.shown.endsWith(PROMPT), 'a prompt');
}

const left = '\x1b[D';
const up = '\x1b[A';
const control = (letter: string) => String.fromCharCode(letter.charCodeAt(0) - 64);

testWith(
  'on a terminal lines can be edited and taken from the history, and Ctrl-C drops one',
  [need.program('script')],
  async () => {
    await using bed = new Bed();
    const image = bed.disk({ sizeBytes: 2 * MIB });
    bed.fill(image, 2 * MIB, seed);
    const server = await serveStripes(bed, image);
    await using shell = new Dialogue(`'${binary}' shell --server-config '${server.config}'`);
    await prompt(shell);
    shell.type(`stripe_headr 0${left.repeat(3)}e\r`);
    await shell.line('0x07 WRITTEN');
    await prompt(shell);
    shell.type(`stripe_header 9${control('A')}${control('K')}help\r`);
    await shell.line('exit, quit             ends the shell');
    await prompt(shell);
    shell.type('fetch_stripe 1\r');
    await shell.line('FETCHED');
    await prompt(shell);
    shell.type(`${up.repeat(3)}\x7f7\r`);
    await shell.line('INVALID_STRIPE');
    await prompt(shell);
    shell.type(`half a command${left.repeat(4)}${control('C')}`);
    await prompt(shell);
    expect(shell.lines().some((line) => line.endsWith('^C'))).toBe(true);
    shell.type('dump_stripe 1 0 4\r');
    await shell.line(
      readFileSync(image)
        .subarray(MIB, MIB + 4)
        .toString('hex'),
    );
    await prompt(shell);
    shell.type('quit\r');
    expect(await shell.exit()).toBe(0);

    await using other = new Dialogue(`'${binary}' shell --server-config '${server.config}'`);
    await prompt(other);
    other.type(control('D'));
    expect(await other.exit()).toBe(0);

    await endStripes(server);
    await using refused = new Dialogue(`'${binary}' shell --server-config '${server.config}'`);
    expect(await refused.exit()).toBe(1);
  },
  60_000,
);

testWith(
  'where only the input is a terminal, the output has answers alone',
  [need.program('script')],
  async () => {
    await using bed = new Bed();
    const server = await serveStripes(bed, bed.disk({ sizeBytes: MIB }));
    const answers = bed.path('answers');
    const command = `'${binary}' shell --server-config '${server.config}' > '${answers}'`;
    await using shell = new Dialogue(command);
    shell.type('stripe_header 0\rexit\r');
    expect(await shell.exit()).toBe(0);
    expect(readFileSync(answers, 'utf8')).toBe('0x07 WRITTEN\n');
    await endStripes(server);
  },
  30_000,
);
