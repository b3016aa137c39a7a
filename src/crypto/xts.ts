import { failed } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import type { Secret } from './secret.ts';

/** The unit of encryption, in bytes; each has a number of its own in the tweak. */
export const SECTOR_BYTES = 512;
/** Bytes of each of the two keys. */
export const XTS_KEY_BYTES = 32;

/** The two keys of a disk: of the data, and of the tweak. */
export type XtsKeys = readonly [Secret, Secret];

/**
 * Expands the keys of a disk, once for the process. Any number of threads may use what comes out, with
 * the functions `ubiblk_xts_*` of the shim; c/xts.h has their contract.
 * @returns a handle, for `freeXts` when no thread uses it any more; the keys may be wiped at once
 * @throws Error where the cipher library fails
 */
export function expandXts([data, tweak]: XtsKeys): number {
  openLibrary();
  const handle = shim.ubiblk_xts_new(data.address, tweak.address) as number;
  if (handle < 0) throw failed('AES-XTS', handle);
  return handle;
}

/**
 * Ciphers a range of a disk in native memory.
 * @param work `ubiblk_xts_encrypt` or `ubiblk_xts_decrypt`
 * @param offset of its first sector on the disk, in bytes like `length`
 * @throws Error where the cipher library fails
 */
export function cipherXts(
  work: typeof shim.ubiblk_xts_encrypt,
  handle: number,
  offset: number,
  length: number,
  from: number,
  to: number,
): void {
  const result = work(handle, offset / SECTOR_BYTES, length / SECTOR_BYTES, from, to);
  if (result < 0) throw failed('AES-XTS', result);
}

/** Wipes what `expandXts` made; does nothing for 0. */
export function freeXts(handle: number): void {
  if (handle !== 0) shim.ubiblk_xts_free(handle);
}
