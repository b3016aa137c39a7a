import { expect, test } from 'bun:test';
import { findCommand, parseArguments } from '../../src/commands/arguments.ts';
import type { CommandSpec } from '../../src/commands/table.ts';
import { UsageError } from '../../src/errors.ts';

function command(name: string, program?: string): CommandSpec {
  return {
    name,
    summary: name,
    programs: program === undefined ? [] : [{ name: program, displayName: program }],
    options: [
      { long: 'config', short: 'f', value: 'FILE', summary: '' },
      { long: 'kek', short: 'k', value: 'FILE', summary: '' },
      { long: 'unlink-kek', short: 'u', summary: '' },
      { long: 'strict', summary: '' },
    ],
    examples: [],
    defaultLogLevel: 'info',
    docs: '',
    load: () => Promise.reject(new Error('not to be loaded')),
  };
}

const serveVhost = command('serve vhost', 'vhost-backend');
const serveUblk = command('serve ublk', 'ublk-backend');
const probe = command('probe');
const commands = [serveVhost, serveUblk, probe];

test.each([
  ['its two words', 'ubiblk', ['serve', 'vhost', '-f', 'x'], serveVhost, ['-f', 'x']],
  ['its one word', 'ubiblk', ['probe', 'vhost'], probe, ['vhost']],
  ['another name', 'bun', ['serve', 'ublk'], serveUblk, []],
  ['a link', 'vhost-backend', ['-f', 'x'], serveVhost, ['-f', 'x']],
  [
    'a link with a path',
    '/usr/sbin/ublk-backend',
    ['serve', 'vhost'],
    serveUblk,
    ['serve', 'vhost'],
  ],
  ['a link without arguments', './vhost-backend', [], serveVhost, []],
])('a command is found by %s', (_, argv0, argv, expected, args) => {
  const invocation = findCommand(commands, argv0, argv);
  if (invocation.action !== 'run') {
    throw new Error(`found ${invocation.action}`);
  }
  expect(invocation.target.command).toBe(expected);
  expect(invocation.args).toEqual(args);
});

test('a link is known by the name that it was called by', () => {
  const called = findCommand(commands, '/x/vhost-backend', []);
  expect(called).toMatchObject({ target: { program: { name: 'vhost-backend' } } });
  expect(findCommand(commands, 'ubiblk', ['serve', 'vhost'])).toEqual({
    action: 'run',
    target: { command: serveVhost },
    args: [],
  });
});

test.each([
  [['--help'], { action: 'list' }],
  [['-h', 'anything'], { action: 'list' }],
  [['help'], { action: 'list' }],
  [['serve', '--help'], { action: 'list', group: 'serve' }],
  [['serve', '-h'], { action: 'list', group: 'serve' }],
  [['help', 'serve'], { action: 'list', group: 'serve' }],
  [['help', 'serve', 'vhost'], { action: 'help', command: serveVhost }],
  [['help', 'vhost-backend'], { action: 'help', command: serveVhost }],
  [['help', 'probe'], { action: 'help', command: probe }],
  [['--version'], { action: 'version' }],
  [['-V'], { action: 'version' }],
])('%j asks for help or the version', (argv, expected) => {
  expect(findCommand(commands, 'ubiblk', argv)).toEqual(expected as ReturnType<typeof findCommand>);
});

test.each([
  [[], 'a command is missing'],
  [['serve'], "'serve' is not a whole command; it begins 'serve vhost', 'serve ublk'"],
  [['serve', '-f'], "'serve' is not a whole command; it begins 'serve vhost', 'serve ublk'"],
  [['serv', 'vhost'], "unknown command 'serv vhost'; did you mean 'serve vhost'?"],
  [['serve', 'vhots'], "unknown command 'serve vhots'; did you mean 'serve vhost'?"],
  [['serve', 'nothing-like-it'], "unknown command 'serve nothing-like-it'"],
  [['prboe', '--socket', 's'], "unknown command 'prboe'; did you mean 'probe'?"],
  [['porbe', 'a'], "unknown command 'porbe'; did you mean 'probe'?"],
  [['frobnicate', 'x'], "unknown command 'frobnicate'"],
  [[''], "unknown command ''"],
  [['help', 'prob'], "unknown command 'prob'; did you mean 'probe'?"],
  [['help', 'serve', 'x'], "unknown command 'serve x'"],
  [['--config', 'x', 'serve', 'vhost'], "unknown option '--config' before the command"],
])('%j is no command', (argv, sentence) => {
  let message = '';
  try {
    findCommand(commands, 'ubiblk', argv);
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError);
    message = (error as UsageError).message;
  }
  expect(message).toBe(sentence);
});

