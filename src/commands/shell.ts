import { createInterface } from 'node:readline';
import { isatty } from 'node:tty';
import { unlinkKekFile } from '../config/kek.ts';
import { loadServerConfig } from '../config/load_remote_config.ts';
import { UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { nativeMemory } from '../remote/channel.ts';
import { StripeConnection } from '../remote/connection.ts';
import { StripeShell } from '../remote/shell.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';

const STDIN = 0;
const STDOUT = 1;

/** `ubiblk shell`: looks at what a stripe server has (docs/remote-stripes.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const file = args.required('server-config');
  const kekFile = args.value('kek');
  const { config, wipeSecrets } = loadServerConfig(file, {
    ...(kekFile !== undefined && { kekFile }),
    strict: args.has('strict'),
    warn: (line) => log.warn(line),
  });
  const { address, psk, connectTimeoutMs, operationTimeoutMs } = config;
  let connection: StripeConnection;
  try {
    connection = await StripeConnection.open({
      address,
      ...(psk && { psk }),
      connectMs: connectTimeoutMs,
      operationMs: operationTimeoutMs,
    });
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(`the stripe server can't be used: ${(error as Error).message}`);
  } finally {
    wipeSecrets();
  }
  if (args.has('unlink-kek') && kekFile !== undefined) unlinkKekFile(kekFile);
  const memory = nativeMemory(connection.stripes.stripeBytes);
  try {
    await converse(new StripeShell(connection, memory));
  } finally {
    connection.close();
  }
  return 0;
}

/** Reads commands until there are no more: with a prompt and a history from a terminal. */
async function converse(shell: StripeShell): Promise<void> {
  const terminal = isatty(STDIN) && isatty(STDOUT);
  const lines = createInterface({
    input: process.stdin,
    ...(terminal && { output: process.stdout, prompt: '> ' }),
    terminal,
  });
  lines.on('SIGINT', () => {
    writeOutput('^C\n');
    // What was typed is dropped.
    for (const name of ['e', 'u']) lines.write(null, { ctrl: true, name });
    lines.prompt();
  });
  if (terminal) lines.prompt();
  let left = false;
  for await (const line of lines) {
    const answer = await shell.run(line);
    if (answer === null) {
      left = true;
      break;
    }
    if (answer !== '') writeOutput(`${answer}\n`);
    if (terminal) lines.prompt();
  }
  // Whatever comes next on the terminal begins a line.
  if (terminal && !left) writeOutput('\n');
  lines.close();
}
