/** No secret of a configuration is left in memory, and none is ever outside the memory for secrets. */
import { afterAll, expect, test } from 'bun:test';
import { createCipheriv, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Finding, type Needles, needlesFor } from '../memory_scan.ts';
import type { Order, Report } from './memory_child.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubiblk-memory-'));
afterAll(() => rmSync(folder, { recursive: true }));

function file(name: string, lines: string[]): string {
  const path = join(folder, name);
  writeFileSync(path, `${lines.join('\n')}\n`, { mode: 0o600 });
  return path;
}

/** Strings also as JavaScript may keep them, two bytes for each character. */
function allNeedles(values: Record<string, Uint8Array | string>): Needles {
  const needles: Needles = {};
  for (const [name, value] of Object.entries(values)) {
    Object.assign(needles, needlesFor(name, Buffer.from(value as string)));
    if (typeof value === 'string') {
      Object.assign(needles, needlesFor(`${name}, wide`, Buffer.from(value, 'utf16le')));
    }
  }
  return needles;
}

function scan(order: Order): Report {
  const child = join(import.meta.dir, 'memory_child.ts');
  const { stdout, stderr, exitCode } = Bun.spawnSync([
    ...[process.execPath, child, JSON.stringify(order)],
  ]);
  if (exitCode !== 0) throw new Error(`the child ended with ${exitCode}: ${stderr}`);
  return JSON.parse(stdout.toString());
}

/** What was found of some needles, each kind of finding once. */
function kinds({ loaded, wiped }: Report, wanted: Needles): string[] {
  const lines = (when: string, findings: Finding[]) =>
    findings
      .filter(({ needle }) => needle in wanted)
      .map(({ needle, inArena }) => `${needle}: ${when}, ${inArena ? 'arena' : 'elsewhere'}`);
  return [...new Set([...lines('loaded', loaded), ...lines('wiped', wiped)])].sort();
}

const inArena = (needles: Needles) =>
  Object.keys(needles)
    .map((needle) => `${needle}: loaded, arena`)
    .sort();

/** Keys, and their texts as they are in a configuration. */
function freshKeys() {
  const [data, tweak] = [randomBytes(32), randomBytes(32)];
  const path = `/var/lib/${randomBytes(24).toString('hex')}`;
  return { data, tweak, path, keys: allNeedles({ data, tweak }), control: allNeedles({ path }) };
}

test('of wrapped keys and their KEK', () => {
  const { data, tweak, path, keys, control } = freshKeys();
  const [kek, nonce, authData] = [randomBytes(32), randomBytes(12), randomBytes(20)];
  const wrap = (plain: Uint8Array) => {
    const cipher = createCipheriv('aes-256-gcm', kek, nonce).setAAD(authData);
    const wrapped = Buffer.concat([cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
    return wrapped.toString('base64');
  };
  const kekNeedles = allNeedles({ kek, 'KEK text': kek.toString('base64') });
  const report = scan({
    kekFile: file('disk.kek', [
      'method: aes256-gcm # €',
      `key: ${kek.toString('base64')}`,
      `init_vector: "${nonce.toString('base64')}"`,
      `auth_data: "${authData.toString('base64')}"`,
    ]),
    file: file('wrapped.yaml', [
      `path: ${path} # €`,
      `encryption_key: ["${wrap(data)}", ${wrap(tweak)}]`,
    ]),
    needles: { ...keys, ...kekNeedles, ...control },
  });
  expect(report.path).toBe(path);
  expect(kinds(report, control)).toContain('path, end: wiped, elsewhere');
  expect(kinds(report, keys)).toEqual(inArena(keys));
  expect(kinds(report, kekNeedles)).toEqual([]);
});

test('of plain keys', () => {
  const { data, tweak, path, keys, control } = freshKeys();
  const [dataText, tweakText] = [data.toString('base64'), tweak.toString('base64')];
  const texts = allNeedles({ dataText, tweakText });
  const report = scan({
    file: file('plain.yaml', [
      `path: ${path} # €`,
      'encryption_key:',
      `  - '${dataText}'`,
      '  - |',
      `    ${tweakText}`,
    ]),
    needles: { ...keys, ...texts, ...control },
  });
  expect(report.path).toBe(path);
  expect(kinds(report, control)).toContain('path, end: wiped, elsewhere');
  expect(kinds(report, keys)).toEqual(inArena(keys));
  expect(kinds(report, texts)).toEqual([]);
});

test('of plain keys in a configuration that is refused', () => {
  const { data, tweak, keys } = freshKeys();
  const [dataText, tweakText] = [data.toString('base64'), tweak.toString('base64')];
  const texts = allNeedles({ dataText, tweakText });
  const report = scan({
    file: file('refused.yaml', [
      `encryption_key: [${dataText}, ${tweakText}, ]`,
      `unknown_key: ${dataText}`,
    ]),
    needles: { ...keys, ...texts },
  });
  expect(report.path).toBeUndefined();
  expect(kinds(report, { ...keys, ...texts })).toEqual([]);
});
