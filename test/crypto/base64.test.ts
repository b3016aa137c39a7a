import { expect, test } from 'bun:test';
import { decodeBase64, encodeBase64 } from '../../src/crypto/base64.ts';
import { Secret } from '../../src/crypto/secret.ts';

const secretOf = (text: string | number[]) => Secret.taking(Buffer.from(text as string));
const hexOf = (secret: Secret | undefined) => Buffer.from(secret?.reveal() ?? []).toString('hex');

test.each([
  ['', ''],
  ['QQ==', '41'],
  ['QUI=', '4142'],
  ['QUJD', '414243'],
  ['+/+/', 'fbffbf'],
  [
    'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=',
    Buffer.from([...Array(32).keys()]).toString('hex'),
  ],
])('%j is base64', (text, hex) => {
  const decoded = decodeBase64(secretOf(text));
  expect(hexOf(decoded)).toBe(hex);
  expect(decoded?.lengthBytes).toBe(hex.length / 2);
});

test.each([
  ...['QQ', 'QQ=', 'Q===', 'QR==', 'QUJ=', '-_-_', ' QUJD', 'QU JD', 'QUJD=', '=', '====', 'é==='],
  ...['QUJD\n', 'QQ==QQ==', 'QUI=QUJD', 'QUJ\0'],
])('%j is not base64', (text) => {
  expect(decodeBase64(secretOf(text))).toBeUndefined();
});

test('a part of a text is decoded, and nothing around it is looked at', () => {
  const text = secretOf('==QUI=QQ==');
  expect(hexOf(decodeBase64(text, 2, 4))).toBe('4142');
  expect(hexOf(decodeBase64(text, 6))).toBe('41');
  expect(hexOf(decodeBase64(text, 2, 0))).toBe('');
  expect(decodeBase64(text, 1, 4)).toBeUndefined();
});

test('what is encoded is what others encode, for every byte and every length', () => {
  const bytes = Buffer.from([...Array(256).keys()].flatMap((byte) => [byte, 255 - byte, 7 * byte]));
  for (let length = 0; length < 70; length++) {
    for (const start of [0, 1, 300, 600]) {
      const part = bytes.subarray(start, start + length);
      const text = encodeBase64(secretOf([...part]));
      expect(Buffer.from(text.reveal()).toString()).toBe(part.toString('base64'));
    }
  }
  const whole = encodeBase64(secretOf([...bytes]));
  expect(Buffer.from(whole.reveal()).toString()).toBe(bytes.toString('base64'));
});
