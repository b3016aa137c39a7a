/** How long to wait after so many failures in a row: each time twice as long, up to a limit. */
export function backoffMs(failures: number, firstMs: number, lastMs: number): number {
  return Math.min(firstMs * 2 ** Math.min(failures - 1, 20), lastMs);
}
