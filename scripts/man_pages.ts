/**
 * The manual pages, from the table of commands and the pages in docs/:
 *
 *     bun scripts/man_pages.ts FOLDER VERSION DATE
 *
 * writes ubiblk.1, a page for each page of commands, and links to it for each of these commands.
 */
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { type CommandSpec, commands } from '../src/commands/table.ts';
import { escaped, roffOf } from './roff.ts';

export interface ManPage {
  /** `ubiblk-serve-vhost.1` */
  file: string;
  roff: string;
  /** Other names of the same page. */
  links: string[];
}

const OVERVIEW = 'docs/cli.md';
/** Pages of no command. */
const others: Record<string, { name: string; section: number; summary: string }> = {
  'docs/configuration.md': { name: 'ubiblk.yaml', section: 5, summary: 'Configuration of a disk' },
  'docs/systemd.md': {
    name: 'ubiblk-systemd',
    section: 7,
    summary: 'Disks as services of systemd',
  },
  'docs/metrics.md': { name: 'ubiblk-metrics', section: 7, summary: 'Metrics for Prometheus' },
};

/** @param about what the foot of each page says */
export function manPages(about: { version: string; date: string }): ManPage[] {
  const pages = [...new Set(commands.map(({ docs }) => docs))];
  return [
    overview(about),
    ...pages.map((docs) => commandPage(docs, about)),
    ...Object.entries(others).map(([docs, { name, section, summary }]) => ({
      file: `${name}.${section}`,
      roff: `${head(name, section, about)}${nameSection([[name, summary]])}${body(docs)}`,
      links: [],
    })),
  ];
}

/** The name of the manual page that a page in docs/ is, with its section. */
function pageOf(docs: string): { name: string; section: number } | undefined {
  if (docs === OVERVIEW || docs === 'README.md') return { name: 'ubiblk', section: 1 };
  const told = commandsOf(docs);
  return told.length > 0 ? { name: pageName(told), section: 1 } : others[docs];
}

function commandsOf(docs: string): CommandSpec[] {
  return commands.filter((command) => command.docs === docs);
}

function dashed(name: string): string {
  return `ubiblk-${name.replaceAll(' ', '-')}`;
}

/** Of commands that share their first word it is that word. */
function pageName(told: readonly CommandSpec[]): string {
  const [first] = told[0].name.split(' ');
  const shared = told.length > 1 && told.every(({ name }) => name.startsWith(`${first} `));
  return dashed(shared ? first : told[0].name);
}

function head(name: string, section: number, { version, date }: { version: string; date: string }) {
  return `.TH "${escaped(name.toUpperCase())}" ${section} ${date} "ubiblk ${version}" "ubiblk"\n.nh\n.ad l\n`;
}

function nameSection(entries: readonly (readonly [name: string, summary: string])[]): string {
  const [[, summary]] = entries;
  const names = entries.map(([name]) => escaped(name)).join(', ');
  const text = entries.length === 1 ? summary : entries.map(([, each]) => each).join('; ');
  return `.SH NAME\n${names} \\- ${escaped(text)}\n`;
}

function commandPage(docs: string, about: { version: string; date: string }): ManPage {
  const told = commandsOf(docs);
  const name = pageName(told);
  const synopsis = told.map(({ name: words, operands = [] }) => {
    const rest = operands.map((operand) => ` \\fI${escaped(operand)}\\fR`).join('');
    return `.PP\n\\fBubiblk ${escaped(words)}\\fR [\\fIOPTION\\fR]...${rest}\n`;
  });
  const names = told.map((command) => dashed(command.name));
  const entries = told.map((command) => [dashed(command.name), command.summary] as const);
  return {
    file: `${name}.1`,
    roff: [
      head(name, 1, about),
      nameSection(entries),
      '.SH SYNOPSIS\n',
      ...synopsis,
      body(docs),
      '.SH SEE ALSO\n\\fBubiblk\\fR(1), \\fBubiblk.yaml\\fR(5), \\fBubiblk\\-systemd\\fR(7)\n',
    ].join(''),
    links: [...new Set(names)].filter((other) => other !== name).map((other) => `${other}.1`),
  };
}

function overview(about: { version: string; date: string }): ManPage {
  const list = commands.map(
    ({ name, summary }) => `.TP\n\\fB${escaped(dashed(name))}\\fR(1)\n${escaped(summary)}\n`,
  );
  return {
    file: 'ubiblk.1',
    roff: [
      head('ubiblk', 1, about),
      nameSection([['ubiblk', 'serves block devices to virtual machines and to this host']]),
      '.SH SYNOPSIS\n.PP\n\\fBubiblk\\fR \\fICOMMAND\\fR [\\fIOPTION\\fR]...\n',
      `.SH COMMANDS\n${list.join('')}`,
      body(OVERVIEW),
    ].join(''),
    links: [],
  };
}

/** A page of docs/ without its title. */
function body(docs: string): string {
  const markdown = readFileSync(docs, 'utf8').replace(/^# .*\n/, '');
  const page = (href: string) => {
    const [path] = href.split('#');
    const found = path && !path.includes(':') ? pageOf(join(dirname(docs), path)) : undefined;
    return found && `${found.name}(${found.section})`;
  };
  const text = roffOf(markdown, page);
  return text.startsWith('.SH') ? text : `.SH DESCRIPTION\n${text}`;
}

if (import.meta.main) {
  const [folder, version, date] = process.argv.slice(2);
  for (const { file, roff, links } of manPages({ version, date })) {
    const section = join(folder, `man${file.split('.').at(-1)}`);
    mkdirSync(section, { recursive: true });
    writeFileSync(join(section, file), roff);
    for (const link of links) symlinkSync(basename(file), join(section, link));
  }
}
