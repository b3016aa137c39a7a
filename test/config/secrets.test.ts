import { afterAll, expect, test } from 'bun:test';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { loadKekFile, noKek, unlinkKekFile } from '../../src/config/kek.ts';
import { Secret } from '../../src/crypto/secret.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubiblk-secrets-'));
afterAll(() => rmSync(folder, { recursive: true }));

const kekText = `method: aes256-gcm
key: ERERERERERERERERERERERERERERERERERERERERERE=
init_vector: IiIiIiIiIiIiIiIi
auth_data: dGVzdC1hYWQ=
`;

function file(name: string, text: string, mode = 0o600): string {
  const path = join(folder, name);
  writeFileSync(path, text);
  chmodSync(path, mode);
  return path;
}

function loadKek(path: string) {
  return loadKekFile(path, false, (line) => {
    throw new Error(`unexpected warning: ${line}`);
  });
}

const secretOf = (base64: string) => Secret.taking(Buffer.from(base64, 'base64'));
const hexOf = (secret: Secret) => Buffer.from(secret.reveal()).toString('hex');

// spec/test-vectors.md section 2
test.each([
  ['vV2t42plNfVPlXSW4gxDf7U5Z0jAKwbh+OWgQqNLz6n+4sMt/PyELccAmGBh1DGw', 'aa'.repeat(32)],
  ['rEy88nt0JORehGWH8x1SbqQodlnROhfw6fSxU7Ja3riwtDtpPsivkd9BJMY3vTuu', 'bb'.repeat(32)],
  ['J8Y1evT6qWjdBp9+C+Ksk+PlMD0fR8CD0cfV0dppTOs=', Buffer.from('0123456789ABCDEF').toString('hex')],
  ['VrxOCIWX3hK1c5sXKqDuWMY5Z7Guq3xsuZ5m', Buffer.from('AKIAEXAMPLE').toString('hex')],
])('the KEK unwraps %s, and wraps it again', (wrapped, plainHex) => {
  const kek = loadKek(file('kek.yaml', kekText));
  const plain = kek.unwrap(secretOf(wrapped));
  expect(hexOf(plain)).toBe(plainHex);
  expect(Buffer.from(kek.wrap(plain).reveal()).toString('base64')).toBe(wrapped);
});

test('a value with any one bit changed is not unwrapped', () => {
  const kek = loadKek(file('kek.yaml', kekText));
  const wrapped = Buffer.from('VrxOCIWX3hK1c5sXKqDuWMY5Z7Guq3xsuZ5m', 'base64');
  for (let bit = 0; bit < wrapped.length * 8; bit++) {
    wrapped[bit >> 3] ^= 1 << (bit & 7);
    const damaged = Secret.taking(Uint8Array.from(wrapped));
    expect(() => kek.unwrap(damaged)).toThrow(/cannot be decrypted/);
    expect(() => damaged.address).toThrow(/wiped/);
    wrapped[bit >> 3] ^= 1 << (bit & 7);
  }
  expect(Buffer.from(kek.unwrap(Secret.taking(wrapped)).reveal()).toString()).toBe('AKIAEXAMPLE');
});

test('a KEK with empty additional data differs from one without', () => {
  const empty = kekText.replace('dGVzdC1hYWQ=', '""');
  const kek = loadKek(file('empty-aad.yaml', empty));
  const wrapped = secretOf('VrxOCIWX3hK1c5sXKqDuWMY5Z7Guq3xsuZ5m');
  expect(() => kek.unwrap(wrapped)).toThrow(/was not wrapped with the KEK/);
  const own = kek.wrap(Secret.taking(Buffer.from('AKIAEXAMPLE')));
  expect(Buffer.from(kek.unwrap(own).reveal()).toString()).toBe('AKIAEXAMPLE');
});

test.each([
  ['key', "cannot be encrypted: the KEK file '{file}' has no 'key'"],
  ['init_vector', "cannot be encrypted: the KEK file '{file}' has no 'init_vector'"],
  ['auth_data', "cannot be encrypted: the KEK file '{file}' has no 'auth_data'"],
])('a KEK without %s wraps nothing', (part, sentence) => {
  const path = file('part.yaml', kekText.replace(new RegExp(`^${part}: .*\n`, 'm'), ''));
  const kek = loadKek(path);
  const plain = Secret.taking(new Uint8Array(32));
  expect(() => kek.wrap(plain)).toThrow(sentence.replace('{file}', path));
  expect(() => plain.address).toThrow(/wiped/);
});

test('a wiped KEK unwraps nothing', () => {
  const kek = loadKek(file('kek.yaml', kekText));
  kek.wipe();
  const wrapped = secretOf('VrxOCIWX3hK1c5sXKqDuWMY5Z7Guq3xsuZ5m');
  expect(() => kek.unwrap(wrapped)).toThrow('a secret was used after it was wiped');
});

test('without a KEK values come out as they are', () => {
  const secret = secretOf('AQID');
  expect(noKek.unwrap(secret)).toBe(secret);
  expect(noKek.wrap(secret)).toBe(secret);
  expect(hexOf(secret)).toBe('010203');
});

test('a KEK file that others may read is warned of', () => {
  const warnings: string[] = [];
  for (const mode of [0o600, 0o640, 0o604, 0o400]) {
    loadKekFile(file('modes.yaml', kekText, mode), false, (line) => warnings.push(line));
  }
  const path = join(folder, 'modes.yaml');
  const warning = `the KEK file '${path}' is open to its group or to others; chmod it to 600`;
  expect(warnings).toEqual([warning, warning]);
});

test('a KEK file that is not there is named', () => {
  const path = join(folder, 'absent.yaml');
  expect(() => loadKek(path)).toThrow(`cannot read the KEK file '${path}': ENOENT`);
});

test('unlinking removes the KEK file, or says why not', () => {
  const path = file('unlinked.yaml', kekText);
  unlinkKekFile(path);
  expect(existsSync(path)).toBe(false);
  expect(() => unlinkKekFile(path)).toThrow(`cannot delete the KEK file '${path}': ENOENT`);
  const directory = join(folder, 'directory');
  mkdirSync(directory);
  expect(() => unlinkKekFile(directory)).toThrow(`cannot delete the KEK file '${directory}': E`);
});
