import { heapStats } from 'bun:jsc';
import { expect, test } from 'bun:test';
import { createHash } from 'node:crypto';
import { CborReader, CborWriter } from '../../src/archive/cbor.ts';
import type { Compression } from '../../src/archive/compression.ts';
import {
  type Description,
  hmacSha256,
  metadataHmacInput,
  newDescription,
  parseDescription,
  type Shape,
} from '../../src/archive/description.ts';
import { encodeJsonIndex, parseJsonIndex } from '../../src/archive/json_index.ts';
import { StripeIndex } from '../../src/archive/stripe_index.ts';
import { encodeMapping, parseMapping } from '../../src/archive/stripe_mapping.ts';
import { Random, seed } from '../random.ts';
import { fixtureKek, fixtureXts, noKek, secretOf, sha256 } from './support.ts';

const hmacKey = () => secretOf(Buffer.alloc(32, 0x22));
const ZSTD: Compression = { method: 'zstd', level: 3 };
const NONE: Compression = { method: 'none' };

function parse(text: string, kek = noKek): Description {
  return parseDescription(Buffer.from(text), kek);
}

const format1 = {
  format_version: 1,
  stripe_sector_count: 2048,
  encryption_key: [
    'vV2t42plNfVPlXSW4gxDf7U5Z0jAKwbh+OWgQqNLz6n+4sMt/PyELccAmGBh1DGw',
    'rEy88nt0JORehGWH8x1SbqQodlnROhfw6fSxU7Ja3riwtDtpPsivkd9BJMY3vTuu',
  ],
  compression: 'snappy',
};

test('keys that another program wrapped are read: format 1', () => {
  const read = parse(JSON.stringify(format1), fixtureKek());
  expect(read).toMatchObject({ format: 1, stripeSectors: 2048, compression: { method: 'snappy' } });
  expect(read.diskBytes).toBe(undefined);
  expect(read.keys?.map((key) => Buffer.from(key.reveal()).toString('hex'))).toEqual([
    'aa'.repeat(32),
    'bb'.repeat(32),
  ]);
});

test('the HMAC of a description is that of the fixtures', () => {
  const encrypted = metadataHmacInput(
    { stripeSectors: 128, compression: ZSTD },
    Buffer.alloc(64, 0x7b),
  );
  expect(sha256(encrypted)).toBe(
    '779dd6db5299da3d7d1354c10e82111bed78d6265604c3a918457e922a66d6b6',
  );
  const plain = metadataHmacInput({ stripeSectors: 2048, compression: NONE }, null);
  expect(plain.toString('hex')).toBe(
    '415243484956455f4d455441444154415f484d41435f56310100000000080000000000000000',
  );
  expect(hmacSha256(hmacKey(), plain).toString('hex')).toBe(
    '2360de9378213a54605ffea1101860315b1abd2f2fb2316ef221589a10bb37dc',
  );
});

function fixtureIndex(): StripeIndex {
  const index = new StripeIndex(301);
  index.addZero(0);
  index.add(
    3,
    Uint8Array.from({ length: 32 }, (_, i) => i),
  );
  index.add(300, Buffer.alloc(32, 0xff));
  return index;
}

function listing(index: StripeIndex): [number, string | null][] {
  const list: [number, string | null][] = [];
  for (let stripe = 0; stripe < index.stripes; stripe++) {
    if (!index.has(stripe)) continue;
    const object = index.objectOf(stripe);
    list.push([stripe, object === null ? null : Buffer.from(index.hashOf(object)).toString('hex')]);
  }
  return list;
}

test.each([
  ['plain', 0, 726, 'cd13ff6b1f359c0113c17a58c4ee6c0ce2a2f24becef789e46fbedcee35d17e9'],
  [
    'encrypted',
    fixtureXts(),
    1131,
    '48d0f28ef5859e4e329461cd0728b94572acbbf24f8d08e4eed728479ce59f62',
  ],
] as const)('the stripe mapping of the fixtures, to the byte: %s', (_, xts, length, hash) => {
  const bytes = encodeMapping(fixtureIndex(), hmacKey(), xts);
  expect(bytes.length).toBe(length);
  expect(sha256(bytes)).toBe(hash);
  expect(bytes.toString('hex')).toStartWith('a566646f6d61696e981d18751862186918');
  expect(listing(parseMapping(bytes, hmacKey(), xts))).toEqual(listing(fixtureIndex()));
});

test('any byte of a stripe mapping that flips is told', () => {
  const bytes = encodeMapping(fixtureIndex(), hmacKey(), 0);
  for (let at = 0; at < bytes.length; at++) {
    const flipped = Buffer.from(bytes);
    flipped[at] ^= 1 << (at % 8);
    let read: StripeIndex;
    try {
      read = parseMapping(flipped, hmacKey(), 0);
    } catch {
      continue;
    }
    expect({ at, read: listing(read) }).toEqual({ at, read: listing(fixtureIndex()) });
  }
});

