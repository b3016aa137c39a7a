/**
 * What sectors hold, as numbers: every write of a guest puts another number into each of its sectors,
 * and every sector of the source and of the unused disk has its own. In memory a sector's 128 words are
 * all that number, so that one that was put together of two is noticed.
 */

export const SECTOR = 512;
const SECTOR_WORDS = 128;

export const ZERO = 0;
/** Numbers below are guests'. */
const SOURCE = 0x10000000;
const JUNK = 0x20000000;
/** The source's last sector, where it ends within: so many bytes of its own, zeroes behind. */
const TAIL = 0x30000000;
/** Memory that nothing was read into. */
export const POISON = 0x40000000;
const MIXED = 0x50000000;
const TAIL_BYTE = 0xa5;

export const sourceValue = (sector: number) => SOURCE + sector;
export const junkValue = (sector: number) => JUNK + sector;
export const tailValue = (bytes: number) => TAIL + bytes;

/** Whether a guest wrote it; of zeroes nobody can tell. */
export const isGuestData = (value: number) => value > ZERO && value < SOURCE;

/** The words of a byte window, which begins at a multiple of four. */
export function wordsOf(bytes: Uint8Array): Int32Array {
  return new Int32Array(bytes.buffer, bytes.byteOffset, bytes.length >> 2);
}

/** Writes a value into sector `index` of some memory. */
export function store(words: Int32Array, index: number, value: number): void {
  const at = index * SECTOR_WORDS;
  if (value < TAIL || value >= POISON) {
    words.fill(value, at, at + SECTOR_WORDS);
    return;
  }
  const bytes = new Uint8Array(words.buffer, words.byteOffset + at * 4, SECTOR);
  bytes.fill(0);
  bytes.fill(TAIL_BYTE, 0, value - TAIL);
}

/** Reads the value of sector `index` of some memory. */
export function load(words: Int32Array, index: number): number {
  const at = index * SECTOR_WORDS;
  const value = words[at];
  let same = 1;
  while (same < SECTOR_WORDS && words[at + same] === value) same++;
  if (same === SECTOR_WORDS) return value;
  const bytes = new Uint8Array(words.buffer, words.byteOffset + at * 4, SECTOR);
  let tail = 0;
  while (bytes[tail] === TAIL_BYTE) tail++;
  return bytes.subarray(tail).every((byte) => byte === 0) ? TAIL + tail : MIXED;
}

export function describe(value: number): string {
  if (value === ZERO) return 'zeroes';
  if (value < SOURCE) return `guest data ${value}`;
  if (value < JUNK) return `source sector ${value - SOURCE}`;
  if (value < TAIL) return `what the unused disk had in sector ${value - JUNK}`;
  if (value < POISON) return `the last ${value - TAIL} bytes of the source`;
  return value === POISON ? 'memory that nothing was read into' : 'a mixture';
}
