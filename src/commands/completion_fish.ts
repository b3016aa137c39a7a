import {
  firstWords,
  groupsOf,
  type NextWord,
  operandsOf,
  optionsOf,
  optionValue,
  programsOf,
  type Suggestion,
  secondWords,
} from './completion_words.ts';
import type { CommandSpec, OptionSpec } from './table.ts';

/** The completion of fish 3. */
export function fishCompletion(commands: readonly CommandSpec[]): string {
  const programs = programsOf(commands);
  return `# fish completion of ubiblk, made by 'ubiblk completion fish'

# The words before the cursor, with the command's own name for programs of another name.
function __ubiblk_words
    set -l words (commandline -opc)
    set -l program (string replace -r '.*/' '' -- $words[1])
    set -e words[1]
    switch $program
${programs.map(({ name, runs }) => `        case ${name}\n            set words ${runs} $words`).join('\n')}
    end
    string join -- \\n $words
end

# Whether exactly these words are there.
function __ubiblk_after
    set -l words (__ubiblk_words)
    test "$words" = "$argv"
end

# Whether a command is there.
function __ubiblk_runs
    set -l words (__ubiblk_words)
    set -l last (count $argv)
    test (count $words) -ge $last; and test "$words[1..$last]" = "$argv"
end

# The same for the first word of a command, with options behind it.
function __ubiblk_short
    set -l words (__ubiblk_words)
    test "$words[1]" = "$argv"; or return 1
    set -q words[2]; or begin
        string match -q -- '-*' (commandline -ct)
        return
    end
    string match -q -- '-*' $words[2]
end

function __ubiblk_devices
    set -l devices /dev/ublkb*
    string join -- \\n $devices
end

for program in ubiblk ${programs.map(({ name }) => name).join(' ')}
    complete -c $program -f
${commands.flatMap(commandLines).join('\n')}
end

complete -c ubiblk -n '__ubiblk_after' -s h -l help -d 'List the commands'
complete -c ubiblk -n '__ubiblk_after' -s V -l version -d 'Show the version'
complete -c ubiblk -n '__ubiblk_after' -a help -d 'Show the options of a command'
${wordLines('', firstWords(commands)).join('\n')}
${groupsOf(commands)
  .flatMap((group) => wordLines(group, secondWords(commands, group)))
  .join('\n')}
`;
}

/** What comes next after some words, and after `help` and them. */
function wordLines(after: string, words: readonly NextWord[]): string[] {
  const help = `help ${after}`.trim();
  const condition = quoted(`__ubiblk_after ${after}; or __ubiblk_after ${help}`);
  return words.map(
    ({ word, summary }) => `complete -c ubiblk -n ${condition} -a ${word} -d ${quoted(summary)}`,
  );
}

function commandLines(command: CommandSpec): string[] {
  const { name, short } = command;
  const runs = short
    ? `__ubiblk_runs ${name}; or __ubiblk_short ${short}`
    : `__ubiblk_runs ${name}`;
  const condition = quoted(runs);
  const operands = [...new Set(operandsOf(command).map(argumentsOf))].filter((text) => text !== '');
  return [
    ...operands.map((text) => `    complete -c $program -n ${condition} ${text}`),
    ...optionsOf(command).map(
      (option) => `    complete -c $program -n ${condition} ${optionText(option)}`,
    ),
  ];
}

function optionText(option: OptionSpec): string {
  const { long, short, summary } = option;
  const value = optionValue(option);
  const only = value === 'file' ? '-r' : '-x';
  const takes = value === undefined ? '' : ` ${only} ${argumentsOf(value)}`;
  return `${short ? `-s ${short} ` : ''}-l ${long}${takes.trimEnd()} -d ${quoted(summary)}`;
}

function argumentsOf(value: Suggestion): string {
  if (value === 'file') return '-F';
  if (value === 'device') return "-a '(__ubiblk_devices)'";
  return value === 'none' ? '' : `-a ${quoted(value.join(' '))}`;
}

/** Of fish's single quotes only two characters are special. */
function quoted(text: string): string {
  return `'${text.replace(/[\\']/g, '\\$&')}'`;
}
