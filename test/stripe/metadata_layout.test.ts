/** The bytes of metadata files: fixtures, damage, and what can't belong to the disk. */
import { afterAll, describe, expect, test } from 'bun:test';
import { openLibrary, shim } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import { Secret } from '../../src/crypto/secret.ts';
import { expandXts, freeXts } from '../../src/crypto/xts.ts';
import {
  MetadataError,
  MetadataLayout,
  type MetadataVersion,
  metadataExtent,
  parseMetadata,
  stripeCount,
} from '../../src/stripe/metadata_layout.ts';
import { Random, seed } from '../random.ts';

const MIB = 1 << 20;
const random = new Random(seed);
console.log(`UBIBLK_TEST_SEED=${seed}`);
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const sha256 = (bytes: Uint8Array) => new Bun.CryptoHasher('sha256').update(bytes).digest('hex');

function serialise(layout: MetadataLayout, headers: Uint8Array, length = layout.sizeBytes) {
  const bytes = new Uint8Array(length).fill(0xee);
  layout.encode(headers, 0, bytes);
  return bytes;
}

/** What is wrong with a file. */
function complaint(bytes: Uint8Array, diskBytes: number): string {
  try {
    parseMetadata(bytes, diskBytes);
  } catch (error) {
    expect(error).toBeInstanceOf(MetadataError);
    return (error as Error).message;
  }
  throw new Error('nothing was wrong with it');
}

const versions: readonly MetadataVersion[] = [1, 2];

// spec/test-vectors.md section 4.
describe('the file of five stripes', () => {
  const headers = Uint8Array.of(5, 4, 7, 0, 2);
  const diskBytes = 5 * MIB;

  test.each([
    [
      1,
      '424445565f55424900010000000b0000',
      '00000000',
      '00000000',
      'b86f8f6b48c02e8296297cec8472017a64cc3a34696b767fc62d27e8849400dd',
    ],
    [
      2,
      '424445565f55424900020000000b050000000000',
      'd7c758d4',
      '59bf6451',
      '137e3dc0427bd3e5a2a5f675321b63252ed525874f3b859278878af0eb012009',
    ],
  ] as const)(
    'of version %d.0 has the bytes of the vectors',
    (version, start, crc0, crc1, digest) => {
      const bytes = serialise(new MetadataLayout(version, 11, 5), headers);
      expect(bytes.length).toBe(1024);
      expect(hex(bytes)).toStartWith(start);
      expect(hex(bytes.subarray(508, 512))).toBe(crc0);
      expect(hex(bytes.subarray(512, 520))).toBe('0504070002000000');
      expect(hex(bytes.subarray(1020))).toBe(crc1);
      expect(sha256(bytes)).toBe(digest);
      const read = parseMetadata(bytes, diskBytes);
      expect(read.layout).toMatchObject({ version, shift: 11, stripes: 5, stripeBytes: MIB });
      expect(hex(read.headers)).toBe('0504070002');
    },
  );

  test('of version 1.0, encrypted, has the bytes of the vectors', () => {
    openLibrary();
    const keys = [0, 0x80].map((first) =>
      Secret.taking(Uint8Array.from({ length: 32 }, (_, i) => first + i)),
    ) as [Secret, Secret];
    const xts = expandXts(keys);
    const buffer = new NativeBuffer(1024);
    afterAll(() => {
      freeXts(xts);
      buffer.free();
    });
    const bytes = new Uint8Array(buffer.window());
    const layout = new MetadataLayout(1, 11, 5);
    layout.encode(headers, 0, bytes);
    shim.ubiblk_xts_encrypt(xts, 0, 2, buffer.address, buffer.address);
    expect(hex(bytes)).toStartWith('3465b870cad50ac2a5236c5f6e661754');
    expect(hex(bytes.subarray(512))).toStartWith('12b4600e0f96b8c71e396abd2525886d');
    expect(sha256(bytes)).toBe('079d5db913432f3bfd5e52e1573db564b65b2a664e099452c95dda1ca5054492');
    expect(complaint(bytes, diskBytes)).toMatch(/no metadata file, or .* other keys .* the same/);
    shim.ubiblk_xts_decrypt(xts, 0, 2, buffer.address, buffer.address);
    expect(hex(parseMetadata(bytes, diskBytes).headers)).toBe('0504070002');
  });

  test('of version 2.0 can change nowhere unnoticed', () => {
    const bytes = serialise(new MetadataLayout(2, 11, 5), headers);
    for (let at = 0; at < bytes.length; at++) {
      const byte = bytes[at];
      for (const flip of [1, 2, 3, 4, 8, 16, 32, 64, 128, 0xff]) {
        bytes[at] = byte ^ flip;
        const sentence = complaint(bytes, diskBytes);
        expect(sentence).toContain(`sector ${at < 512 ? 0 : 1}`);
        expect(sentence).toContain('keys');
      }
      bytes[at] = byte;
    }
    expect(hex(parseMetadata(bytes, diskBytes).headers)).toBe('0504070002');
  });
});

