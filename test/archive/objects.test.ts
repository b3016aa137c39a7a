import { afterAll, expect, test } from 'bun:test';
import { readFileSync } from 'node:fs';
import type { Compression } from '../../src/archive/compression.ts';
import { ObjectLane, Slot } from '../../src/archive/object_codec.ts';
import { Random, seed } from '../random.ts';
import { fixtureXts, sha256 } from './support.ts';

const lane = new ObjectLane(2);
const xts = fixtureXts();
afterAll(() => lane.close());

const ZSTD: Compression = { method: 'zstd', level: 3 };
const SNAPPY: Compression = { method: 'snappy' };
const NONE: Compression = { method: 'none' };

function slotOf(compression: Compression, stripeSectors: number, keys = 0): Slot {
  return new Slot({ stripeSectors, compression, xts: keys }, lane);
}

/** Has a slot make a stripe of an object that isn't its own. */
async function unseal(slot: Slot, object: Uint8Array, stripe = 0, hash = sha256(object)) {
  slot.object.bytes.set(object);
  slot.stripe.bytes.fill(0xee);
  const filled = await slot.unseal(stripe, Buffer.from(hash, 'hex'), slot.object, object.length);
  return { filled, stripe: Buffer.from(slot.stripe.bytes) };
}

function container(payload: Buffer, sectors = 1): Buffer {
  const object = Buffer.alloc(512 * sectors);
  object.writeUInt32LE(payload.length);
  payload.copy(object, 4);
  return object;
}

/** Objects of one sector of zeroes, of another encoder (spec/test-vectors.md section 5). */
const snappyZeroes = container(Buffer.from(`80040000${'fe0100'.repeat(7)}fa0100`, 'hex'));
const zstdZeroes = container(Buffer.from('28b52ffd00584d00001000000100fb2ac002', 'hex'));

test.each([
  [
    'Snappy',
    SNAPPY,
    snappyZeroes,
    '72e82b29384f156ce59cd3fac9bdd248243849a446b3d462359ed855999b038e',
  ],
  ['zstd', ZSTD, zstdZeroes, '2ced714c625c2a87bb1dd47be160a69ad195f2fb101deefad1199c477ced23ea'],
] as const)('the %s object of the fixtures is read', async (_, compression, object, hash) => {
  expect(sha256(object)).toBe(hash);
  const { filled, stripe } = await unseal(slotOf(compression, 1), object);
  expect(filled).toBe(false);
  expect(stripe.equals(Buffer.alloc(512))).toBe(true);
});

test('the encrypted object of the fixtures is read', async () => {
  const name = 'ecb78c3f6363fa673e134d95084f76f3384e0f2aa8f963bf5bd5b477e20a0d60';
  // As an archive with stripes of 128 sectors: number 3 begins with sector 384.
  const plain = slotOf(NONE, 128, xts);
  plain.stripe.bytes.set(snappyZeroes);
  const sealed = await plain.seal(3, null, false);
  const object = Buffer.from(sealed?.object.bytes.subarray(0, 512) ?? []);
  expect(object.toString('hex')).toStartWith('17272860488bd5f868bf96b6ceaee6ca');
  expect(sha256(object)).toBe(name);
  const { filled, stripe } = await unseal(slotOf(SNAPPY, 128, xts), object, 3);
  expect(filled).toBe(false);
  expect(stripe.length).toBe(128 * 512);
});

const KINDS = ['random', 'text', 'zero'] as const;

function fill(bytes: Uint8Array, kind: (typeof KINDS)[number]): void {
  const random = new Random(seed);
  bytes.fill(0);
  if (kind === 'text')
    bytes.set(Buffer.alloc(bytes.length, 'a stripe of a disk, and more of it; '));
  if (kind === 'random') for (let i = 0; i < bytes.length; i++) bytes[i] = random.next();
}

for (const compression of [NONE, SNAPPY, ZSTD, { method: 'zstd', level: 22 } as const]) {
  for (const keys of [0, xts]) {
    for (const kind of KINDS) {
      const form = `${JSON.stringify(compression)}, ${keys ? 'encrypted' : 'plain'}, ${kind}`;
      test(`a stripe comes back: ${form}`, async () => {
        const slot = slotOf(compression, 128, keys);
        fill(slot.stripe.bytes, kind);
        const before = Buffer.from(slot.stripe.bytes);
        const sealed = await slot.seal(7, null, false);
        if (!sealed) throw new Error('left out');
        const object = Buffer.from(sealed.object.bytes);
        expect(object.length % 512).toBe(0);
        expect(sha256(object)).toBe(Buffer.from(sealed.hash).toString('hex'));
        if (keys === 0 && compression.method === 'none') expect(object.equals(before)).toBe(true);
        if (kind === 'text' && compression.method !== 'none') {
          expect(object.length).toBeLessThan(before.length / 10);
        }
        const { filled, stripe } = await unseal(slotOf(compression, 128, keys), object, 7);
        expect(stripe.equals(before)).toBe(true);
        expect(filled).toBe(kind !== 'zero');
      });
    }
  }
}

