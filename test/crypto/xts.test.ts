import { afterAll, expect, test } from 'bun:test';
import { openLibrary, shim } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import { Secret } from '../../src/crypto/secret.ts';
import { expandXts, freeXts, SECTOR_BYTES, XTS_KEY_BYTES } from '../../src/crypto/xts.ts';

openLibrary();
const buffer = new NativeBuffer(2 * SECTOR_BYTES);
const [from, to] = [buffer.address, buffer.address + SECTOR_BYTES];
const input = new Uint8Array(buffer.window(0, SECTOR_BYTES));
const output = new Uint8Array(buffer.window(SECTOR_BYTES, SECTOR_BYTES));
afterAll(() => buffer.free());

function expand(byte1: (index: number) => number, byte2: (index: number) => number): number {
  const keys = [byte1, byte2].map((byte) =>
    Secret.taking(Uint8Array.from({ length: XTS_KEY_BYTES }, (_, index) => byte(index))),
  ) as [Secret, Secret];
  const xts = expandXts(keys);
  for (const key of keys) key.wipe();
  return xts;
}

const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString('hex');
const sha256 = (bytes: Uint8Array) => new Bun.CryptoHasher('sha256').update(bytes).digest('hex');

// spec/test-vectors.md section 1; a sector number above 2^53 goes as a bigint.
test.each([
  [
    0,
    'e1239fff098de762b5a0a36567df4ff6',
    '4b7201dd62e250737c7302dd8668ece6',
    'acb33ed5938efb04f70925062b2194e3216f341db35d390486c921dee2e5bed7',
  ],
  [
    1,
    '7e58bcf3faf91e3d09bc32192d1447d7',
    'cc4331c18a956529c00b3254b881dec8',
    'a00b313d739738118c87b5d1dd167d42399e93ca7f6df6f6398a7607885d40c6',
  ],
  [
    2048,
    '3d1d56ea376a7bf32edb0b8e4c4f6d57',
    'd6346488071d9590e717b957ef70b1c6',
    'f73bc2e2449155f70e2eee1c82e89e05018187b8c4918ddcda07d6ba4d03123e',
  ],
  [
    0x1122334455667788n,
    '31d3e15dd9c225d0f46fb19099639d0c',
    '94a8b42c3d7107b6d13f55f901a64f90',
    'f56d0d7c7e3816645735b172eba8c707cd80f9ee267859b0c9bb96261aeee8d2',
  ],
  [
    2n ** 60n,
    '820ea0a3516332c2af76e0982bb2df2f',
    '1f13c1b31cec0e818be503f5fca8fad7',
    '871f2483ba8b36f4cca5732ece45115f0b4a33865189092677a5255d64247070',
  ],
])('sector %d is the one of the vectors', (sector, first, last, digest) => {
  const xts = expand(
    (index) => index,
    (index) => 0x80 + index,
  );
  const plain = Uint8Array.from({ length: SECTOR_BYTES }, (_, index) => 7 * index + 3);
  input.set(plain);
  expect(shim.ubiblk_xts_encrypt(xts, sector, 1, from, to)).toBe(0);
  expect(hex(output.subarray(0, 16))).toBe(first);
  expect(hex(output.subarray(-16))).toBe(last);
  expect(sha256(output)).toBe(digest);
  input.fill(0);
  expect(shim.ubiblk_xts_decrypt(xts, sector, 1, to, from)).toBe(0);
  expect(hex(input)).toBe(hex(plain));
  expect(shim.ubiblk_xts_encrypt(xts, sector, 1, from, from)).toBe(0);
  expect(hex(input)).toBe(hex(output));
  freeXts(xts);
});

test('equal halves work for those who insist', () => {
  const xts = expand(
    () => 7,
    () => 7,
  );
  input.fill(0);
  expect(shim.ubiblk_xts_encrypt(xts, 0, 1, from, to)).toBe(0);
  expect(hex(output.subarray(0, 16))).toBe('706cd42abb9c668c556220b558e41d37');
  expect(shim.ubiblk_xts_decrypt(xts, 0, 1, to, to)).toBe(0);
  expect(output.every((byte) => byte === 0)).toBe(true);
  freeXts(xts);
});

test('wiped keys are not expanded', () => {
  const keys = [new Secret(XTS_KEY_BYTES), new Secret(XTS_KEY_BYTES)] as const;
  keys[1].wipe();
  expect(() => expandXts(keys)).toThrow('a secret was used after it was wiped');
  keys[0].wipe();
});
