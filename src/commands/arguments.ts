import { basename } from 'node:path';
import { UsageError } from '../errors.ts';
import { nearestName } from '../nearest.ts';
import { type CommandSpec, commonOptions, type OptionSpec, type ProgramName } from './table.ts';

/** What the command line asks for. */
export type Invocation =
  | { action: 'run'; target: Target; args: readonly string[] }
  | { action: 'help'; command: CommandSpec; program?: ProgramName }
  /** The list of all commands, or of those whose first word is `group`. */
  | { action: 'list'; group?: string }
  | { action: 'version' };

/** A command and, where it was called by a name of the reference system's, that name. */
export interface Target {
  command: CommandSpec;
  program?: ProgramName;
}

/**
 * Finds the command that the executable was called for: by its own name (`argv0`, a link named
 * `vhost-backend`), else by the first one or two words of `argv`.
 * @throws UsageError when there is none, with the nearest name
 */
export function findCommand(
  commands: readonly CommandSpec[],
  argv0: string,
  argv: readonly string[],
): Invocation {
  const called = basename(argv0);
  for (const command of commands) {
    const program = command.programs.find(({ name }) => name === called);
    if (program !== undefined) {
      return { action: 'run', target: { command, program }, args: argv };
    }
  }
  const [first, second] = argv;
  if (first === undefined) {
    throw new UsageError('a command is missing');
  }
  if (first === '--help' || first === '-h') {
    return { action: 'list' };
  }
  if (first === '--version' || first === '-V') {
    return { action: 'version' };
  }
  if (first === 'help') {
    return findHelp(commands, argv.slice(1));
  }
  const command = commands.find(({ name }) => name === first || name === `${first} ${second}`);
  if (command !== undefined) {
    const words = command.name.split(' ').length;
    return { action: 'run', target: { command }, args: argv.slice(words) };
  }
  const meant = commands.find(({ short }) => short === first);
  if (meant && second?.startsWith('-') && second !== '--help' && second !== '-h') {
    return { action: 'run', target: { command: meant }, args: argv.slice(1) };
  }
  const group = commands.filter(({ name }) => name.startsWith(`${first} `));
  if (group.length > 0 && (second === '--help' || second === '-h')) {
    return { action: 'list', group: first };
  }
  throw unknownCommand(commands, group, argv);
}

function findHelp(commands: readonly CommandSpec[], words: readonly string[]): Invocation {
  const name = words.join(' ');
  if (name === '') {
    return { action: 'list' };
  }
  const command = commands.find((candidate) => {
    return candidate.name === name || candidate.programs.some((program) => program.name === name);
  });
  if (command !== undefined) {
    return { action: 'help', command };
  }
  const group = commands.filter((candidate) => candidate.name.startsWith(`${words[0]} `));
  if (group.length > 0 && words.length === 1) {
    return { action: 'list', group: name };
  }
  throw unknownCommand(commands, group, words);
}

function unknownCommand(
  commands: readonly CommandSpec[],
  group: readonly CommandSpec[],
  argv: readonly string[],
): UsageError {
  const [first, second] = argv;
  if (first.startsWith('-')) {
    return new UsageError(`unknown option '${first}' before the command`);
  }
  if (group.length > 0 && (second === undefined || second.startsWith('-'))) {
    const names = group.map(({ name }) => `'${name}'`).join(', ');
    return new UsageError(`'${first}' is not a whole command; it begins ${names}`);
  }
  const given = second === undefined || second.startsWith('-') ? first : `${first} ${second}`;
  const candidates = [...commands.map(({ name }) => name), 'help'];
  const nearest = nearestName(given, candidates) ?? nearestName(first, candidates);
  const hint = nearest === undefined ? '' : `; did you mean '${nearest}'?`;
  // A word after the unknown one may be its argument: it is named only where it is part of a name.
  const shown = group.length > 0 || nearest?.includes(' ') ? given : first;
  return new UsageError(`unknown command '${shown}'${hint}`);
}

/** What was given to a command; every value is the string that was typed. */
export class Arguments {
  readonly #values: ReadonlyMap<string, string | true>;
  readonly #repeated: ReadonlyMap<string, readonly string[]>;
  /** As many as the command takes, unless `--help` or `--version` came first. */
  readonly operands: readonly string[];

  constructor(
    values: ReadonlyMap<string, string | true>,
    operands: readonly string[] = [],
    repeated: ReadonlyMap<string, readonly string[]> = new Map(),
  ) {
    this.#values = values;
    this.#repeated = repeated;
    this.operands = operands;
  }

  has(long: string): boolean {
    return this.#values.has(long);
  }

