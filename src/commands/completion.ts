import { UsageError } from '../errors.ts';
import type { Arguments } from './arguments.ts';
import { bashCompletion } from './completion_bash.ts';
import { fishCompletion } from './completion_fish.ts';
import { zshCompletion } from './completion_zsh.ts';
import { writeOutput } from './output.ts';
import { type CommandSpec, commands } from './table.ts';

const shells: Record<string, (commands: readonly CommandSpec[]) => string> = {
  bash: bashCompletion,
  zsh: zshCompletion,
  fish: fishCompletion,
};

/** `ubiblk completion`: prints what a shell needs to complete command lines (docs/completion.md). */
export async function run(args: Arguments): Promise<number> {
  const [shell] = args.operands;
  const make = Object.hasOwn(shells, shell) ? shells[shell] : undefined;
  if (!make) {
    const known = Object.keys(shells).join(', ');
    throw new UsageError(`SHELL must be one of ${known}, not '${shell}'`);
  }
  writeOutput(make(commands));
  return 0;
}