test.each([
  [['--kek', '007'], 'kek', '007'],
  [['--kek', '1e3'], 'kek', '1e3'],
  [['--kek', '0x10'], 'kek', '0x10'],
  [['--kek', 'true'], 'kek', 'true'],
  [['--kek', '-'], 'kek', '-'],
  [['--kek', ''], 'kek', ''],
  [['--kek', 'a=b'], 'kek', 'a=b'],
  [['--kek', '[a]'], 'kek', '[a]'],
  [['--kek=007'], 'kek', '007'],
  [['--kek='], 'kek', ''],
  [['--kek=-'], 'kek', '-'],
  [['--kek=--strict'], 'kek', '--strict'],
  [['--kek=a=b'], 'kek', 'a=b'],
  [['-k', '007'], 'kek', '007'],
  [['-k007'], 'kek', '007'],
  [['-k=007'], 'kek', '007'],
  [['-k', '-'], 'kek', '-'],
  [['-uk', 'x'], 'kek', 'x'],
  [['-ukx'], 'kek', 'x'],
  [['-fvm.yaml', '-uk=x'], 'config', 'vm.yaml'],
  [['-f', 'vm.yaml', '--'], 'config', 'vm.yaml'],
  [['--log-level', 'debug'], 'log-level', 'debug'],
])('%j gives --%s the string %j', (args, long, value) => {
  expect(parseArguments(serveVhost, args).value(long)).toBe(value);
});

test('options without a value are there or not', () => {
  const args = parseArguments(serveVhost, ['-u', '--strict']);
  expect(args.has('unlink-kek')).toBe(true);
  expect(args.has('strict')).toBe(true);
  expect(args.has('kek')).toBe(false);
  expect(args.value('strict')).toBeUndefined();
  expect(() => args.required('config')).toThrow("option '--config' is required");
});

const copy: CommandSpec = { ...command('copy'), operands: ['INPUT', 'OUTPUT'] };

test.each([
  [
    ['a', 'b'],
    ['a', 'b'],
  ],
  [
    ['-f', 'x', 'a', '--strict', 'b'],
    ['a', 'b'],
  ],
  [
    ['a', '-fx', 'b', '-u'],
    ['a', 'b'],
  ],
  [
    ['-', '-'],
    ['-', '-'],
  ],
  [
    ['', 'b'],
    ['', 'b'],
  ],
  [
    ['--', '-a', '--help'],
    ['-a', '--help'],
  ],
  [
    ['a', '--', '--'],
    ['a', '--'],
  ],
  [
    ['a', 'b', '--'],
    ['a', 'b'],
  ],
  [['--help'], []],
])('%j has the operands %j', (args, operands) => {
  expect(parseArguments(copy, args).operands).toEqual(operands);
});

test.each([
  [[], 'argument INPUT is missing'],
  [['--strict', 'a'], 'argument OUTPUT is missing'],
  [['-f', 'a', 'b'], 'argument OUTPUT is missing'],
  [['a', 'b', 'c'], "unexpected argument 'c'"],
  [['a', '--', 'b', '--strict'], "unexpected argument '--strict'"],
])('%j does not fit the operands', (args, sentence) => {
  expect(() => parseArguments(copy, args)).toThrow(new UsageError(sentence));
});

test.each([
  [['--help', '--nonsense'], 'help'],
  [['-h'], 'help'],
  [['-uh'], 'help'],
  [['--strict', '-V', 'x'], 'version'],
])('%j ends in --%s', (args, long) => {
  expect(parseArguments(serveVhost, args).has(long)).toBe(true);
});

test.each([
  [['--config'], "option '--config' needs a value: FILE"],
  [['-f'], "option '-f' needs a value: FILE"],
  [['-uf'], "option '-f' needs a value: FILE"],
  [
    ['--config', '--strict'],
    "option '--config' needs a value: FILE (one that begins with a dash is written '--config=--strict')",
  ],
  [
    ['-f', '-1'],
    "option '-f' needs a value: FILE (one that begins with a dash is written '--config=-1')",
  ],
  [['--strict=yes'], "option '--strict' takes no value"],
  [['--strict', '--strict'], "option '--strict' is given twice"],
  [['-f', 'a', '--config=b'], "option '--config' is given twice"],
  [['-uu'], "option '--unlink-kek' is given twice"],
  [['--confg', 'x'], "unknown option '--confg'; did you mean '--config'?"],
  [['--no-strict'], "unknown option '--no-strict'; did you mean '--strict'?"],
  [['--wholly-other=1'], "unknown option '--wholly-other'"],
  [['-x'], "unknown option '-x'"],
  [['-ux'], "unknown option '-x'"],
  [['---config', 'x'], "unknown option '---config'; did you mean '--config'?"],
  [['x'], "unexpected argument 'x'"],
  [['-'], "unexpected argument '-'"],
  [['--', '-f'], "unexpected argument '-f'"],
  [['--strict', ''], "unexpected argument ''"],
])('%j is refused', (args, sentence) => {
  let message = '';
  try {
    parseArguments(serveVhost, args);
  } catch (error) {
    expect(error).toBeInstanceOf(UsageError);
    message = (error as UsageError).message;
  }
  expect(message).toBe(sentence);
});

test('an option that may be given more than once keeps its values, and operands may be any number', () => {
  const many: CommandSpec = {
    ...probe,
    options: [{ long: 'socket', value: 'PATH', repeatable: true, summary: '' }],
    operands: ['[PATH...]'],
  };
  const args = parseArguments(many, ['--socket', 'a', 'b', '--socket=c', 'd', 'e']);
  expect(args.all('socket')).toEqual(['a', 'c']);
  expect(args.operands).toEqual(['b', 'd', 'e']);
  const none = parseArguments(many, []);
  expect([none.all('socket'), none.operands]).toEqual([[], []]);
});
