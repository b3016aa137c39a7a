/** How objects are compressed, by the names that descriptions of archives have for it. */
export type Compression =
  | { method: 'none' }
  | { method: 'snappy' }
  | { method: 'zstd'; level: number };

export const MIN_ZSTD_LEVEL = 1;
export const MAX_ZSTD_LEVEL = 22;

/** In words: `zstd, level 3`. */
export function describeCompression(compression: Compression): string {
  const { method } = compression;
  return method === 'zstd' ? `zstd, level ${compression.level}` : method;
}

export function sameCompression(a: Compression, b: Compression): boolean {
  return describeCompression(a) === describeCompression(b);
}