test('byte strings are as good as arrays of numbers', () => {
  const strings = new CborWriter(2048);
  const ours = new CborReader(encodeMapping(fixtureIndex(), hmacKey(), 0));
  strings.map(ours.map());
  for (const key of ['domain', 'version', 'ciphertext', 'plaintext_len', 'hmac_tag']) {
    expect(ours.text()).toBe(key);
    strings.text(key);
    if (key === 'version' || key === 'plaintext_len') strings.unsigned(ours.unsigned());
    else strings.byteString(ours.bytesOrNumbers());
  }
  expect(listing(parseMapping(strings.bytes, hmacKey(), 0))).toEqual(listing(fixtureIndex()));
});

test.each([
  ['another key', secretOf(Buffer.alloc(32, 1)), 0, /HMAC does not match/],
  ['keys where it is plain', hmacKey(), fixtureXts(), /damaged|names a stripe/],
] as const)('refused: %s', (_, key, xts, sentence) => {
  const bytes = encodeMapping(fixtureIndex(), hmacKey(), 0);
  expect(() => parseMapping(bytes, key, xts)).toThrow(sentence);
});

test('numbers of every length of CBOR come back', () => {
  const numbers = [0, 23, 24, 255, 256, 65535, 65536, 2 ** 32 - 1, 2 ** 32, 2 ** 53 - 1];
  const writer = new CborWriter(100);
  for (const number of numbers) writer.unsigned(number);
  const reader = new CborReader(writer.bytes);
  expect(numbers.map(() => reader.unsigned())).toEqual(numbers);
  expect(reader.ended).toBe(true);
  expect(() => new CborReader(Buffer.from('1bffffffffffffffff', 'hex')).unsigned()).toThrow(
    /large/,
  );
  expect(() => new CborReader(Buffer.from('1f', 'hex')).unsigned()).toThrow(/definite/);
});

test('random bytes are no index, and take no memory of a size that they name', () => {
  const random = new Random(seed);
  for (let i = 0; i < 2000; i++) {
    const bytes = Buffer.from(
      Array.from({ length: 1 + random.below(64) }, () => random.below(256)),
    );
    expect(() => parseMapping(bytes, hmacKey(), 0)).toThrow(/damaged|has no|unknown/);
    expect(() => parseJsonIndex(bytes)).toThrow(/damaged/);
  }
});

test('an index of format 1 comes back', () => {
  const index = new StripeIndex(5000);
  const random = new Random(seed);
  for (let stripe = 0; stripe < 5000; stripe++) {
    const number = random.below(3000);
    if (number < 100) continue;
    index.add(stripe, createHash('sha256').update(String(number)).digest());
  }
  expect(index.objects).toBeLessThan(2900);
  expect(listing(parseJsonIndex(encodeJsonIndex(index)))).toEqual(listing(index));
  expect(encodeJsonIndex(new StripeIndex(0)).toString()).toBe('{}');
});

const hash = 'ab'.repeat(32);

test('an index of format 1 may have spaces and lines, and its stripes in any order', () => {
  const text = `\n{ "12" : "${hash}" ,\t"3":"${hash}"\r\n} `;
  expect(listing(parseJsonIndex(Buffer.from(text)))).toEqual([
    [3, hash],
    [12, hash],
  ]);
});

test('an index of a large disk is read and written in little more memory than its text has', () => {
  const stripes = 500_000;
  const index = new StripeIndex(stripes);
  const name = new Uint8Array(32);
  for (let stripe = 0; stripe < stripes; stripe++) {
    new DataView(name.buffer).setUint32(0, stripe, true);
    index.add(stripe, name);
  }
  const text = encodeJsonIndex(index);
  Bun.gc(true);
  const before = heapStats().heapSize;
  const read = parseJsonIndex(text);
  expect(heapStats().heapSize - before).toBeLessThan(2 * text.length);
  expect(read.objects).toBe(stripes);
});

