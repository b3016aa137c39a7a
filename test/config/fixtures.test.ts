/**
 * Every key and every error of a device configuration: each `fixtures/*.yaml` says in its comments
 * what must come of it, line for line.
 *
 *     # strict                         it is loaded with unknown keys as errors
 *     # allow weak key                 it is loaded with equal halves of a key allowed
 *     # kek: NAME                      the KEK file that it is loaded with
 *     # error: 3:1: field: sentence    an error with its place (`kek error`: in the KEK file)
 *     # warning: 3:1: field: sentence  a warning, in the same way
 *
 * One without errors has a JSON file of the same name with the configuration that it gives, in which
 * all secrets look the same.
 */
import { afterAll, expect, test } from 'bun:test';
import { chmodSync, copyFileSync, mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { loadDeviceConfig } from '../../src/config/load_device_config.ts';
import { UserError } from '../../src/errors.ts';

const fixtures = join(import.meta.dir, 'fixtures');
const folder = mkdtempSync(join(tmpdir(), 'ubiblk-config-'));
afterAll(() => rmSync(folder, { recursive: true }));

/** A copy that only its owner can read, as a file with secrets should be. */
function privateCopy(name: string): string {
  const path = join(folder, name);
  copyFileSync(join(fixtures, name), path);
  chmodSync(path, 0o600);
  return path;
}

const names = readdirSync(fixtures).filter((name) => name.endsWith('.yaml'));

test.each(names)('%s', (name) => {
  const text = readFileSync(join(fixtures, name), 'utf8');
  const file = privateCopy(name);
  const kekName = /^# kek: (.*)$/m.exec(text)?.[1];
  const kekFile = kekName === undefined ? undefined : privateCopy(kekName);
  const expected = (kind: string): string[] => {
    const lines: string[] = [];
    for (const [, kek, said] of text.matchAll(new RegExp(`^# (kek )?${kind}: (.*)$`, 'gm'))) {
      const line = said.replace('{file}', file).replace('{kek}', kekFile ?? '');
      const place = /^\d/.test(said) ? `${kek ? kekFile : file}:` : '';
      lines.push(place + line);
    }
    return lines;
  };

  const warnings: string[] = [];
  let errors: string[] = [];
  let config: unknown;
  try {
    const loaded = loadDeviceConfig(file, {
      ...(kekFile !== undefined && { kekFile }),
      strict: /^# strict$/m.test(text),
      allowWeakKey: /^# allow weak key$/m.test(text),
      warn: (line) => warnings.push(line),
      maxCpu: 7,
    });
    config = loaded.config;
  } catch (error) {
    expect(error).toBeInstanceOf(UserError);
    errors = (error as UserError).message.split('\n');
  }

  expect(errors).toEqual(expected('error'));
  expect(warnings).toEqual(expected('warning'));
  const values = text.replace(/^#.*$/gm, '').match(/[A-Za-z0-9+/]{16,}={0,2}/g) ?? [];
  for (const line of [...errors, ...warnings]) {
    expect(values.filter((value) => line.includes(value))).toEqual([]);
  }
  if (errors.length === 0) {
    const json = readFileSync(join(fixtures, name.replace(/yaml$/, 'json')), 'utf8');
    expect(JSON.parse(JSON.stringify(config))).toEqual({ ...JSON.parse(json), file });
  }
});
