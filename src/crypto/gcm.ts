import { EBADMSG, failed } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { Secret } from './secret.ts';

export const GCM_KEY_BYTES = 32;
export const GCM_NONCE_BYTES = 12;
export const GCM_TAG_BYTES = 16;

/** A key of AES-256-GCM with the nonce and the additional data that go with it. */
export interface GcmKey {
  key: Secret;
  /** `GCM_NONCE_BYTES` of them. */
  nonce: Uint8Array;
  aad: Uint8Array;
}

/** Bun's FFI takes no empty array for a pointer. */
const nonEmpty = (bytes: Uint8Array) => (bytes.length > 0 ? bytes : new Uint8Array(1));

/** Encrypts a secret; the result is `GCM_TAG_BYTES` longer. @throws Error where the library fails */
export function gcmWrap({ key, nonce, aad }: GcmKey, plain: Secret): Uint8Array {
  openLibrary();
  const wrapped = new Uint8Array(plain.lengthBytes + GCM_TAG_BYTES);
  const result = shim.ubiblk_gcm_wrap(
    key.address,
    nonce,
    nonEmpty(aad),
    aad.length,
    plain.address,
    plain.lengthBytes,
    wrapped,
  );
  if (result < 0) throw failed('AES-GCM', result);
  return wrapped;
}

/**
 * Decrypts what `gcmWrap` made, at least `GCM_TAG_BYTES` long.
 * @returns null where key, nonce or additional data are other ones, or the bytes are damaged
 * @throws Error where the library fails
 */
export function gcmUnwrap({ key, nonce, aad }: GcmKey, wrapped: Uint8Array): Secret | null {
  openLibrary();
  const plain = new Secret(wrapped.length - GCM_TAG_BYTES);
  const result = shim.ubiblk_gcm_unwrap(
    key.address,
    nonce,
    nonEmpty(aad),
    aad.length,
    wrapped,
    wrapped.length,
    plain.address,
  );
  if (result === 0) return plain;
  plain.wipe();
  if (result === -EBADMSG) return null;
  throw failed('AES-GCM', result);
}
