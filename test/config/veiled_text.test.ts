import { expect, test } from 'bun:test';
import { isScalar, parseDocument, visit } from 'yaml';
import { Problems } from '../../src/config/problems.ts';
import { VeiledText } from '../../src/config/veiled_text.ts';
import { parseMapping } from '../../src/config/yaml_mapping.ts';
import { Secret } from '../../src/crypto/secret.ts';
import { Random, seed } from '../random.ts';

console.log(`seed ${seed} (UBIBLK_TEST_SEED=${seed} repeats this run)`);

const key = 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=';
const psk = 'MDEyMzQ1Njc4OUFCQ0RFRg==';
const keyHex = Buffer.from(key, 'base64').toString('hex');

const veiled = (text: string) => new VeiledText(Secret.taking(Buffer.from(text)));
const hexOf = (secret: Secret | undefined) =>
  secret && Buffer.from(secret.reveal()).toString('hex');

/** The mapping of a text without syntax errors. */
function mappingOf(text: string, problems = new Problems('f')) {
  const mapping = parseMapping(veiled(text), problems, true);
  problems.throwIfAny();
  if (mapping === undefined) throw new Error('no mapping');
  return mapping;
}

test.each([
  `k: ${key}`,
  `k: "${key}"`,
  `k: '${key}'`,
  `k: ${key} # comment`,
  `k:\r\n  ${key}\r\n`,
  `k: "${key} \\t\\n"`,
  `k: |\n  ${key}\n`,
  `k: >-\n  ${key}\n`,
  `k: !!str ${key}`,
  `{k: ${key}}`,
  `{"k":${key}}`,
  `? k\n: ${key}`,
  `a: &name ${key}\nk: *name`,
  `\ufeffé: ü\nk: ${key}`,
])('a key is decoded without being in the text: %j', (text) => {
  expect(hexOf(mappingOf(text).base64('k')?.decode())).toBe(keyHex);
  const source = veiled(text);
  expect(source.text).not.toContain(key.slice(0, 24));
  expect(source.text.length).toBe(text.replace('\ufeff', '').length);
});

test.each([
  `k: "\\x41AECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="`,
  `k: "${key.slice(0, 20)}\\\n  ${key.slice(20)}"`,
  `k: "${key.slice(0, 30)}\\u00${Buffer.from(key[30]).toString('hex')}${key.slice(31)}"`,
  `k: "${key.replace('=', '\\u003d')}"`,
])('a key that is spelt in pieces is decoded all the same: %j', (text) => {
  expect(hexOf(mappingOf(text).base64('k')?.decode())).toBe(keyHex);
});

test.each([
  ['k: YQ==', '61'],
  ['k: ""', ''],
  [`k: ${psk}`, Buffer.from('0123456789ABCDEFF').toString('hex').slice(0, 32)],
])('short secrets are decoded as well: %s', (text, hex) => {
  expect(hexOf(mappingOf(text).base64('k')?.decode())?.slice(0, 32)).toBe(hex);
});

test.each([
  `k: ${key.slice(1)}`,
  `k: "${key.slice(0, 24)}\n  ${key.slice(24)}"`,
  `k: ${key} ${key}`,
  `k: ${key}=`,
  `k: ł${key}`,
  'k: "Łr=="',
])('what is not base64 is not decoded: %j', (text) => {
  expect(mappingOf(text).base64('k')?.decode()).toBeUndefined();
});

test('every other field has its own text', () => {
  const path = '/var/lib/machines/images/disks/vm7/disk.img';
  const mapping = mappingOf(
    `path: ${path}
padded: ${key}5
both: [${key}_7., "_veiled0 ${key}"]
decimal: 000000000000000000000000000000002
hex: 0x0000000000000000000000000000000000000f
octal: 0o000000000000000000000000000000000007`,
  );
  expect(mapping.path('path')).toBe(path);
  expect(mapping.string('padded')).toBe(`${key}5`);
  expect(mapping.integer('decimal', { min: 2, max: 2 })).toBe(2);
  expect(mapping.integer('hex', { min: 15, max: 15 })).toBe(15);
  expect(mapping.integer('octal', { min: 7, max: 7 })).toBe(7);
});

