/** `ubiblk completion` in the shells that it is for. */
import { expect } from 'bun:test';
import { writeFileSync } from 'node:fs';
import { spellings } from '../../src/commands/completion_words.ts';
import { commands, commonOptions } from '../../src/commands/table.ts';
import { binary } from './processes.ts';
import { Bed, need, testWith } from './support.ts';
import { Terminal } from './terminal.ts';

/** Command lines, and what must be suggested for their last word: all of it, or these among others. */
const lines: { line: string; all?: string[]; some?: string[]; not?: string[] }[] = [
  { line: 'ubiblk se', all: ['serve'] },
  { line: 'ubiblk ', some: ['serve', 'probe', 'keys', 'help'], not: ['vhost'] },
  { line: 'ubiblk serve ', all: ['nbd', 'stripes', 'ublk', 'vhost'] },
  { line: 'ubiblk help s', some: ['serve', 'shell'], not: ['help'] },
  { line: 'ubiblk help serve v', all: ['vhost'] },
  { line: 'ubiblk serve vhost --unl', all: ['--unlink-kek'] },
  { line: 'ubiblk serve vhost --config ', some: ['vm.yaml'], not: ['--kek'] },
  { line: 'ubiblk serve vhost -f v', all: ['vm.yaml'] },
  { line: 'ubiblk serve vhost --log-level ', all: ['debug', 'error', 'info', 'warn'] },
  { line: 'ubiblk serve vhost --null ', all: [] },
  { line: 'ubiblk serve vhost ', not: ['vm.yaml'] },
  { line: 'ubiblk serve nothing --', all: [] },
  { line: 'ubiblk rpc x.sock pause', all: ['pause_autofetch'] },
  { line: 'ubiblk rpc --timeout 5 x', all: ['x.sock'] },
  { line: 'ubiblk xts --action ', all: ['decode', 'encode'] },
  { line: 'ubiblk archive --comp', all: ['--compress', '--compression'] },
  { line: 'ubiblk archive c', all: ['create'] },
  { line: 'ubiblk completion ', all: ['bash', 'fish', 'zsh'] },
  { line: 'vhost-backend --unl', all: ['--unlink-kek'] },
];

async function script(bed: Bed, shell: string): Promise<string> {
  const path = bed.path(shell === 'zsh' ? '_ubiblk' : `ubiblk.${shell}`);
  writeFileSync(path, (await bed.run([binary, 'completion', shell])).stdout.text);
  for (const file of ['vm.yaml', 'x.sock']) writeFileSync(bed.path(file), '');
  return path;
}

/** What a shell suggests for each of the lines, by a program that prints it, with `==` behind. */
async function suggested(bed: Bed, argv: string[], all: readonly string[]): Promise<string[][]> {
  const { stdout } = await bed.run([...argv, ...all]);
  return stdout.text
    .split('==\n')
    .slice(0, all.length)
    .map((part) => [...new Set(part.split('\n').filter(Boolean))].sort());
}

/** Every command, and all that its options can be called. */
const everyCommand = commands.map((command) => ({
  line: `ubiblk ${command.name} --`,
  options: [...command.options, ...commonOptions].map(({ long }) => `--${long}`).sort(),
  short: [...command.options, ...commonOptions].flatMap((option) => spellings(option).slice(0, -1)),
}));

/** Asks for all that is known here, by a program that prints what a shell suggests. */
async function judge(bed: Bed, argv: string[]): Promise<void> {
  const asked = [...lines, ...everyCommand].map(({ line }) => line);
  const found = await suggested(bed, argv, asked);
  for (const [index, { line, all, some, not = [] }] of lines.entries()) {
    const words = found[index];
    if (all) expect({ line, words }).toEqual({ line, words: all });
    expect({ line, missing: some?.filter((word) => !words.includes(word)) ?? [] }).toEqual({
      line,
      missing: [],
    });
    expect({ line, wrong: words.filter((word) => not.includes(word)) }).toEqual({
      line,
      wrong: [],
    });
  }
  expect(found.slice(lines.length)).toEqual(everyCommand.map(({ options }) => options));
}

