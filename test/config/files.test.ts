import { afterAll, expect, test } from 'bun:test';
import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { loadDeviceConfig } from '../../src/config/load_device_config.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubiblk-files-'));
afterAll(() => rmSync(folder, { recursive: true }));

function file(name: string, content: string | Uint8Array, mode = 0o600): string {
  const path = join(folder, name);
  writeFileSync(path, content);
  chmodSync(path, mode);
  return path;
}

test('a configuration file that is not there is named', () => {
  const path = join(folder, 'absent.yaml');
  expect(() => loadDeviceConfig(path)).toThrow(
    `cannot read the configuration file '${path}': ENOENT`,
  );
});

test('a directory is no configuration file', () => {
  expect(() => loadDeviceConfig(folder)).toThrow(
    `cannot read the configuration file '${folder}': EISDIR`,
  );
});

test('bytes that are not UTF-8 are refused', () => {
  const path = file('latin1.yaml', Buffer.from('path: \xe9', 'latin1'));
  expect(() => loadDeviceConfig(path)).toThrow(`'${path}' is not UTF-8 text`);
});

test('a byte order mark and CRLF line ends are no part of the values', () => {
  const path = file('windows.yaml', '\ufeffpath: d\r\nsocket: s\r\n');
  expect(loadDeviceConfig(path).config).toMatchObject({ path: 'd', socket: 's' });
});

test('a configuration may have many lines, but not any size', () => {
  const line = '# a comment with a word such as abcdefghijklmnopqrstuvwxyz0123456789\n';
  const long = `path: d\n${line.repeat(900)}socket: s\n`;
  expect(loadDeviceConfig(file('long.yaml', long)).config.socket).toBe('s');
  const path = file('longer.yaml', `path: d\n${line.repeat(1000)}`);
  expect(() => loadDeviceConfig(path)).toThrow(
    `cannot read the configuration file '${path}': it has 64 KiB or more`,
  );
});

test('a pipe can be the configuration', async () => {
  const path = join(folder, 'pipe');
  Bun.spawnSync(['mkfifo', path]);
  const writer = Bun.spawn(['sh', '-c', `echo 'path: d' > '${path}'`]);
  expect(loadDeviceConfig(path).config.path).toBe('d');
  await writer.exited;
});

test.each([
  ['first.yaml', '# comment\n\n[device]\ndata_path = "d"\n'],
  ['array.yaml', '[[device]] # comment\n'],
  ['dotted.yaml', '[secrets.kek]\n'],
  ['include.yaml', 'include = ["a.toml"]\n'],
  ['inline.yaml', 'device.data_path = "d"\n'],
  ['named.toml', 'path: d\n'],
])('TOML is recognised: %s', (name, text) => {
  expect(() => loadDeviceConfig(file(name, text))).toThrow(
    /is a TOML file, the newer format.* reads YAML only/,
  );
});

test('YAML that mentions TOML signs is no TOML', () => {
  const path = file('signs.yaml', 'path: "[device] a = b"\nsocket: a=b\n');
  expect(loadDeviceConfig(path).config).toMatchObject({ path: '[device] a = b', socket: 'a=b' });
});

test('the KEK file is read before the configuration file', () => {
  const kekFile = join(folder, 'absent.kek');
  expect(() => loadDeviceConfig(join(folder, 'absent.yaml'), { kekFile })).toThrow(
    `cannot read the KEK file '${kekFile}': ENOENT`,
  );
});

test('a configuration with secrets that others may read is warned of, one without is not', () => {
  const warnings: string[] = [];
  const warn = (line: string) => warnings.push(line);
  loadDeviceConfig(file('open.yaml', 'path: d\n', 0o644), { warn });
  expect(warnings).toEqual([]);
  const secretive = file('secrets.yaml', 'path: d\nencryption_key: [QQ==, QQ==]\n', 0o644);
  expect(() => loadDeviceConfig(secretive, { warn })).toThrow('must be 32 bytes, not 1');
  expect(warnings).toEqual([
    `the configuration file '${secretive}' holds secrets but is open to its group or to others; ` +
      'chmod it to 600',
  ]);
});

test('the highest CPU is the host’s', () => {
  const path = file('cpus.yaml', 'path: d\ncpus: [1000000]\n');
  expect(() => loadDeviceConfig(path)).toThrow(/cpus\[0\]: must be a whole number from 0 to \d+,/);
  expect(loadDeviceConfig(file('cpu0.yaml', 'path: d\ncpus: [0]\n')).config.cpus).toEqual([0]);
});
