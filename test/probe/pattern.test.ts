/** The probe's pattern: what it can't tell apart, it can't find. */
import { expect, test } from 'bun:test';
import { fillPattern, findDifference } from '../../src/probe/pattern.ts';

function filled(length: number, offset: number, seed: number): Uint32Array {
  const words = new Uint32Array(length / 4);
  fillPattern(words, offset, seed);
  return words;
}

test('a pattern is found to be its own', () => {
  for (const offset of [0, 4096, 2 ** 34, 2 ** 44 - 4096]) {
    expect(findDifference(filled(4096, offset, 7), offset, 7)).toBe(-1);
  }
});

test('every changed byte is found, and where it is', () => {
  for (const at of [0, 1, 2, 3, 511, 512, 2046, 4095]) {
    for (const change of [0x01, 0x80, 0xff]) {
      const words = filled(4096, 8192, 7);
      new Uint8Array(words.buffer)[at] ^= change;
      expect(findDifference(words, 8192, 7)).toBe(at);
    }
  }
});

test('data of another place or another run differs', () => {
  for (const other of [0, 512, 2 ** 34 + 4096]) {
    expect(findDifference(filled(4096, other, 7), 4096, 7)).toBeGreaterThanOrEqual(0);
  }
  expect(findDifference(filled(4096, 4096, 8), 4096, 7)).toBeGreaterThanOrEqual(0);
});