test.each([
  ['a path', `{"0":"../${hash.slice(3)}"}`, /stripe 0 something else than 64 lower-case/],
  ['upper case', `{"0":"${hash.toUpperCase()}"}`, /something else than 64 lower-case/],
  ['a number', '{"0":7}', /something else than 64 lower-case/],
  ['no number', `{"x":"${hash}"}`, /no number of a stripe/],
  ['a number that is written otherwise', `{"01":"${hash}"}`, /no number of a stripe/],
  ['a negative number', `{"-1":"${hash}"}`, /no number of a stripe/],
  ['a stripe that no disk has', `{"99999999999":"${hash}"}`, /no number of a stripe/],
  ['a list', `["${hash}"]`, /no JSON object/],
  ['a stripe twice', `{"7":"${hash}","7":"${hash}"}`, /lists stripe 7 twice/],
  ['no number at all', `{"":"${hash}"}`, /no number of a stripe/],
  ['spaces in a number', `{"1 ":"${hash}"}`, /no number of a stripe/],
  ['a digit less', `{"0":"${hash.slice(1)}"}`, /something else than 64 lower-case/],
  ['a digit more', `{"0":"${hash}a"}`, /something else than 64 lower-case/],
  ['a comma at its end', `{"0":"${hash}",}`, /no JSON text/],
  ['something behind its end', `{"0":"${hash}"} {}`, /no JSON text/],
  ['no end', `{"0":"${hash}"`, /no JSON text/],
  ['nothing', '', /no JSON object/],
])('refused in an index of format 1: %s', (_, text, sentence) => {
  expect(() => parseJsonIndex(Buffer.from(text))).toThrow(sentence);
});

const shapes: [string, Shape, boolean][] = ([1, 2] as const).flatMap((format) =>
  [false, true].map((encrypted): [string, Shape, boolean] => [
    `format ${format}, ${encrypted ? 'encrypted' : 'plain'}`,
    {
      format,
      stripeSectors: 128,
      compression: format === 1 ? { method: 'snappy' } : ZSTD,
      diskBytes: 5 * 512,
    },
    encrypted,
  ]),
);

test.each(shapes)('a description comes back: %s', (_, shape, encrypted) => {
  for (const kek of [noKek, fixtureKek()]) {
    const made = newDescription(shape, encrypted, kek);
    const read = parse(made.text, kek);
    expect(read).toMatchObject(shape);
    const bytes = (each: Description) =>
      [...(each.keys ?? []), each.hmacKey].map((k) => k?.reveal());
    expect(bytes(read)).toEqual(bytes(made));
    if (!encrypted) expect(read.keys).toBe(null);
  }
});

test('keys are new ones each time, and not to be read where they are wrapped', () => {
  const shape = shapes[1][1];
  const [first, second] = [0, 1].map(() => newDescription(shape, true, fixtureKek()));
  expect(first.keys?.[0].reveal()).not.toEqual(second.keys?.[0].reveal() as Uint8Array);
  for (const key of first.keys ?? []) {
    expect(first.text).not.toContain(Buffer.from(key.reveal()).toString('base64'));
  }
});

test('the order of the fields of format 1 is that of the reference system', () => {
  const { text } = newDescription({ ...shapes[0][1], diskBytes: undefined }, false, noKek);
  expect(text).toBe(
    '{"format_version":1,"stripe_sector_count":128,"encryption_key":null,"compression":"snappy"}',
  );
});

test('a description of format 2 that was changed is refused', () => {
  const { text } = newDescription(shapes[3][1], true, fixtureKek());
  const fields = JSON.parse(text);
  const changes = {
    stripe_sector_count: 256,
    encryption_key: null,
    compression: 'none',
    metadata_hmac: Buffer.alloc(32).toString('base64'),
    hmac_key: Buffer.alloc(60).toString('base64'),
    disk_size_bytes: 1024,
    disk_size_hmac: Buffer.alloc(31).toString('base64'),
  };
  for (const [key, value] of Object.entries(changes)) {
    const changed = JSON.stringify({ ...fields, [key]: value });
    expect(() => parse(changed, fixtureKek())).toThrow(/was changed|not wrapped with/);
  }
});

test.each([
  ['another version', { ...format1, format_version: 2 }, /format_version 2; .* reads 1/],
  ['no version', { stripe_sector_count: 1 }, /format_version undefined/],
  ['no stripes', { ...format1, stripe_sector_count: 0 }, /gives 0 as 'stripe_sector_count'/],
  ['huge stripes', { ...format1, stripe_sector_count: 2 ** 40 }, /1 to 131072 are possible/],
  ['another compression', { ...format1, compression: 'lz4' }, /unknown compression, "lz4"/],
  ['one key', { ...format1, encryption_key: ['aa=='] }, /no list of two/],
  ['no base64', { ...format1, encryption_key: ['!', '!'] }, /no base64/],
  ['half a sector', { ...format1, encryption_key: null, disk_size_bytes: 700 }, /gives 700/],
])('refused: %s', (_, fields, sentence) => {
  expect(() => parse(JSON.stringify(fields), fixtureKek())).toThrow(sentence);
});

test('a wrong KEK, and none, are told', () => {
  const other = { ...fixtureKek(), key: secretOf(Buffer.alloc(32, 1)) };
  expect(() => parse(JSON.stringify(format1), other)).toThrow(/not wrapped with the 'archive_kek'/);
  expect(() => parse(JSON.stringify(format1))).toThrow(/wrong length.*no 'archive_kek'/);
});