test('what was written is read again, of any number of stripes and in any pieces', () => {
  for (let round = 0; round < 300; round++) {
    const version = versions[round % 2];
    const shift = random.below(18);
    const stripes = 1 + random.below(round % 3 === 0 ? 5000 : 1100);
    const layout = new MetadataLayout(version, shift, stripes);
    const headers = Uint8Array.from({ length: stripes }, () => random.below(8));
    // The last stripe may be partial.
    const diskBytes = stripes * layout.stripeBytes - 512 * random.below(1 << shift);
    const length = layout.sizeBytes + 512 * random.below(20);
    const whole = serialise(layout, headers, length);
    const read = parseMetadata(whole, diskBytes);
    expect(hex(read.headers)).toBe(hex(headers));
    expect(read.layout).toMatchObject({ version, shift, stripes });
    expect(metadataExtent(whole.subarray(0, 512), diskBytes)).toBe(layout.sizeBytes);
    const pieced = new Uint8Array(length).fill(0xdd);
    for (let at = 0; at < length; ) {
      const end = Math.min(at + 512 * (1 + random.below(4)), length);
      layout.encode(headers, at, pieced.subarray(at, end));
      at = end;
    }
    expect(Buffer.compare(pieced, whole)).toBe(0);
    expect(whole.subarray(layout.sizeBytes).every((byte) => byte === 0)).toBe(true);
  }
});

test('a stripe is in the sector that is said, and in no other', () => {
  for (const version of versions) {
    const layout = new MetadataLayout(version, 6, 1600);
    const headers = new Uint8Array(1600);
    const empty = serialise(layout, headers);
    for (const stripe of [0, 1, 507, 508, 511, 512, 1015, 1016, 1023, 1024, 1599]) {
      headers[stripe] = 1;
      const bytes = serialise(layout, headers);
      headers[stripe] = 0;
      const changed = [...bytes.keys()].filter((at) => bytes[at] !== empty[at]);
      const sectors = new Set(changed.map((at) => at - (at % 512)));
      expect([...sectors]).toEqual([layout.sectorOffset(stripe)]);
    }
  }
});

test('16 Mi stripes fill as many sectors as they must', () => {
  const stripes = 16 * MIB;
  expect(stripeCount(16 * 2 ** 40, 11)).toBe(stripes);
  for (const [version, sectors] of [
    [1, 32769],
    [2, 33028],
  ] as const) {
    const layout = new MetadataLayout(version, 11, stripes);
    expect(layout.sizeBytes).toBe(sectors * 512);
    const headers = new Uint8Array(stripes).fill(4);
    headers[stripes - 1] = 7;
    const read = parseMetadata(serialise(layout, headers), stripes * MIB);
    expect(Buffer.compare(read.headers, headers)).toBe(0);
  }
});