test('an encrypted object is bound to its stripe', async () => {
  const slot = slotOf(NONE, 1, xts);
  slot.stripe.bytes.fill(5);
  const first = Buffer.from((await slot.seal(1, null, false))?.object.bytes ?? []);
  slot.stripe.bytes.fill(5);
  const second = Buffer.from((await slot.seal(2, null, false))?.object.bytes ?? []);
  expect(first.equals(second)).toBe(false);
});

test('zeroes are left out where that is asked for', async () => {
  const slot = slotOf(ZSTD, 8);
  slot.stripe.bytes.fill(0);
  expect(await slot.seal(0, null, true)).toBe(null);
  slot.stripe.bytes[4095] = 1;
  expect(await slot.seal(0, null, true)).not.toBe(null);
});

test("what the disk's own keys encrypt is decrypted first", async () => {
  const slot = slotOf(NONE, 2, xts);
  slot.stripe.bytes.fill(9);
  const cipher = Buffer.from((await slot.seal(50, null, false))?.object.bytes ?? []);
  const reader = slotOf(NONE, 2);
  reader.stripe.bytes.set(cipher);
  reader.stripe.bytes.fill(0, 512);
  const sealed = await reader.seal(0, { xts, sector: 100, lengthBytes: 512 }, false);
  const expected = Buffer.concat([Buffer.alloc(512, 9), Buffer.alloc(512)]);
  expect(Buffer.from(sealed?.object.bytes ?? []).equals(expected)).toBe(true);
});

test('what an object holds less than a stripe is zeroes', async () => {
  const { stripe, filled } = await unseal(slotOf(NONE, 4), Buffer.alloc(512, 3));
  expect(filled).toBe(true);
  expect(stripe.equals(Buffer.concat([Buffer.alloc(512, 3), Buffer.alloc(1536)]))).toBe(true);
});

/** Text that compresses as texts do. */
const prose = Buffer.concat(
  [...new Bun.Glob('docs/*.md').scanSync('.')].sort().map((path) => readFileSync(path)),
);

test('the level of zstd counts', async () => {
  const lengths = [];
  for (const level of [1, 19]) {
    const slot = slotOf({ method: 'zstd', level }, 128);
    slot.stripe.bytes.set(prose.subarray(0, slot.stripe.bytes.length));
    lengths.push((await slot.seal(0, null, false))?.object.bytes.length ?? 0);
  }
  expect(lengths[1]).toBeLessThan(lengths[0]);
});

const longer = container(Buffer.from(`81040000${'fe0100'.repeat(8)}`, 'hex'));
const promising = container(Buffer.alloc(0));
promising.writeUInt32LE(509);

test.each<[string, Compression, number, Buffer, RegExp]>([
  ['cut', ZSTD, 0, zstdZeroes.subarray(0, 20), /says that its payload is longer than its 20 bytes/],
  ['too short', SNAPPY, 0, Buffer.from([1, 0, 0]), /has 3 bytes, too few for a compressed stripe/],
  ['beyond its end', SNAPPY, 0, promising, /says that its payload is longer than its 512 bytes/],
  ['another method', SNAPPY, 0, zstdZeroes, /can't be decompressed|more than a stripe/],
  ['another method', ZSTD, 0, snappyZeroes, /can't be decompressed/],
  ['too long', SNAPPY, 0, longer, /holds more than a stripe/],
  ['too long', NONE, 0, Buffer.alloc(1024), /holds more than a stripe/],
  [
    'half a sector',
    NONE,
    xts,
    Buffer.alloc(256),
    /256 bytes, which is no whole number of encrypted/,
  ],
])('refused: %s, %p', async (_, compression, keys, object, sentence) => {
  const slot = new Slot({ stripeSectors: 1, compression, xts: keys }, lane);
  const roomy = slotOf(compression, 16, keys);
  roomy.object.bytes.set(object);
  const hash = Buffer.from(sha256(object), 'hex');
  const reading = slot.unseal(0, hash, roomy.object, object.length);
  await expect(reading).rejects.toThrow(sentence);
});

test('zstd frames that are larger than a stripe are refused', async () => {
  const large = slotOf(ZSTD, 4);
  large.stripe.bytes.fill(1);
  const object = Buffer.from((await large.seal(0, null, false))?.object.bytes ?? []);
  await expect(unseal(slotOf(ZSTD, 2), object)).rejects.toThrow(/holds more than a stripe/);
});

test('every bit that flips in an object is told by its hash', async () => {
  const slot = slotOf(ZSTD, 1);
  for (let bit = 0; bit < 8 * zstdZeroes.length; bit += 37) {
    const flipped = Buffer.from(zstdZeroes);
    flipped[bit >> 3] ^= 1 << (bit & 7);
    await expect(unseal(slot, flipped, 0, sha256(zstdZeroes))).rejects.toThrow(
      /has other bytes than its name says/,
    );
  }
});

test('frames are as of a streaming encoder: no content size, no checksum', async () => {
  const slot = slotOf(ZSTD, 64);
  slot.stripe.bytes.fill(7);
  const object = (await slot.seal(0, null, false))?.object.bytes ?? new Uint8Array(9);
  // RFC 8878 section 3.1.1.1.1: content size flag, single segment flag, checksum flag.
  expect(object[8] & 0b1110_0100).toBe(0);
});
