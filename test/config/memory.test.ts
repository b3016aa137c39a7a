/** No secret of a configuration is left in memory, and none is ever outside the memory for secrets. */
import { afterAll, expect, test } from 'bun:test';
import { createCipheriv, randomBytes } from 'node:crypto';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type Finding, mask, type Order } from './memory_scan_child.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubiblk-memory-'));
afterAll(() => rmSync(folder, { recursive: true }));

function file(name: string, lines: string[]): string {
  const path = join(folder, name);
  writeFileSync(path, `${lines.join('\n')}\n`, { mode: 0o600 });
  return path;
}

/** Both ends of the bytes, so that a copy of a part is found as well; strings also as UTF-16. */
function needlesFor(values: Record<string, Uint8Array | string>): Record<string, string> {
  const needles: Record<string, string> = {};
  const add = (name: string, bytes: Uint8Array) => {
    const masked = Buffer.from(bytes).map((byte) => byte ^ mask);
    needles[`${name}, beginning`] = Buffer.from(masked.subarray(0, 16)).toString('hex');
    needles[`${name}, end`] = Buffer.from(masked.subarray(-16)).toString('hex');
  };
  for (const [name, value] of Object.entries(values)) {
    add(name, Buffer.from(value as string));
    if (typeof value === 'string') add(`${name} in wide characters`, Buffer.from(value, 'utf16le'));
  }
  return needles;
}

function scan(order: Order): { path: string; findings: Finding[] } {
  const child = join(import.meta.dir, 'memory_scan_child.ts');
  const { stdout, stderr, exitCode } = Bun.spawnSync([
    ...[process.execPath, child, JSON.stringify(order)],
  ]);
  if (exitCode !== 0) throw new Error(`the child ended with ${exitCode}: ${stderr}`);
  return JSON.parse(stdout.toString());
}

/** What was found of some needles, each kind of finding once. */
function kinds(findings: Finding[], wanted: Record<string, string>): string[] {
  const found = findings
    .filter(({ needle }) => needle in wanted)
    .map(({ needle, when, inArena }) => `${needle}: ${when}, ${inArena ? 'arena' : 'elsewhere'}`);
  return [...new Set(found)].sort();
}

const inArena = (needles: Record<string, string>) =>
  Object.keys(needles)
    .map((needle) => `${needle}: loaded, arena`)
    .sort();

/** Keys, and their texts as they are in a configuration. */
function freshKeys() {
  const [data, tweak] = [randomBytes(32), randomBytes(32)];
  const path = `/var/lib/${randomBytes(24).toString('hex')}`;
  return { data, tweak, path, keys: needlesFor({ data, tweak }), control: needlesFor({ path }) };
}

test('of wrapped keys and their KEK', () => {
  const { data, tweak, path, keys, control } = freshKeys();
  const [kek, nonce, authData] = [randomBytes(32), randomBytes(12), randomBytes(20)];
  const wrap = (plain: Uint8Array) => {
    const cipher = createCipheriv('aes-256-gcm', kek, nonce).setAAD(authData);
    const wrapped = Buffer.concat([cipher.update(plain), cipher.final(), cipher.getAuthTag()]);
    return wrapped.toString('base64');
  };
  const kekNeedles = needlesFor({ kek, 'KEK text': kek.toString('base64') });
  const { findings, ...loaded } = scan({
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
  expect(loaded.path).toBe(path);
  expect(kinds(findings, control)).toContain('path, end: wiped, elsewhere');
  expect(kinds(findings, keys)).toEqual(inArena(keys));
  expect(kinds(findings, kekNeedles)).toEqual([]);
});

test('of plain keys', () => {
  const { data, tweak, path, keys, control } = freshKeys();
  const [dataText, tweakText] = [data.toString('base64'), tweak.toString('base64')];
  const texts = needlesFor({ dataText, tweakText });
  const { findings, ...loaded } = scan({
    file: file('plain.yaml', [
      `path: ${path} # €`,
      'encryption_key:',
      `  - '${dataText}'`,
      '  - |',
      `    ${tweakText}`,
    ]),
    needles: { ...keys, ...texts, ...control },
  });
  expect(loaded.path).toBe(path);
  expect(kinds(findings, control)).toContain('path, end: wiped, elsewhere');
  expect(kinds(findings, keys)).toEqual(inArena(keys));
  expect(kinds(findings, texts)).toEqual([]);
});

test('of plain keys in a configuration that is refused', () => {
  const { data, tweak, keys } = freshKeys();
  const [dataText, tweakText] = [data.toString('base64'), tweak.toString('base64')];
  const texts = needlesFor({ dataText, tweakText });
  const { findings, path } = scan({
    file: file('refused.yaml', [
      `encryption_key: [${dataText}, ${tweakText}, ]`,
      `unknown_key: ${dataText}`,
    ]),
    needles: { ...keys, ...texts },
  });
  expect(path).toBe('');
  expect(kinds(findings, { ...keys, ...texts })).toEqual([]);
});
