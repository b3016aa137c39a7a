import {
  firstWords,
  groupsOf,
  operandsOf,
  optionsOf,
  optionValue,
  programsOf,
  quoted,
  type Suggestion,
  secondWords,
  spellings,
} from './completion_words.ts';
import type { CommandSpec } from './table.ts';

/** The completion of bash 4.4 or newer; it needs no bash-completion. */
export function bashCompletion(commands: readonly CommandSpec[]): string {
  const programs = programsOf(commands);
  return `# bash completion of ubiblk, made by 'ubiblk completion bash'

_ubiblk() {
  local current=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD - 1]} first=1
  # Readline takes '--option=value' for three words.
  [[ $current != = ]] || current=
  [[ $before != = ]] || before=\${COMP_WORDS[COMP_CWORD - 2]}
  local command help='' options='' valued='' value='' operands=() more='' words=''
  COMPREPLY=()
  case \${1##*/} in
${programs.map(({ name, runs }) => `    ${name}) command=${quoted(runs)} first=0 ;;`).join('\n')}
    *)
      ((COMP_CWORD < 2)) || [[ \${COMP_WORDS[1]} != help ]] || help=1 first=2
      command=\${COMP_WORDS[first]}
      if ((COMP_CWORD == first)); then
        words=${quoted(wordList(firstWords(commands)))}
        [[ -n $help ]] || words+=' help --help --version'
        mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
        return
      fi
      case $command in
${groupsOf(commands)
  .map((group) => groupCase(group, commands))
  .join('\n')}
      esac
      [[ -z $help ]] || return
      ;;
  esac
  case $command in
${commands.map(commandCase).join('\n')}
    *) return ;;
  esac
  if [[ -z $value && $current == -* ]]; then
    mapfile -t COMPREPLY < <(compgen -W "$options" -- "$current")
    return
  fi
  if [[ -z $value ]]; then
    local at count=0
    for ((at = first + 1; at < COMP_CWORD; at++)); do
      if [[ $valued == *" \${COMP_WORDS[at]} "* ]]; then
        at=$((at + 1))
        [[ \${COMP_WORDS[at]} != = ]] || at=$((at + 1))
      elif [[ \${COMP_WORDS[at]} != -* ]]; then
        count=$((count + 1))
      fi
    done
    value=\${operands[count]-\${more:-:none}}
  fi
  case $value in
    :none) ;;
    :file)
      compopt -o filenames
      mapfile -t COMPREPLY < <(compgen -f -- "$current")
      ;;
    :device) mapfile -t COMPREPLY < <(compgen -G "\${current:-/dev/ublkb}*") ;;
    *) mapfile -t COMPREPLY < <(compgen -W "$value" -- "$current") ;;
  esac
}

complete -F _ubiblk ubiblk ${programs.map(({ name }) => name).join(' ')}
`;
}

function wordList(words: readonly { word: string }[]): string {
  return words.map(({ word }) => word).join(' ');
}

function groupCase(group: string, commands: readonly CommandSpec[]): string {
  const seconds = secondWords(commands, group);
  const short = commands.find((command) => command.short === group);
  const optionsFollow = short ? `[[ $current == -* ]] || ` : '';
  const lines = [
    `        ${group})`,
    `          words=${quoted(wordList(seconds))}`,
    '          if ((COMP_CWORD == first + 1)); then',
    `            ${optionsFollow}mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")`,
    `            ${optionsFollow}return`,
    '          fi',
  ];
  const next = `\${COMP_WORDS[first + 1]}`;
  if (short) {
    lines.push(`          if [[ ${next} == -* ]]; then`);
    lines.push(`            command=${quoted(short.name)}`, '          else');
    lines.push(`            command+=" ${next}" first=$((first + 1))`, '          fi');
  } else {
    lines.push(`          command+=" ${next}" first=$((first + 1))`);
  }
  return [...lines, '          ;;'].join('\n');
}

function commandCase(command: CommandSpec): string {
  const options = optionsOf(command);
  const operands = operandsOf(command).map((operand) => quoted(valueText(operand)));
  const valued = options.filter(({ value }) => value !== undefined).flatMap(spellings);
  const more = command.operands?.at(-1)?.includes('...') ? operands.at(-1) : undefined;
  const cases = options.flatMap((option) => {
    const value = optionValue(option);
    if (value === undefined) return [];
    return [`        ${spellings(option).join(' | ')}) value=${quoted(valueText(value))} ;;`];
  });
  return [
    `    ${quoted(command.name)})`,
    `      options=${quoted(options.flatMap(spellings).join(' '))}`,
    `      valued=${quoted(` ${valued.join(' ')} `)}`,
    `      operands=(${operands.join(' ')})`,
    ...(more ? [`      more=${more}`] : []),
    '      case $before in',
    ...cases,
    '      esac',
    '      ;;',
  ].join('\n');
}

/** Words, or what stands for files and the like. */
function valueText(value: Suggestion): string {
  return typeof value === 'string' ? `:${value}` : value.join(' ');
}