describe('a disk of another size', () => {
  test.each(versions)('whose map of version %d.0 has too few headers is refused', (version) => {
    const bytes = serialise(new MetadataLayout(version, 11, 512), new Uint8Array(512));
    expect(parseMetadata(bytes, 512 * MIB).layout.stripes).toBe(512);
    expect(complaint(bytes, 512 * MIB + 512)).toMatch(/room for 512 .* disk has 513 .* grown/);
  });

  test.each(versions)('that is smaller is refused while version %d.0 records more', (version) => {
    const layout = new MetadataLayout(version, 11, 20);
    const headers = new Uint8Array(20);
    const small = parseMetadata(serialise(layout, headers), 10 * MIB);
    expect(small.layout.stripes).toBe(10);
    expect(small.headers.length).toBe(10);
    headers[10] = 4;
    expect(complaint(serialise(layout, headers), 10 * MIB)).toMatch(/behind the disk's end/);
    expect(parseMetadata(serialise(layout, headers), 11 * MIB).headers[10]).toBe(4);
  });

  test('takes nothing from behind the last sector of its headers', () => {
    for (const version of versions) {
      const layout = new MetadataLayout(version, 11, 5);
      const bytes = serialise(layout, new Uint8Array(5).fill(4), 4096);
      bytes.fill(0xff, layout.sizeBytes);
      expect(hex(parseMetadata(bytes, 5 * MIB).headers)).toBe('0404040404');
    }
  });
});

describe('refused', () => {
  const layout = new MetadataLayout(1, 11, 5);
  const plain = (change: (bytes: Uint8Array) => void) => {
    const bytes = serialise(layout, Uint8Array.of(5, 4, 7, 0, 2));
    change(bytes);
    return bytes;
  };
  /** Version 2.0 whose first sector has been changed on purpose, CRC and all. */
  const sealed = (change: (bytes: Uint8Array) => void) => {
    const bytes = serialise(new MetadataLayout(2, 11, 5), new Uint8Array(5));
    change(bytes);
    new DataView(bytes.buffer).setUint32(508, Bun.hash.crc32(bytes.subarray(0, 508)), true);
    return bytes;
  };

  test.each([
    ['an empty file', new Uint8Array(), /has 0 bytes; .* multiple of 512/],
    ['a file of half a sector', new Uint8Array(768), /has 768 bytes/],
    ['zeroes', new Uint8Array(1024), /is no metadata file/],
    [
      'version 0.0',
      plain((b) => b.fill(0, 9, 11)),
      /version 0\.0.*Seed, v0\.2 and v0\.3.*metadata init/,
    ],
    ['version 0.7', plain((b) => b.set([0, 0, 7], 9)), /version 0\.7.*Seed, v0\.2 and v0\.3/],
    ['version 1.1', plain((b) => b.set([1], 11)), /version 1\.1, which this ubiblk doesn't know/],
    ['version 3.0', plain((b) => b.set([3], 9)), /version 3\.0, .* reads 1\.0 and 2\.0/],
    ['version 2.1', sealed((b) => b.set([1], 11)), /version 2\.1, which/],
    ['version 258.0', sealed((b) => b.set([2, 1], 9)), /version 258\.0, which/],
    ['stripes of 128 MiB', plain((b) => b.set([18], 13)), /2\^18 sectors .* at most 2\^17/],
    ['the same of version 2.0', sealed((b) => b.set([0xff], 13)), /2\^255 sectors/],
    ['a bit without a meaning', plain((b) => b.set([0x0c], 515)), /stripe 3 .*\(0x0c\)/],
    ['the highest bit', plain((b) => b.set([0x84], 516)), /stripe 4 .*\(0x84\)/],
    [
      'headers that are missing',
      sealed((b) => b.set([0xfd, 1], 14)),
      /too short for the 509 stripes/,
    ],
    ['absurdly many', sealed((b) => b.fill(0xff, 14, 18)), /more than 1073741824 stripes/],
  ])('is %s', (_, bytes, sentence) => {
    expect(complaint(bytes, 5 * MIB)).toMatch(sentence);
  });

  test('is damage of any sector of headers, by its number', () => {
    const many = new MetadataLayout(2, 6, 3 * 508);
    for (const sector of [1, 2, 3]) {
      const bytes = serialise(many, new Uint8Array(many.stripes).fill(4));
      bytes[sector * 512 + random.below(512)] ^= 1 << random.below(8);
      expect(complaint(bytes, many.stripes * many.stripeBytes)).toContain(
        `CRC of sector ${sector} `,
      );
    }
  });
});
