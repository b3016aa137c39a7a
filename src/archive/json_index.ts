/** `stripe-hashes.json`, the index of format 1 (spec/archive.md section 4). */
import { ArchiveError } from './archive_error.ts';
import { HASH_BYTES, MAX_STRIPES, parseHash, StripeIndex } from './stripe_index.ts';

/** `"<stripe>":"<hash>",` with a stripe's longest number. */
const MOST_PER_STRIPE = 10 + 2 * HASH_BYTES + 6;

/** The bytes of the object. A stripe of zeroes must have an object in this format. */
export function encodeJsonIndex(index: StripeIndex): Buffer {
  const text = Buffer.alloc(2 + index.listed * MOST_PER_STRIPE);
  let at = text.write('{');
  for (let stripe = 0; stripe < index.stripes; stripe++) {
    const object = index.objectOf(stripe);
    if (object === null) continue;
    const hash = Buffer.from(index.hashOf(object)).toString('hex');
    at += text.write(`${at > 1 ? ',' : ''}"${stripe}":"${hash}"`, at, 'latin1');
  }
  at += text.write('}', at);
  return text.subarray(0, at);
}

/** @throws ArchiveError where it is anything else */
export function parseJsonIndex(bytes: Uint8Array): StripeIndex {
  let map: unknown;
  try {
    map = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    throw new ArchiveError('is no JSON text: it is damaged');
  }
  if (typeof map !== 'object' || map === null || Array.isArray(map)) {
    throw new ArchiveError('is no JSON object: it is damaged, or not the index of an archive');
  }
  let stripes = 0;
  const hashes = map as Record<string, unknown>;
  for (const key in hashes) stripes = Math.max(stripes, parseStripe(key) + 1);
  const index = new StripeIndex(stripes);
  for (const key in hashes) {
    const hash = parseHash(hashes[key]);
    if (!hash) {
      throw new ArchiveError(
        `names for stripe ${key} something else than 64 lower-case hexadecimal digits: it is damaged`,
      );
    }
    index.add(Number(key), hash);
  }
  return index;
}

function parseStripe(key: string): number {
  const stripe = Number(key);
  if (!/^(0|[1-9]\d*)$/.test(key) || stripe >= MAX_STRIPES) {
    throw new ArchiveError(
      `has a key that is no number of a stripe below ${MAX_STRIPES}: it is damaged`,
    );
  }
  return stripe;
}
