import { afterAll, expect, test } from 'bun:test';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { inspect } from 'node:util';
import { decodeBase64 } from '../../src/config/base64.ts';
import { loadKekFile, noKek, unlinkKekFile } from '../../src/config/kek.ts';
import { Secret } from '../../src/config/secret.ts';

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

// spec/test-vectors.md section 2
test.each([
  ['vV2t42plNfVPlXSW4gxDf7U5Z0jAKwbh+OWgQqNLz6n+4sMt/PyELccAmGBh1DGw', 'aa'.repeat(32)],
  ['rEy88nt0JORehGWH8x1SbqQodlnROhfw6fSxU7Ja3riwtDtpPsivkd9BJMY3vTuu', 'bb'.repeat(32)],
  ['J8Y1evT6qWjdBp9+C+Ksk+PlMD0fR8CD0cfV0dppTOs=', Buffer.from('0123456789ABCDEF').toString('hex')],
  ['VrxOCIWX3hK1c5sXKqDuWMY5Z7Guq3xsuZ5m', Buffer.from('AKIAEXAMPLE').toString('hex')],
])('the KEK unwraps %s', (wrapped, plainHex) => {
  const kek = loadKek(file('kek.yaml', kekText));
  const plain = kek.unwrap(decodeBase64(wrapped) as Uint8Array);
  expect(Buffer.from(plain).toString('hex')).toBe(plainHex);
});

test('a value with any one bit changed is not unwrapped', () => {
  const kek = loadKek(file('kek.yaml', kekText));
  const wrapped = decodeBase64('VrxOCIWX3hK1c5sXKqDuWMY5Z7Guq3xsuZ5m') as Uint8Array;
  for (let bit = 0; bit < wrapped.length * 8; bit++) {
    wrapped[bit >> 3] ^= 1 << (bit & 7);
    expect(() => kek.unwrap(wrapped)).toThrow(/cannot be decrypted/);
    wrapped[bit >> 3] ^= 1 << (bit & 7);
  }
  expect(Buffer.from(kek.unwrap(wrapped)).toString()).toBe('AKIAEXAMPLE');
});

test('a KEK with empty additional data differs from one without', () => {
  const empty = kekText.replace('dGVzdC1hYWQ=', '""');
  const kek = loadKek(file('empty-aad.yaml', empty));
  const wrapped = decodeBase64('VrxOCIWX3hK1c5sXKqDuWMY5Z7Guq3xsuZ5m') as Uint8Array;
  expect(() => kek.unwrap(wrapped)).toThrow(/was not wrapped with the KEK/);
});

test('a wiped KEK unwraps nothing', () => {
  const kek = loadKek(file('kek.yaml', kekText));
  kek.wipe();
  const wrapped = decodeBase64('VrxOCIWX3hK1c5sXKqDuWMY5Z7Guq3xsuZ5m') as Uint8Array;
  expect(() => kek.unwrap(wrapped)).toThrow(/cannot be decrypted/);
});

test('without a KEK values come out as they are', () => {
  const bytes = new Uint8Array([1, 2, 3]);
  expect(noKek.unwrap(bytes)).toEqual(bytes);
});

test('a KEK file that others may read is warned of', () => {
  const warnings: string[] = [];
  for (const mode of [0o600, 0o400, 0o640, 0o604]) {
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

test('a secret has no printable form', () => {
  const secret = new Secret(Buffer.from('hunter2hunter2'));
  const printed = [
    String(secret),
    `${secret}`,
    JSON.stringify({ secret }),
    inspect({ secret }, { showHidden: true, depth: 9 }),
    Bun.inspect({ secret }),
    Object.values(secret).join(),
  ].join(' ');
  expect(printed).toContain('[secret]');
  expect(printed).not.toContain('hunter2');
  expect(printed).not.toContain(String('h'.charCodeAt(0)));
});

test('a wiped secret is zeroes, in the buffer that it was given', () => {
  const bytes = new Uint8Array([1, 2, 3]);
  new Secret(bytes).wipe();
  expect(bytes).toEqual(new Uint8Array(3));
});

test.each([
  ['', 0],
  ['QQ==', 1],
  ['QUI=', 2],
  ['QUJD', 3],
  ['+/+/', 3],
  ['QUJD\n', 3],
  ['QUJD \t\n', 3],
])('base64 %j is %i bytes', (text, lengthBytes) => {
  expect(decodeBase64(text)?.length).toBe(lengthBytes);
});

test.each(['QQ', 'QQ=', 'Q===', 'QR==', 'QUJ=', '-_-_', ' QUJD', 'QU JD', 'QUJD=', '=', 'é==='])(
  '%j is not base64',
  (text) => {
    expect(decodeBase64(text)).toBeUndefined();
  },
);
