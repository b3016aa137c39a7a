/** Log lines as another process sees them on its stderr. */
import { expect, test } from 'bun:test';
import { join } from 'node:path';
import { Arguments } from '../../src/commands/arguments.ts';
import { logSettings } from '../../src/commands/log_settings.ts';
import type { LogSettings } from '../../src/log.ts';

const module = join(import.meta.dir, '../../src/log.ts');

/** What `body`, with a `log` of these settings, writes to stderr. */
function logged(settings: LogSettings, body: string): string {
  const script = `
    const { Log } = await import(${JSON.stringify(module)});
    const log = new Log(${JSON.stringify(settings)}, 'part');
    ${body}
  `;
  const { stderr, exitCode } = Bun.spawnSync([process.execPath, '-e', script]);
  expect(exitCode).toBe(0);
  return stderr.toString();
}

const everyLevel = "log.error('e'); log.warn('w'); log.info('i'); log.debug('d');";

test.each([
  ['error', '[ERROR part] e\n'],
  ['warn', '[ERROR part] e\n[WARN part] w\n'],
  ['info', '[ERROR part] e\n[WARN part] w\n[INFO part] i\n'],
  ['debug', '[ERROR part] e\n[WARN part] w\n[INFO part] i\n[DEBUG part] d\n'],
] as const)('level %s shows that and what is graver', (level, expected) => {
  expect(logged({ level, format: 'human' }, everyLevel)).toBe(expected);
});

test('fields follow the message, quoted where they have spaces', () => {
  const line = logged(
    { level: 'info', format: 'human' },
    "log.info('ready', { queues: 2, path: '/a b', empty: '', ok: true });",
  );
  expect(line).toBe('[INFO part] ready queues=2 path="/a b" empty="" ok=true\n');
});

test('control characters cannot forge a line', () => {
  const line = logged(
    { level: 'info', format: 'human' },
    "log.info('a\\n[ERROR part] b\\x1b[2J', { key: 'c\\td\\x9b' });",
  );
  expect(line).toBe('[INFO part] a\\x0a[ERROR part] b\\x1b[2J key="c\\td\\x9b"\n');
});

test('a JSON entry is one line, and fields do not replace its head', () => {
  const text = logged(
    { level: 'info', format: 'json' },
    "log.child('other').warn('two\\nlines', { level: 'x', msg: 'y', count: 3 });",
  );
  expect(text.trimEnd()).not.toContain('\n');
  const { time, ...rest } = JSON.parse(text);
  expect(rest).toEqual({ level: 'warn', name: 'other', msg: 'two\nlines', count: 3 });
  expect(new Date(time).toISOString()).toBe(time);
});

test('a stderr that nobody reads is no error', async () => {
  const script = `
    const { Log } = await import(${JSON.stringify(module)});
    const log = new Log({ level: 'info', format: 'human' }, 'part');
    for (let line = 0; line < 100; line++) log.info('x'.repeat(10000));
    console.log('went on');
  `;
  const command = `'${process.execPath}' -e "$SCRIPT" 2>&1 >&3 | true`;
  const child = Bun.spawn(['bash', '-c', `set -o pipefail; exec 3>&1; ${command}`], {
    env: { ...process.env, SCRIPT: script },
    stdout: 'pipe',
  });
  expect(await new Response(child.stdout).text()).toBe('went on\n');
  expect(await child.exited).toBe(0);
});

function settings(options: Record<string, string>, environment: Record<string, string> = {}) {
  return logSettings(new Arguments(new Map(Object.entries(options))), environment, 'warn');
}

test('the level comes from the option, else from UBIBLK_LOG, else from the command', () => {
  expect(settings({ 'log-level': 'debug' }, { UBIBLK_LOG: 'error' }).level).toBe('debug');
  expect(settings({}, { UBIBLK_LOG: 'error' }).level).toBe('error');
  expect(settings({}, { UBIBLK_LOG: '' }).level).toBe('warn');
  expect(settings({}).level).toBe('warn');
});

test('a level or format that there is not is refused', () => {
  expect(() => settings({ 'log-level': 'trace' })).toThrow(
    "--log-level must be one of error, warn, info, debug, not 'trace'",
  );
  expect(() => settings({}, { UBIBLK_LOG: 'INFO' })).toThrow(/^UBIBLK_LOG must be one of/);
  expect(() => settings({ 'log-format': 'xml' })).toThrow(
    "--log-format must be one of human, json, not 'xml'",
  );
});
