/** What the completions of all shells suggest, from the table of commands. */
import { type CommandSpec, commonOptions, type OptionSpec } from './table.ts';

/** What a value or an operand is: words to choose from, a file, a ublk device, or what only its user knows. */
export type Suggestion = readonly string[] | 'file' | 'device' | 'none';

const FILES = [
  'FILE',
  'PATH',
  'DIR',
  'IMAGE',
  'INPUT',
  'OUTPUT',
  'SOCKET',
  'DISK',
  'LOG',
  'SOURCE',
  'TARGET',
];

function suggestionFor(name: string, choices?: readonly string[]): Suggestion {
  if (choices) return choices;
  const word = operandName(name);
  if (FILES.includes(word)) return 'file';
  return word === 'DEVICE' ? 'device' : 'none';
}

/** What an option's value is; undefined where it takes none. */
export function optionValue({ value, choices }: OptionSpec): Suggestion | undefined {
  return value === undefined ? undefined : suggestionFor(value, choices);
}

/** `[PATH...]` is a PATH. */
export function operandName(operand: string): string {
  return operand.replace(/[[\].]/g, '');
}

/** What each operand of a command is, in their order. */
export function operandsOf({ operands = [], operandChoices = {} }: CommandSpec): Suggestion[] {
  return operands.map((operand) => suggestionFor(operand, operandChoices[operandName(operand)]));
}

export function optionsOf(command: CommandSpec): OptionSpec[] {
  return [...command.options, ...commonOptions];
}

/** An option as it is typed: `-f`, `--config`. */
export function spellings({ long, short }: OptionSpec): string[] {
  return short === undefined ? [`--${long}`] : [`-${short}`, `--${long}`];
}

/** A word that may come next on the command line, and what it stands for. */
export interface NextWord {
  word: string;
  summary: string;
}

/** The first words of all commands. */
export function firstWords(commands: readonly CommandSpec[]): NextWord[] {
  const words = new Map<string, string>();
  for (const { name, summary } of commands) {
    const [first, second] = name.split(' ');
    const others = secondWords(commands, first).map(({ word }) => word);
    words.set(first, second === undefined ? summary : others.join(', '));
  }
  return [...words].map(([word, summary]) => ({ word, summary }));
}

/** The second words of the commands that begin with a word. */
export function secondWords(commands: readonly CommandSpec[], first: string): NextWord[] {
  return commands
    .filter(({ name }) => name.startsWith(`${first} `))
    .map(({ name, summary }) => ({ word: name.slice(first.length + 1), summary }));
}

/** First words that begin commands of two. */
export function groupsOf(commands: readonly CommandSpec[]): string[] {
  return firstWords(commands)
    .map(({ word }) => word)
    .filter((word) => secondWords(commands, word).length > 0);
}

/** The names of the reference system's under which the executable may be linked, and what each runs. */
export function programsOf(commands: readonly CommandSpec[]): { name: string; runs: string }[] {
  return commands.flatMap(({ name, programs }) =>
    programs.map((program) => ({ name: program.name, runs: name })),
  );
}

/** One word of a shell's, whatever is in it. */
export function quoted(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}
