import { encodeBase64 } from '../crypto/base64.ts';
import { Secret } from '../crypto/secret.ts';

/**
 * One text of plain parts and secrets, these in base64: for whoever writes it out, and then wipes it.
 * No secret gets into a JavaScript string on the way.
 */
export function secretText(parts: readonly (string | Secret)[]): Secret {
  const encoded = parts.map((part) =>
    typeof part === 'string' ? Secret.taking(Buffer.from(part)) : encodeBase64(part),
  );
  const text = new Secret(encoded.reduce((sum, { lengthBytes }) => sum + lengthBytes, 0));
  let at = 0;
  for (const part of encoded) {
    text.reveal().set(part.reveal(), at);
    at += part.lengthBytes;
    part.wipe();
  }
  return text;
}
