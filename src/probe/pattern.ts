/** A pattern that differs in every word of a disk and from run to run. */

/**
 * Fills a buffer with the pattern of the place `offset`.
 * @param offset bytes into the disk, a multiple of 4
 * @param seed of this run
 */
export function fillPattern(words: Uint32Array, offset: number, seed: number): void {
  const first = offset / 4;
  const salt = seed ^ Math.imul(Math.floor(first / 2 ** 32), 0x85ebca6b);
  for (let i = 0; i < words.length; i++) words[i] = word(first + i, salt);
}

/**
 * Compares a buffer with the pattern of the place `offset`.
 * @returns the first byte that differs, as bytes into the buffer; -1 where none does
 */
export function findDifference(words: Uint32Array, offset: number, seed: number): number {
  const first = offset / 4;
  const salt = seed ^ Math.imul(Math.floor(first / 2 ** 32), 0x85ebca6b);
  for (let i = 0; i < words.length; i++) {
    const different = words[i] ^ word(first + i, salt);
    if (different !== 0) return i * 4 + Math.floor(Math.log2((different & -different) >>> 0) / 8);
  }
  return -1;
}

function word(index: number, salt: number): number {
  const mixed = Math.imul((index | 0) ^ salt, 0x9e3779b1);
  return (mixed ^ (mixed >>> 15)) >>> 0;
}
