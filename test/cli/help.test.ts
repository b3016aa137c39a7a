import { expect, test } from 'bun:test';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { commandHelp, commandList } from '../../src/commands/help.ts';
import { commands, commonOptions } from '../../src/commands/table.ts';

const root = join(import.meta.dir, '../..');

test.each(commands.map((command) => [command.name, command] as const))(
  'the help of %s names every option and its page',
  (name, command) => {
    const help = commandHelp(command);
    expect(help).toContain(`$ ubiblk ${name} [options]`);
    for (const { long, short, value } of [...command.options, ...commonOptions]) {
      const flags = `${short === undefined ? '' : `-${short}, `}--${long}${value ? ` <${value}>` : ''}`;
      // cac leaves --version out of a command's help.
      expect(help.includes(flags) || long === 'version').toBe(true);
    }
    expect(help).toContain(command.docs);
    expect(help.split('\n').filter((line) => line.length > 100 || / $/.test(line))).toEqual([]);
  },
);

test.each(commands.map((command) => [command.name, command] as const))(
  '%s has a page and a module',
  async (_, command) => {
    expect(existsSync(join(root, command.docs))).toBe(true);
    expect(typeof (await command.load()).run).toBe('function');
  },
);

test('a command that was called by another name shows that name', () => {
  const command = commands.find(({ name }) => name === 'serve vhost');
  if (command === undefined) {
    throw new Error("no 'serve vhost'");
  }
  expect(commandHelp(command, command.programs[0])).toContain('$ vhost-backend [options]');
});

test('a command that takes more than options says so', () => {
  const command = commands.find(({ name }) => name === 'xts');
  if (command === undefined) {
    throw new Error("no 'xts'");
  }
  expect(commandHelp(command)).toContain('$ ubiblk xts [options] INPUT OUTPUT\n');
  expect(commandHelp(command, command.programs[0])).toContain('$ xts [options] INPUT OUTPUT\n');
});

test('what an operand can be is said', () => {
  const helpOf = (name: string) =>
    commandHelp(commands.find((command) => command.name === name) as (typeof commands)[number]);
  expect(helpOf('completion')).toContain('SHELL\n\nSHELL:\n  bash, zsh, fish\n\nOptions:\n');
  expect(helpOf('rpc')).toMatch(/\nCOMMAND:\n {2}version, status, .*,\n {2}.*shutdown\n/);
});

test('the page of the command line names every command', () => {
  const page = readFileSync(join(root, 'docs/cli.md'), 'utf8');
  const rows = page.split('\n').filter((line) => line.startsWith('|'));
  for (const { name, programs } of commands) {
    const row = rows.find((line) => line.includes(`\`${name}\``)) ?? `no ${name}`;
    for (const called of [name, ...programs.map((program) => program.name)]) {
      expect(row).toContain(`\`${called}\``);
    }
  }
});

test('the list names every command, and of a group only its own', () => {
  const list = commandList(commands);
  for (const { name, summary } of commands) {
    expect(list).toContain(`  ${name}  `);
    expect(list).toContain(summary);
  }
  const serve = commandList(commands, 'serve');
  expect(serve).toContain('serve vhost');
  const others = commands.filter(({ name }) => !name.startsWith('serve '));
  expect(others.filter(({ summary }) => serve.includes(summary))).toEqual([]);
});

test('no two commands share a name, and no options of a command do', () => {
  const names = commands.flatMap(({ name, programs }) => [
    ...new Set([name, ...programs.map((program) => program.name)]),
  ]);
  expect(new Set(names).size).toBe(names.length);
  for (const command of commands) {
    const options = [...command.options, ...commonOptions];
    const flags = options.flatMap(({ long, short }) => (short ? [long, short] : [long]));
    expect(new Set(flags).size).toBe(flags.length);
  }
});
