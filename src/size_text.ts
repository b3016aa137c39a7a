/** `4 KiB`, `1.5 GiB`: in the largest unit that is not below one. */
export function sizeText(bytes: number | null): string {
  if (bytes === null) return 'any size';
  const units = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let unit = 0;
  let value = bytes;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${Number.isInteger(value) ? value : value.toFixed(1)} ${units[unit]}`;
}
