/** `ubiblk shell` from a pipe, and on a terminal. */

import { expect, test } from 'bun:test';
import { readFileSync, writeFileSync } from 'node:fs';
import { binary, within } from './processes.ts';
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

/** A program on a terminal of its own, which `script` gives it. */
class Terminal {
  /** All that was shown since the last {@link type}. */
  private shown = '';
  private changed = Promise.withResolvers<void>();
  private readonly process;

  constructor(command: string) {
    this.process = Bun.spawn(['script', '-qefc', command, '/dev/null'], {
      stdin: 'pipe',
      stdout: 'pipe',
      env: { ...process.env, TERM: 'xterm' },
    });
    void this.watch();
  }

  type(keys: string): void {
    this.shown = '';
    this.process.stdin.write(keys);
    this.process.stdin.flush();
  }

  /** Waits for a line that is exactly this. */
  async line(text: string): Promise<void> {
    await this.until(() => this.lines().includes(text), text);
  }

  async prompt(): Promise<void> {
    await this.until(() => this.shown.endsWith(PROMPT), 'a prompt');
  }

  lines(): string[] {
    return this.shown.split(/[\r\n]+/);
  }

  async exit(): Promise<number> {
    return await within(this.process.exited, 10_000, () => `the end; shown: ${this.shown}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.process.kill('SIGKILL');
    await this.process.exited;
  }

  private async watch(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const part of this.process.stdout) {
      this.shown += decoder.decode(part, { stream: true });
      this.changed.resolve();
      this.changed = Promise.withResolvers<void>();
    }
  }

  private async until(come: () => boolean, what: string): Promise<void> {
    const wait = async () => {
      while (!come()) await this.changed.promise;
    };
    await within(wait(), 10_000, () => `'${what}'; shown: ${JSON.stringify(this.shown)}`);
  }
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
    await using shell = new Terminal(`'${binary}' shell --server-config '${server.config}'`);
    await shell.prompt();
    shell.type(`stripe_headr 0${left.repeat(3)}e\r`);
    await shell.line('0x07 WRITTEN');
    await shell.prompt();
    shell.type(`stripe_header 9${control('A')}${control('K')}help\r`);
    await shell.line('exit, quit             ends the shell');
    await shell.prompt();
    shell.type('fetch_stripe 1\r');
    await shell.line('FETCHED');
    await shell.prompt();
    shell.type(`${up.repeat(3)}\x7f7\r`);
    await shell.line('INVALID_STRIPE');
    await shell.prompt();
    shell.type(`half a command${left.repeat(4)}${control('C')}`);
    await shell.prompt();
    expect(shell.lines().some((line) => line.endsWith('^C'))).toBe(true);
    shell.type('dump_stripe 1 0 4\r');
    await shell.line(
      readFileSync(image)
        .subarray(MIB, MIB + 4)
        .toString('hex'),
    );
    await shell.prompt();
    shell.type('quit\r');
    expect(await shell.exit()).toBe(0);

    await using other = new Terminal(`'${binary}' shell --server-config '${server.config}'`);
    await other.prompt();
    other.type(control('D'));
    expect(await other.exit()).toBe(0);

    await endStripes(server);
    await using refused = new Terminal(`'${binary}' shell --server-config '${server.config}'`);
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
    await using shell = new Terminal(command);
    shell.type('stripe_header 0\rexit\r');
    expect(await shell.exit()).toBe(0);
    expect(readFileSync(answers, 'utf8')).toBe('0x07 WRITTEN\n');
    await endStripes(server);
  },
  30_000,
);
