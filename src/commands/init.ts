import { join } from 'node:path';
import { isatty } from 'node:tty';
import { UsageError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { Arguments } from './arguments.ts';
import { exitOnSignals } from './end_signals.ts';
import { type MadeFile, makeFolder } from './init_folder.ts';
import { type InitPlan, names, readPlan } from './init_plan.ts';
import { unitName } from './init_unit.ts';
import { writeOutput } from './output.ts';
import { Progress } from './progress.ts';

const STDIN = 0;
const STDERR = 2;

/** `ubiblk init`: makes a folder with a disk that is ready to be served (docs/init.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const plan = await planOf(args);
  if (plan === null) {
    writeOutput('nothing was made\n');
    return 0;
  }
  const progress = new Progress();
  exitOnSignals((signal) => {
    progress.clear();
    log.error(`${signal}: ended before everything was made; nothing of it is left`);
  });
  let made: MadeFile[];
  try {
    made = await makeFolder(plan, process.execPath, progress, log);
  } finally {
    progress.clear();
  }
  writeOutput(args.has('json') ? json(plan, made) : lines(plan, made));
  return 0;
}

async function planOf(args: Arguments): Promise<InitPlan | null> {
  const [folder] = args.operands;
  if (folder === '') throw new UsageError('DIR must not be empty');
  if (args.has('size')) return readPlan(folder ?? '.', args);
  if (!isatty(STDIN) || !isatty(STDERR)) {
    throw new UsageError("option '--size' is required (on a terminal it would be asked for)");
  }
  const { ask } = await import('./init_wizard.ts');
  const answers = await ask(args, folder);
  return answers && readPlan(answers.folder, answers);
}

function commandsOf(plan: InitPlan): Record<string, string> {
  const { folder, frontend, socket, kek } = plan;
  const config = quoted(join(folder, names.config));
  const withKek = kek === undefined ? '' : ` --kek ${quoted(kek)}`;
  const listen = frontend === 'nbd' ? ` --listen ${quoted(`unix:${socket}`)}` : '';
  const unit = quoted(join(folder, unitName(plan)));
  return {
    serve: `ubiblk serve ${frontend} --config ${config}${listen}${withKek}`,
    service: `systemctl enable --now ${unit}`,
  };
}

function lines(plan: InitPlan, made: readonly MadeFile[]): string {
  const width = Math.max(...made.map(({ path }) => path.length));
  const { serve, service } = commandsOf(plan);
  return [
    ...made.map(({ path, what }) => `${path.padEnd(width)}  ${what}`),
    'To serve it:',
    `    ${serve}`,
    'or, as a service:',
    `    ${service}`,
    '',
  ].join('\n');
}

function json(plan: InitPlan, made: readonly MadeFile[]): string {
  const { folder, sizeBytes, base = null, kek = null } = plan;
  const files = made.map(({ path }) => path);
  return `${JSON.stringify({ folder, sizeBytes, base, kek, files, ...commandsOf(plan) })}\n`;
}

/** For a shell. */
function quoted(path: string): string {
  return /^[\w@%+=:,./-]+$/.test(path) ? path : `'${path}'`;
}
