/** `stripe-mapping`, the index of format 2 (spec/archive.md section 5): CBOR, authenticated. */
import { timingSafeEqual } from 'node:crypto';
import { openLibrary, shim } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import type { Secret } from '../crypto/secret.ts';
import { cipherXts, SECTOR_BYTES } from '../crypto/xts.ts';
import { ArchiveError } from './archive_error.ts';
import { CborReader, CborWriter } from './cbor.ts';
import { hmacSha256, TAG_BYTES, u32, u64 } from './description.ts';
import { HASH_BYTES, MAX_STRIPES, StripeIndex } from './stripe_index.ts';

const DOMAIN = Buffer.from('ubiblk-archive-stripe-mapping');
const VERSION = 1;
/** Where the sectors of the index are numbered from: no disk has so many. */
const FIRST_SECTOR = 2 ** 60;
/** A key of at most 5 bytes, `{"Some": hash}` or `"Zero"`. */
const MOST_PER_STRIPE = 5 + 8 + HASH_BYTES;
/** Heads, keys and everything else that isn't the ciphertext. */
const REST_BYTES = 256;

/** The bytes of the object. @param xts of the archive's keys, 0 where it is plain */
export function encodeMapping(index: StripeIndex, hmacKey: Secret, xts: number): Buffer {
  const { padded, plainLength } = encodeInner(index);
  if (xts !== 0) cipher(padded, xts, 'encrypt');
  const outer = new CborWriter(2 * padded.length + REST_BYTES);
  outer.map(5);
  outer.text('domain');
  outer.numbers(DOMAIN);
  outer.text('version');
  outer.unsigned(VERSION);
  outer.text('ciphertext');
  outer.numbers(padded);
  outer.text('plaintext_len');
  outer.unsigned(plainLength);
  outer.text('hmac_tag');
  outer.byteString(tagOf(hmacKey, plainLength, padded));
  return outer.bytes;
}

/**
 * Checks and reads an index.
 * @throws ArchiveError where it is damaged, was changed, or belongs to another description
 */
export function parseMapping(bytes: Uint8Array, hmacKey: Secret, xts: number): StripeIndex {
  const { version, domain, ciphertext, plainLength, tag } = parseOuter(bytes);
  if (version !== VERSION) {
    throw new ArchiveError(`has version ${version}; this version of ubiblk reads ${VERSION}`);
  }
  if (Buffer.compare(domain, DOMAIN) !== 0) {
    throw new ArchiveError("has another 'domain': it is not the index of an archive");
  }
  if (ciphertext.length % SECTOR_BYTES !== 0) {
    throw new ArchiveError('is no whole number of sectors: it is damaged');
  }
  const expected = tagOf(hmacKey, plainLength, ciphertext);
  if (tag.length !== TAG_BYTES || !timingSafeEqual(tag, expected)) {
    throw new ArchiveError(
      "was changed, or belongs to another 'metadata.json': its HMAC does not match",
    );
  }
  if (xts !== 0) cipher(ciphertext, xts, 'decrypt');
  if (plainLength > ciphertext.length) {
    throw new ArchiveError('is shorter than it says: it is damaged');
  }
  return parseInner(ciphertext.subarray(0, plainLength));
}

function tagOf(hmacKey: Secret, plainLength: number, padded: Uint8Array): Buffer {
  return hmacSha256(hmacKey, DOMAIN, u32(VERSION), u64(plainLength), padded);
}

function encodeInner(index: StripeIndex): { padded: Buffer; plainLength: number } {
  const inner = new CborWriter(9 + index.listed * MOST_PER_STRIPE + SECTOR_BYTES);
  inner.map(index.listed);
  for (let stripe = 0; stripe < index.stripes; stripe++) {
    if (!index.has(stripe)) continue;
    inner.unsigned(stripe);
    const object = index.objectOf(stripe);
    if (object === null) {
      inner.text('Zero');
    } else {
      inner.map(1);
      inner.text('Some');
      inner.byteString(index.hashOf(object));
    }
  }
  const plainLength = inner.bytes.length;
  inner.zeroes(-plainLength & (SECTOR_BYTES - 1));
  return { padded: inner.bytes, plainLength };
}

function parseOuter(bytes: Uint8Array) {
  const reader = new CborReader(bytes);
  const found = new Map<string, number | Uint8Array>();
  for (let left = reader.map(); left > 0; left--) {
    const key = reader.text();
    if (found.has(key)) throw new ArchiveError(`has '${key}' twice: it is damaged`);
    found.set(key, readField(reader, key));
  }
  if (!reader.ended) throw new ArchiveError('has something behind its end: it is damaged');
  const field = (key: string) => {
    const value = found.get(key);
    if (value === undefined) throw new ArchiveError(`has no '${key}': it is damaged`);
    return value;
  };
  return {
    version: field('version') as number,
    domain: field('domain') as Uint8Array,
    ciphertext: field('ciphertext') as Uint8Array,
    plainLength: field('plaintext_len') as number,
    tag: field('hmac_tag') as Uint8Array,
  };
}

function readField(reader: CborReader, key: string): number | Uint8Array {
  switch (key) {
    case 'version':
    case 'plaintext_len':
      return reader.unsigned();
    case 'domain':
    case 'hmac_tag':
      return reader.bytesOrNumbers();
    case 'ciphertext':
      // A copy: it is decrypted in place.
      return Uint8Array.from(reader.bytesOrNumbers());
    default:
      throw new ArchiveError(`has an unknown '${key}': it is damaged, or of a newer version`);
  }
}

function parseInner(bytes: Uint8Array): StripeIndex {
  const stripes = highestStripe(bytes) + 1;
  const index = new StripeIndex(stripes);
  readInner(bytes, (stripe, hash) => {
    if (hash) index.add(stripe, hash);
    else index.addZero(stripe);
  });
  return index;
}

function highestStripe(bytes: Uint8Array): number {
  let highest = -1;
  readInner(bytes, (stripe) => {
    highest = Math.max(highest, stripe);
  });
  return highest;
}

function readInner(
  bytes: Uint8Array,
  take: (stripe: number, hash: Uint8Array | null) => void,
): void {
  const reader = new CborReader(bytes);
  for (let left = reader.map(); left > 0; left--) {
    const stripe = reader.unsigned();
    if (stripe >= MAX_STRIPES) throw new ArchiveError(`names a stripe above ${MAX_STRIPES - 1}`);
    take(stripe, readPlace(reader, stripe));
  }
  if (!reader.ended) throw new ArchiveError('has something behind its stripes: it is damaged');
}

function readPlace(reader: CborReader, stripe: number): Uint8Array | null {
  if (reader.isText) {
    if (reader.text() === 'Zero') return null;
  } else if (reader.map() === 1 && reader.text() === 'Some') {
    const hash = reader.byteString();
    if (hash.length === HASH_BYTES) return hash;
  }
  throw new ArchiveError(`has neither 'Zero' nor a hash for stripe ${stripe}: it is damaged`);
}

function cipher(bytes: Uint8Array, xts: number, way: 'encrypt' | 'decrypt'): void {
  if (bytes.length === 0) return;
  openLibrary();
  const memory = new NativeBuffer(bytes.length);
  const window = new Uint8Array(memory.window());
  window.set(bytes);
  const work = way === 'encrypt' ? shim.ubiblk_xts_encrypt : shim.ubiblk_xts_decrypt;
  const { address } = memory;
  try {
    cipherXts(work, xts, FIRST_SECTOR * SECTOR_BYTES, bytes.length, address, address);
    bytes.set(window);
  } finally {
    memory.free();
  }
}
