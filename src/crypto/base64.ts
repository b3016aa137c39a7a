import { openLibrary, shim } from '../../ffi/library.ts';
import { Secret } from './secret.ts';

const alphabet = new TextEncoder().encode(
  'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/',
);
const padding = '='.charCodeAt(0);

/**
 * Decodes `length` bytes of `text` from byte `start` on: standard base64 with its padding, unused
 * bits zero, and nothing else.
 * @returns a secret for the caller to wipe, or undefined where the text is anything else
 */
export function decodeBase64(
  text: Secret,
  start = 0,
  length = text.lengthBytes - start,
): Secret | undefined {
  if (length % 4 !== 0) return undefined;
  openLibrary();
  const end = text.reveal().subarray(start + Math.max(length - 2, 0), start + length);
  const bytes = new Secret((length / 4) * 3 - end.filter((byte) => byte === padding).length);
  if (shim.ubiblk_base64_decode(text.address + start, length, bytes.address) >= 0) return bytes;
  bytes.wipe();
  return undefined;
}

/** The bytes in standard base64 with padding, for the caller to wipe. */
export function encodeBase64(bytes: Secret): Secret {
  const from = bytes.reveal();
  const text = new Secret(Math.ceil(from.length / 3) * 4);
  const to = text.reveal();
  for (let at = 0, out = 0; at < from.length; at += 3, out += 4) {
    const group = (from[at] << 16) | (from[at + 1] << 8) | from[at + 2];
    to[out] = alphabet[group >> 18];
    to[out + 1] = alphabet[(group >> 12) & 63];
    to[out + 2] = at + 1 < from.length ? alphabet[(group >> 6) & 63] : padding;
    to[out + 3] = at + 2 < from.length ? alphabet[group & 63] : padding;
  }
  return text;
}
