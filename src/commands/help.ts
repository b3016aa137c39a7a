import { type CAC, cac } from 'cac';
import {
  type CommandSpec,
  commonOptions,
  helpOptions,
  type OptionSpec,
  type ProgramName,
} from './table.ts';

interface HelpSection {
  title?: string;
  body: string;
}

/** The help of one command, under the name that it was called by. */
export function commandHelp(command: CommandSpec, program?: ProgramName): string {
  const cli = cac(program === undefined ? 'ubiblk' : program.name);
  const described = cli.command(program === undefined ? command.name : '', command.summary);
  const name = program === undefined ? [command.name] : [];
  described.usage([...name, '[options]', ...(command.operands ?? [])].join(' '));
  for (const option of [...command.options, ...commonOptions]) {
    described.option(flags(option), option.summary);
  }
  for (const example of command.examples) {
    described.example(`  ${example}`);
  }
  return render(
    cli,
    () => described.outputHelp(),
    ([, usage, ...sections]) => [
      { body: `${command.summary}.` },
      usage,
      ...choiceSections(command),
      ...sections.filter(({ title }) => title !== undefined),
      { body: `More: man ubiblk-${command.name.replaceAll(' ', '-')}, or ${command.docs}` },
    ],
  );
}

/** What an operand can be, where that is one of some words. */
function choiceSections({ operandChoices = {} }: CommandSpec): HelpSection[] {
  return Object.entries(operandChoices).map(([title, words]) => ({
    title,
    body: `  ${words.join(', ').replace(/(.{70,}?,) /g, '$1\n  ')}`,
  }));
}

/** The list of all commands, or of those whose first word is `group`. */
export function commandList(commands: readonly CommandSpec[], group?: string): string {
  const cli = cac('ubiblk');
  cli.usage(group === undefined ? '<command> [options]' : `${group} <command> [options]`);
  for (const command of commands) {
    if (group === undefined || command.name.startsWith(`${group} `)) {
      cli.command(command.name, command.summary);
    }
  }
  for (const option of helpOptions) {
    cli.option(flags(option), option.summary);
  }
  return render(
    cli,
    () => cli.outputHelp(),
    (sections) => [
      { body: 'ubiblk serves block devices to virtual machines.' },
      ...sections.filter(({ title }) => title !== undefined && !title.startsWith('For more info')),
      { body: "'ubiblk help <command>' shows the options of a command." },
    ],
  );
}

function flags({ long, short, value }: OptionSpec): string {
  const names = short === undefined ? `    --${long}` : `-${short}, --${long}`;
  return value === undefined ? names : `${names} <${value}>`;
}

/** cac lays the help out but prints it itself: its sections are caught on the way to stdout. */
function render(
  cli: CAC,
  outputHelp: () => void,
  arrange: (sections: HelpSection[]) => HelpSection[],
): string {
  let text = '';
  cli.globalCommand.helpCallback = (sections) => {
    text = arrange(sections)
      .map(({ title, body }) => (title === undefined ? body : `${title}:\n${body}`))
      .join('\n\n')
      .replace(/[ \t]+$/gm, '');
  };
  const print = console.info;
  console.info = () => {};
  try {
    outputHelp();
  } finally {
    console.info = print;
  }
  return `${text}\n`;
}