  /** The value of an option that takes one, or undefined if it was not given. */
  value(long: string): string | undefined {
    const value = this.#values.get(long);
    return value === true ? undefined : value;
  }

  /** The values of an option that may be given more than once, in their order. */
  all(long: string): readonly string[] {
    return this.#repeated.get(long) ?? [];
  }

  /** @throws UsageError if the option was not given */
  required(long: string): string {
    const value = this.value(long);
    if (value === undefined) {
      throw new UsageError(`option '--${long}' is required`);
    }
    return value;
  }
}

/**
 * Splits a command's arguments into operands and options: `--opt value`, `--opt=value`, `-o value`,
 * `-ovalue`, `-o=value`, and short options without values together (`-uk FILE`). They may be mixed;
 * `--` ends the options. Reading stops at `--help` or `--version`: they win over errors after them.
 * @throws UsageError for what the command does not take, and for operands that are missing
 */
export function parseArguments(command: CommandSpec, args: readonly string[]): Arguments {
  const options = [...command.options, ...commonOptions];
  const names = command.operands ?? [];
  const values = new Map<string, string | true>();
  const repeated = new Map<string, string[]>();
  const operands: string[] = [];
  const anyNumber = names.at(-1)?.includes('...') ?? false;
  let optionsEnded = false;
  let index = 0;
  while (index < args.length) {
    const argument = args[index++];
    if (argument === '--' && !optionsEnded) {
      optionsEnded = true;
      continue;
    }
    if (optionsEnded || !argument.startsWith('-') || argument === '-') {
      if (operands.length >= names.length && !anyNumber) {
        throw new UsageError(`unexpected argument '${argument}'`);
      }
      operands.push(argument);
      continue;
    }
    const given = argument.startsWith('--')
      ? [splitLong(options, argument)]
      : splitShort(options, argument);
    for (const { option, shown, value } of given) {
      if (values.has(option.long) && !option.repeatable) {
        throw new UsageError(`option '--${option.long}' is given twice`);
      }
      if (option.value === undefined) {
        values.set(option.long, true);
      } else {
        const text = value ?? nextValue(option, shown, args[index++]);
        values.set(option.long, text);
        if (option.repeatable)
          repeated.set(option.long, [...(repeated.get(option.long) ?? []), text]);
      }
      if (option.long === 'help' || option.long === 'version') {
        return new Arguments(values);
      }
    }
  }
  if (operands.length < names.length && !names[operands.length].startsWith('[')) {
    throw new UsageError(`argument ${names[operands.length]} is missing`);
  }
  return new Arguments(values, operands, repeated);
}

interface GivenOption {
  option: OptionSpec;
  /** As it was typed, for messages. */
  shown: string;
  value?: string;
}

function splitLong(options: readonly OptionSpec[], argument: string): GivenOption {
  const equals = argument.indexOf('=');
  const shown = equals < 0 ? argument : argument.slice(0, equals);
  const option = options.find(({ long }) => shown === `--${long}`);
  if (option === undefined) {
    const nearest = nearestName(
      shown.slice(2),
      options.map(({ long }) => long),
    );
    const hint = nearest === undefined ? '' : `; did you mean '--${nearest}'?`;
    throw new UsageError(`unknown option '${shown}'${hint}`);
  }
  if (equals < 0) {
    return { option, shown };
  }
  if (option.value === undefined) {
    throw new UsageError(`option '${shown}' takes no value`);
  }
  return { option, shown, value: argument.slice(equals + 1) };
}

function splitShort(options: readonly OptionSpec[], argument: string): GivenOption[] {
  const given: GivenOption[] = [];
  for (let at = 1; at < argument.length; at++) {
    const shown = `-${argument[at]}`;
    const option = options.find(({ short }) => shown === `-${short}`);
    if (option === undefined) {
      throw new UsageError(`unknown option '${shown}'`);
    }
    const rest = argument.slice(at + 1);
    if (option.value !== undefined && rest !== '') {
      given.push({ option, shown, value: rest.startsWith('=') ? rest.slice(1) : rest });
      break;
    }
    given.push({ option, shown });
  }
  return given;
}

/** A value may be a lone `-`, but what looks like an option is taken for a forgotten value. */
function nextValue(option: OptionSpec, shown: string, next: string | undefined): string {
  if (next === undefined) {
    throw new UsageError(`option '${shown}' needs a value: ${option.value}`);
  }
  if (next.startsWith('-') && next !== '-') {
    throw new UsageError(
      `option '${shown}' needs a value: ${option.value} ` +
        `(one that begins with a dash is written '--${option.long}=${next}')`,
    );
  }
  return next;
}