const bashDriver = `
source "$1"
shift
for COMP_LINE; do
  # As readline takes words apart.
  read -r -a COMP_WORDS <<< "\${COMP_LINE//=/ = }"
  [[ $COMP_LINE != *' ' ]] || COMP_WORDS+=('')
  COMP_CWORD=$((\${#COMP_WORDS[@]} - 1)) COMP_POINT=\${#COMP_LINE}
  complete -p "\${COMP_WORDS[0]}" > /dev/null
  compopt() { :; }
  _ubiblk "\${COMP_WORDS[0]}" "\${COMP_WORDS[COMP_CWORD]}" "\${COMP_WORDS[COMP_CWORD - 1]}"
  printf '%s\\n' "\${COMPREPLY[@]}"
  echo ==
done
`;

testWith(
  'bash suggests commands, options, values and files',
  [],
  async () => {
    await using bed = new Bed();
    const argv = ['bash', '-c', bashDriver, 'bash', await script(bed, 'bash')];
    await judge(bed, argv);
    const [level] = await suggested(bed, argv, ['ubiblk serve vhost --log-level=d']);
    expect(level).toEqual(['debug']);
  },
  60_000,
);

testWith(
  'fish suggests the same',
  [need.program('fish')],
  async () => {
    await using bed = new Bed();
    const file = await script(bed, 'fish');
    const driver = `source $argv[1]
for line in $argv[2..]
  complete -C "$line" | string replace -r '\\t.*' ''
  echo ==
end`;
    const argv = ['fish', '--no-config', '-c', driver, file];
    await judge(bed, argv);
    const described = await bed.run([
      ...['fish', '--no-config', '-c', `source ${file}; complete -C 'ubiblk serve '`],
    ]);
    expect(described.stdout.text).toContain('vhost\tServe a disk to a virtual machine');
  },
  60_000,
);

/** Keys that make a command line of a few letters. */
const typed = ['ubiblk se', 'vh', '--conf', 'v', '--log-level=d'].flatMap((keys) => [keys, 'Tab']);

testWith(
  'bash completes what is typed on a terminal',
  [need.program('tmux')],
  async () => {
    await using bed = new Bed();
    const file = await script(bed, 'bash');
    using terminal = new Terminal(bed, ['bash', '--norc', '--noprofile', '-i'], 100, 30);
    terminal.keys(`PS1='%'; cd ${bed.folder}; source ${file}; clear`, 'Enter');
    await terminal.shows(/^%$/m);
    terminal.keys(...typed);
    await terminal.shows(/^%ubiblk serve vhost --config vm\.yaml --log-level=debug$/m);
  },
  60_000,
);

testWith(
  'zsh completes what is typed on a terminal, and shows what options are',
  [need.program('zsh'), need.program('tmux')],
  async () => {
    await using bed = new Bed();
    await script(bed, 'zsh');
    using terminal = new Terminal(bed, ['zsh', '-f', '-i'], 160, 60);
    const setup = `PS1='%%'; cd ${bed.folder}; fpath=($PWD $fpath); autoload -U compinit; compinit -u -D; clear`;
    terminal.keys(setup, 'Enter');
    await terminal.shows(/^%$/m);
    terminal.keys(...typed);
    await terminal.shows(/^%ubiblk serve vhost --config=?\s?vm\.yaml --log-level=debug\s*$/m);
    terminal.keys('C-u', 'vhost-backend --unl', 'Tab');
    await terminal.shows(/^%vhost-backend --unlink-kek\s*$/m);
    for (const { line, options, short } of everyCommand) {
      terminal.keys('C-u');
      terminal.keys('C-l', line.slice(0, -1), 'Tab', 'Tab');
      const words = [...options.map((option) => option.slice(1)), ...short.map((s) => s.slice(1))];
      const all = words.map((word) => `(?=[\\s\\S]*\\s-${word}\\b)`).join('');
      await terminal.shows(new RegExp(`^%${line.slice(0, -1)}${all}`));
    }
  },
  120_000,
);

testWith(
  'another shell is refused',
  [],
  async () => {
    await using bed = new Bed();
    const { stderr } = await bed.run([binary, 'completion', 'tcsh'], { expect: 2 });
    expect(stderr.text).toContain("SHELL must be one of bash, zsh, fish, not 'tcsh'");
  },
  20_000,
);
