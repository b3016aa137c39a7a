import {
  firstWords,
  groupsOf,
  type NextWord,
  operandName,
  operandsOf,
  optionsOf,
  optionValue,
  programsOf,
  quoted,
  type Suggestion,
  secondWords,
  spellings,
} from './completion_words.ts';
import type { CommandSpec, OptionSpec } from './table.ts';

/** The completion of zsh, for a folder of its `fpath` or to be sourced after `compinit`. */
export function zshCompletion(commands: readonly CommandSpec[]): string {
  const programs = programsOf(commands);
  const names = ['ubiblk', ...programs.map(({ name }) => name)].join(' ');
  return `#compdef ${names}
# zsh completion of ubiblk, made by 'ubiblk completion zsh'

_ubiblk_words() {
  local -a entries=("$@")
  _describe command entries
}

_ubiblk_first() {
  _ubiblk_words ${described(firstWords(commands))} "$@"
}

_ubiblk_second() {
  case $1 in
${groupsOf(commands)
  .map((group) => `    ${group}) _ubiblk_words ${described(secondWords(commands, group))} ;;`)
  .join('\n')}
    *) return 1 ;;
  esac
}

_ubiblk_devices() {
  local -a devices=(/dev/ublkb<->(N))
  compadd -a devices
}

_ubiblk_command() {
  case $1 in
${commands.map(commandCase).join('\n')}
    *) return 1 ;;
  esac
}

_ubiblk() {
  local command
  case \${words[1]:t} in
${programs.map(({ name, runs }) => `    ${name}) _ubiblk_command ${quoted(runs)}; return ;;`).join('\n')}
  esac
  if ((CURRENT == 2)); then
    if [[ $words[2] == -* ]]; then
      _arguments '(- *)'{-h,--help}'[List the commands]' '(- *)'{-V,--version}'[Show the version]'
    else
      _ubiblk_first 'help:Show the options of a command'
    fi
    return
  fi
  if [[ $words[2] == help ]]; then
    ((CURRENT == 3)) && _ubiblk_first
    ((CURRENT == 4)) && _ubiblk_second $words[3]
    return
  fi
  command=$words[2]
  case $command in
${groupsOf(commands)
  .map((group) => groupCase(group, commands))
  .join('\n')}
  esac
  shift words
  ((CURRENT--))
  _ubiblk_command $command
}

if [[ $funcstack[1] == _ubiblk ]]; then
  _ubiblk "$@"
else
  compdef _ubiblk ${names}
fi
`;
}

function described(words: readonly NextWord[]): string {
  return words
    .map(({ word, summary }) => quoted(`${word}:${summary.replaceAll(':', '\\:')}`))
    .join(' ');
}

function groupCase(group: string, commands: readonly CommandSpec[]): string {
  const short = commands.find((command) => command.short === group);
  const next = [
    `if ((CURRENT == 3)); then _ubiblk_second ${group}; return; fi`,
    'command+=" $words[3]"',
    'shift words',
    '((CURRENT--))',
  ];
  const lines = short
    ? [
        'if [[ $words[3] == -* ]]; then',
        `  command=${quoted(short.name)}`,
        'else',
        ...next.map((line) => `  ${line}`),
        'fi',
      ]
    : next;
  return [`    ${group})`, ...lines.map((line) => `      ${line}`), '      ;;'].join('\n');
}

function commandCase(command: CommandSpec): string {
  const { operands = [] } = command;
  const operandSpecs = operandsOf(command).map((operand, index) => {
    const any = operands[index].includes('...') ? '*' : '';
    const optional = operands[index].startsWith('[') ? ':' : '';
    const name = operandName(operands[index]);
    return quoted(`${any}:${any ? '' : optional}${name}:${action(operand)}`);
  });
  const specs = [...optionsOf(command).map(optionSpec), ...operandSpecs];
  const lines = specs.map((spec) => `        ${spec}`).join(' \\\n');
  return `    ${quoted(command.name)})\n      _arguments -s -S \\\n${lines}\n      ;;`;
}

function optionSpec(option: OptionSpec): string {
  const names = spellings(option);
  const value = optionValue(option);
  const summary = option.summary.replace(/[[\]\\]/g, '\\$&');
  const takes = value === undefined ? '' : `:${option.value}:${action(value)}`;
  const others =
    option.long === 'help' || option.long === 'version'
      ? '- *'
      : option.repeatable
        ? ''
        : names.join(' ');
  // '+' and '=' say that a value may follow at once.
  const typed = names.map((name) => {
    if (value === undefined) return name;
    return name.startsWith('--') ? `${name}=` : `${name}+`;
  });
  const before = option.repeatable ? "'*'" : quoted(`(${others})`);
  const spelled = typed.length === 1 ? typed[0] : `{${typed.join(',')}}`;
  return `${before}${spelled}${quoted(`[${summary}]${takes}`)}`;
}

function action(value: Suggestion): string {
  if (value === 'file') return '_files';
  if (value === 'device') return '_ubiblk_devices';
  return value === 'none' ? ' ' : `(${value.join(' ')})`;
}
