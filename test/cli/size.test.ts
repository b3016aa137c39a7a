import { expect, test } from 'bun:test';
import { parseSize } from '../../src/commands/size.ts';
import { UsageError } from '../../src/errors.ts';

test.each([
  ['512', 512],
  ['1K', 1024],
  ['1m', 1024 ** 2],
  ['4G', 4 * 1024 ** 3],
  ['1T', 1024 ** 4],
  ['8191T', 8191 * 1024 ** 4],
])('%s is %i bytes', (text, bytes) => {
  expect(parseSize('--null', text)).toBe(bytes);
});

test.each(['', 'G', '1.5G', '-1', '1P', '1 G', '0x200', '1GiB', '1e3'])('%j is no size', (text) => {
  expect(() => parseSize('--null', text)).toThrow(
    new UsageError(`--null must be a size such as 512M or 4G, not '${text}'`),
  );
});

test.each(['0', '511', '513', '8192T', '99999999999999999999T'])('%s is refused', (text) => {
  expect(() => parseSize('--null', text)).toThrow(/must be a multiple of 512 bytes/);
});