test('messages have the file’s own places, and no word that may be a secret', () => {
  const problems = new Problems('f');
  const mapping = mappingOf(
    `[${key}, ${key}]: {${key}: ${key}}\nkey:${key}: 1\nengine: ${key}\nn: ${psk}\nword: sink`,
    problems,
  );
  for (const field of ['engine', 'word']) mapping.choice(field, ['sync']);
  mapping.integer('n', { min: 1, max: 2 });
  mapping.reportUnknownKeys();
  expect(() => problems.throwIfAny()).toThrow(
    [
      'f:1:1: ["…","…"]: unknown key',
      'f:2:1: key:…: unknown key',
      "f:3:1: engine: must be 'sync', not '…'",
      "f:4:1: n: must be a whole number from 1 to 2, not the string '…'",
      "f:5:1: word: must be 'sync', not 'sink'",
    ].join('\n'),
  );
  expect(() => mappingOf(`{${key}: 1, ${key}: 2}`)).toThrow('f:1:51: …: is given twice');
  expect(() => mappingOf(`k: ["${key}" ${key}]`)).toThrow('f:1:52: YAML syntax:');
});

test('a placeholder that the file spells itself is its own text', () => {
  const source = veiled(`a: _veiled0\nk: ${key}\n`);
  const placeholder = /k: (.*)/.exec(source.text)?.[1] ?? '';
  expect(placeholder).not.toStartWith('_veiled0');
  expect(source.unveil(source.text)).toBe(`a: _veiled0\nk: ${key}\n`);
  expect(hexOf(source.decodeBase64(placeholder))).toBe(keyHex);
  const absent = placeholder.replace('0.', '9.');
  expect(source.unveil(absent)).toBe(absent);
});

test('bytes that are not UTF-8 are refused, and wiped', () => {
  const file = Secret.taking(Buffer.from('k: \xe9', 'latin1'));
  expect(() => new VeiledText(file)).toThrow(TypeError);
  expect(() => file.address).toThrow(/wiped/);
});

/** All that YAML makes of a text: its errors with their places, or its nodes. */
function meaning(text: string, unveil: (text: string) => string) {
  const document = parseDocument(text, { version: '1.2', schema: 'core', prettyErrors: false });
  const nodes: unknown[] = [];
  visit(document, {
    Node(_, node) {
      const value = isScalar(node) ? node.value : undefined;
      nodes.push([node.range, typeof value === 'string' ? unveil(value) : value]);
    },
  });
  const errors = document.errors.map(({ code, pos }) => [code, pos]);
  return errors.length > 0 ? { errors } : { nodes };
}

test('YAML makes the same of a text and of its veil, whatever is in it', () => {
  const word = 'abcdefghijklmnopqrstuvwxyz/';
  const pieces = [
    ...[
      key,
      psk,
      word,
      '0123456789012345678901234',
      '0x0123456789abcdef0123456789',
      `1e+${'0'.repeat(30)}`,
    ],
    ...[
      'a',
      '_veiled0',
      '7',
      '.',
      '_',
      'é',
      '=',
      '\\',
      '"',
      "'",
      '\n',
      '\n  ',
      ' ',
      ': ',
      '- ',
      ', ',
    ],
    ...['[', ']', '{', '}', '&', '*', '!', '|\n  ', '>\n ', '# ', '? ', '%', 'k: ', '"', ' ', '\n'],
  ];
  const random = new Random(seed);
  let whole = 0;
  for (let round = 0; round < 3000; round++) {
    let text = '';
    while (text.length < 120) text += random.pick(pieces);
    const source = veiled(text);
    const expected = meaning(text, (part) => part);
    const actual = meaning(source.text, (part) => source.unveil(part));
    expect({ text, ...actual }).toEqual({ text, ...expected });
    if (expected.errors === undefined) whole++;
    expect(source.unveil(source.text)).toBe(text);
    source.wipe();
  }
  expect(whole).toBeGreaterThan(100);
});
