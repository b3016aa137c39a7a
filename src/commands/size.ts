import { UsageError } from '../errors.ts';

const sectorBytes = 512;
const suffixes = ['', 'K', 'M', 'G', 'T'];

/**
 * A size in bytes from a command line: digits and, optionally, K, M, G or T (powers of 1024).
 * @throws UsageError unless it is a positive multiple of 512 that a number holds exactly
 */
export function parseSize(option: string, text: string): number {
  const [, digits, suffix] = /^(\d+)([KMGT]?)$/i.exec(text) ?? [];
  if (digits === undefined) {
    throw new UsageError(`${option} must be a size such as 512M or 4G, not '${text}'`);
  }
  const bytes = Number(digits) * 1024 ** suffixes.indexOf(suffix.toUpperCase());
  if (bytes === 0 || bytes % sectorBytes !== 0 || !Number.isSafeInteger(bytes)) {
    throw new UsageError(
      `${option} must be a multiple of ${sectorBytes} bytes, more than 0 and less than 8192T, ` +
        `not '${text}'`,
    );
  }
  return bytes;
}

/** A size for eyes: in the largest unit of 1024 that leaves at least 1, with up to one decimal. */
export function sizeText(bytes: number): string {
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < suffixes.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${Number.isInteger(value) ? value : value.toFixed(1)}${suffixes[unit] || 'B'}`;
}
