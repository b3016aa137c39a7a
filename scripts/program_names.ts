/**
 * Prints the names of the reference system's programs that the executable can be called by, each with the
 * manual page of its command.
 */
import { programsOf } from '../src/commands/completion_words.ts';
import { commands } from '../src/commands/table.ts';

for (const { name, runs } of programsOf(commands)) {
  process.stdout.write(`${name} ubiblk-${runs.replaceAll(' ', '-')}\n`);
}
