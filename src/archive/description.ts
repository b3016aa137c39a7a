/**
 * `metadata.json`: what an archive's objects are, and its wrapped keys (spec/archive.md sections 4 and 5).
 * Both formats are told apart by what is in it.
 */
import { createHash, timingSafeEqual } from 'node:crypto';
import { failed } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import type { ArchiveKek } from '../config/device_config.ts';
import { GCM_NONCE_BYTES, GCM_TAG_BYTES, gcmUnwrap, gcmWrap } from '../crypto/gcm.ts';
import { randomSecret } from '../crypto/random.ts';
import { Secret } from '../crypto/secret.ts';
import { XTS_KEY_BYTES, type XtsKeys } from '../crypto/xts.ts';
import { ArchiveError } from './archive_error.ts';
import { type Compression, MAX_ZSTD_LEVEL } from './compression.ts';

export const DESCRIPTION_NAME = 'metadata.json';

export type ArchiveFormat = 1 | 2;

/** What an archive is made as. */
export interface Shape {
  format: ArchiveFormat;
  stripeSectors: number;
  compression: Compression;
  /** Of the disk; undefined in archives of others, which don't record it. */
  diskBytes: number | undefined;
}

export interface Description extends Shape {
  /** Of its objects; null where they are plain. */
  keys: XtsKeys | null;
  /** Of its index; null in format 1. */
  hmacKey: Secret | null;
  /** SHA-256 of the indexes that go with it, as hexadecimal digits; null where it doesn't say. */
  indexDigests: string[] | null;
  /** As JSON, without what depends on the index. */
  text: string;
}

/** HMAC-SHA-256. @throws Error where the library fails */
export function hmacSha256(key: Secret, ...parts: Uint8Array[]): Buffer {
  openLibrary();
  const data = Buffer.concat(parts);
  const tag = Buffer.alloc(TAG_BYTES);
  const filled = data.length > 0 ? data : Buffer.alloc(1);
  const result = shim.ubiblk_hmac_sha256(key.address, key.lengthBytes, filled, data.length, tag);
  if (result < 0) throw failed('HMAC', result);
  return tag;
}

export const TAG_BYTES = 32;
const HMAC_KEY_BYTES = 32;
const WRAP_AAD = Buffer.from('ubiblk_archive');
const METADATA_DOMAIN = Buffer.from('ARCHIVE_METADATA_HMAC_V1');
/** Ours: older readers ignore the two fields that it is for. */
const SIZE_DOMAIN = Buffer.from('UBIBLK_ARCHIVE_DISK_SIZE_V1');
const VERSION = 1;
const MAX_STRIPE_SECTORS = 1 << 17;

/**
 * Describes a new archive, with random keys that the caller wipes by `wipeDescription`.
 * @param encrypted whether its objects are to be
 */
export function newDescription(shape: Shape, encrypted: boolean, kek: ArchiveKek): Description {
  const keys = encrypted
    ? ([randomSecret(XTS_KEY_BYTES), randomSecret(XTS_KEY_BYTES)] as const)
    : null;
  const hmacKey = shape.format === 2 ? randomSecret(HMAC_KEY_BYTES) : null;
  const fields = hmacKey
    ? fieldsOfFormat2(shape, keys, hmacKey, kek)
    : fieldsOfFormat1(shape, keys, kek);
  return { ...shape, keys, hmacKey, indexDigests: null, text: JSON.stringify(fields) };
}

/**
 * The text that is stored. Format 1 authenticates nothing: so that damage shows, it gets the digests of
 * the indexes that it goes with, of the old and the new one while one is replaced, and one of itself.
 * Readers of others ignore both.
 */
export function completeText({ format, text }: Description, indexDigests: string[]): string {
  if (format === 2) return text;
  return withCheck({ ...JSON.parse(text), index_sha256: indexDigests });
}

export function sha256Hex(bytes: Uint8Array | string): string {
  return createHash('sha256').update(bytes).digest('hex');
}

function withCheck(fields: Record<string, unknown>): string {
  return JSON.stringify({ ...fields, check: sha256Hex(JSON.stringify(fields)) });
}

export function wipeDescription({ keys, hmacKey }: Pick<Description, 'keys' | 'hmacKey'>): void {
  for (const secret of [...(keys ?? []), hmacKey]) secret?.wipe();
}

/**
 * Reads a description and unwraps its keys, for the caller to wipe.
 * @throws ArchiveError where it is damaged, of another version, or wrapped with another KEK
 */
export function parseDescription(bytes: Uint8Array, kek: ArchiveKek): Description {
  const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('utf8');
  let fields: unknown;
  try {
    fields = JSON.parse(text);
  } catch {
    throw new ArchiveError('is no JSON text: it is damaged');
  }
  if (typeof fields !== 'object' || fields === null || Array.isArray(fields)) {
    throw new ArchiveError('is no JSON object: it is damaged, or not that of an archive');
  }
  const known = fields as Record<string, unknown>;
  if (known.format_version !== VERSION) {
    throw new ArchiveError(
      `has format_version ${JSON.stringify(known.format_version)}; this version of ubiblk reads ${VERSION}`,
    );
  }
  const { check, index_sha256: digests, ...rest } = known;
  if (check !== undefined && withCheck(without(known, 'check')) !== text) {
    throw new ArchiveError("was changed, or is damaged: its 'check' does not match");
  }
  const read = 'hmac_key' in known ? readFormat2(known, kek) : readFormat1(known, kek);
  return { ...read, indexDigests: digestsOf(digests), text: JSON.stringify(rest) };
}

function without(fields: Record<string, unknown>, key: string): Record<string, unknown> {
  const { [key]: _, ...rest } = fields;
  return rest;
}

function digestsOf(value: unknown): string[] | null {
  if (value === undefined) return null;
  if (Array.isArray(value) && value.every((each) => typeof each === 'string')) return value;
  throw new ArchiveError("has an 'index_sha256' that is no list of texts: it is damaged");
}

function fieldsOfFormat1(shape: Shape, keys: XtsKeys | null, kek: ArchiveKek) {
  return {
    format_version: VERSION,
    stripe_sector_count: shape.stripeSectors,
    encryption_key: keys?.map((key) => base64(wrapFixed(key, kek))) ?? null,
    compression: shape.compression.method,
    disk_size_bytes: shape.diskBytes,
  };
}

function fieldsOfFormat2(shape: Shape, keys: XtsKeys | null, hmacKey: Secret, kek: ArchiveKek) {
  const wrappedKeys = keys && wrapRandom(joined(keys), kek);
  const { compression } = shape;
  return {
    format_version: VERSION,
    stripe_sector_count: shape.stripeSectors,
    encryption_key: wrappedKeys && base64(wrappedKeys),
    compression: compression.method === 'zstd' ? { zstd: { level: compression.level } } : 'none',
    hmac_key: base64(wrapRandom(hmacKey.copy(), kek)),
    metadata_hmac: base64(hmacSha256(hmacKey, metadataHmacInput(shape, wrappedKeys))),
    disk_size_bytes: shape.diskBytes,
    disk_size_hmac:
      shape.diskBytes === undefined
        ? undefined
        : base64(hmacSha256(hmacKey, SIZE_DOMAIN, u64(shape.diskBytes))),
  };
}

/** What the HMAC of a description is of. @param wrappedKeys as stored, null where there are none */
export function metadataHmacInput(
  { stripeSectors, compression }: Pick<Shape, 'stripeSectors' | 'compression'>,
  wrappedKeys: Uint8Array | null,
): Buffer {
  const level = Buffer.alloc(4);
  if (compression.method === 'zstd') level.writeInt32LE(compression.level);
  return Buffer.concat([
    METADATA_DOMAIN,
    u32(VERSION),
    u64(stripeSectors),
    wrappedKeys
      ? Buffer.concat([Buffer.of(1), u64(wrappedKeys.length), wrappedKeys])
      : Buffer.of(0),
    compression.method === 'zstd' ? Buffer.concat([Buffer.of(2), level]) : Buffer.of(0),
  ]);
}

/** What both formats have in their own way. */
type Read = Omit<Description, 'text' | 'indexDigests'>;

function readFormat1(fields: Record<string, unknown>, kek: ArchiveKek): Read {
  const { encryption_key: wrapped = null, compression = 'none' } = fields;
  if (compression !== 'none' && compression !== 'snappy') {
    throw new ArchiveError(`has an unknown compression, ${JSON.stringify(compression)}`);
  }
  const shape = {
    format: 1 as const,
    stripeSectors: stripeSectorsOf(fields),
    compression: { method: compression } as Compression,
    diskBytes: diskBytesOf(fields),
    hmacKey: null,
  };
  if (wrapped === null) return { ...shape, keys: null };
  if (!Array.isArray(wrapped) || wrapped.length !== 2) {
    throw new ArchiveError("has an 'encryption_key' that is no list of two: it is damaged");
  }
  const unwrap = (i: number) =>
    unwrapFixed(bytesOf(wrapped[i], `encryption_key[${i}]`), kek, XTS_KEY_BYTES);
  const first = unwrap(0);
  try {
    return { ...shape, keys: [first, unwrap(1)] };
  } catch (error) {
    first.wipe();
    throw error;
  }
}

function readFormat2(fields: Record<string, unknown>, kek: ArchiveKek): Read {
  const stored = fields.encryption_key ?? null;
  const wrappedKeys = stored === null ? null : bytesOf(stored, 'encryption_key');
  const hmacKey = unwrapRandom(bytesOf(fields.hmac_key, 'hmac_key'), kek, 'hmac_key');
  try {
    if (hmacKey.lengthBytes !== HMAC_KEY_BYTES) throw wrongLength('hmac_key');
    const shape = {
      stripeSectors: stripeSectorsOf(fields),
      compression: compressionOfFormat2(fields.compression),
    };
    const expected = hmacSha256(hmacKey, metadataHmacInput(shape, wrappedKeys));
    checkTag(expected, fields.metadata_hmac, 'metadata_hmac');
    const diskBytes = diskBytesOf(fields);
    if (diskBytes !== undefined || fields.disk_size_hmac !== undefined) {
      const tag = hmacSha256(hmacKey, SIZE_DOMAIN, u64(diskBytes ?? 0));
      checkTag(tag, fields.disk_size_hmac, 'disk_size_hmac');
    }
    const keys = wrappedKeys && splitKeys(unwrapRandom(wrappedKeys, kek, 'encryption_key'));
    return { format: 2, ...shape, diskBytes, keys, hmacKey };
  } catch (error) {
    hmacKey.wipe();
    throw error;
  }
}

function checkTag(expected: Buffer, text: unknown, field: string): void {
  const tag = bytesOf(text, field);
  if (tag.length !== TAG_BYTES || !timingSafeEqual(tag, expected)) {
    throw new ArchiveError(`was changed: its '${field}' does not match`);
  }
}

function compressionOfFormat2(value: unknown): Compression {
  if (value === 'none') return { method: 'none' };
  const level = (value as { zstd?: { level?: unknown } } | null)?.zstd?.level;
  if (typeof level !== 'number' || (level | 0) !== level || level > MAX_ZSTD_LEVEL) {
    throw new ArchiveError(`has an unknown compression, ${JSON.stringify(value)}`);
  }
  return { method: 'zstd', level };
}

function stripeSectorsOf({ stripe_sector_count: value }: Record<string, unknown>): number {
  const sectors = Number.isSafeInteger(value) ? (value as number) : 0;
  if (sectors < 1 || sectors > MAX_STRIPE_SECTORS) {
    throw new ArchiveError(
      `gives ${JSON.stringify(value)} as 'stripe_sector_count', but 1 to ${MAX_STRIPE_SECTORS} are possible`,
    );
  }
  return sectors;
}

function diskBytesOf({ disk_size_bytes: value }: Record<string, unknown>): number | undefined {
  if (value === undefined) return undefined;
  if (!Number.isSafeInteger(value) || (value as number) < 0 || (value as number) % 512 !== 0) {
    throw new ArchiveError(`gives ${JSON.stringify(value)} as 'disk_size_bytes': it is damaged`);
  }
  return value as number;
}

/** As the older generation wraps: with the one nonce and additional data of the KEK. */
function wrapFixed(plain: Secret, kek: ArchiveKek): Uint8Array {
  if (kek.method === 'none') return plain.reveal();
  const { key, initVector, authData } = kek;
  return gcmWrap({ key, nonce: initVector.reveal(), aad: authData.reveal() }, plain);
}

function unwrapFixed(wrapped: Buffer, kek: ArchiveKek, lengthBytes: number): Secret {
  const field = 'encryption_key';
  if (kek.method === 'none') return plainSecret(wrapped, field, lengthBytes);
  const { key, initVector, authData } = kek;
  const gcm = { key, nonce: initVector.reveal(), aad: authData.reveal() };
  const plain = wrapped.length < GCM_TAG_BYTES ? null : gcmUnwrap(gcm, wrapped);
  return checkedSecret(plain, field, lengthBytes);
}

/** As the newer generation wraps: nonce, ciphertext, tag. Takes over the secret. */
function wrapRandom(plain: Secret, kek: ArchiveKek): Uint8Array {
  try {
    if (kek.method === 'none') return Buffer.from(plain.reveal());
    const nonce = crypto.getRandomValues(new Uint8Array(GCM_NONCE_BYTES));
    return Buffer.concat([nonce, gcmWrap({ key: kek.key, nonce, aad: WRAP_AAD }, plain)]);
  } finally {
    plain.wipe();
  }
}

function unwrapRandom(wrapped: Buffer, kek: ArchiveKek, field: string): Secret {
  if (kek.method === 'none') return Secret.taking(Buffer.from(wrapped));
  if (wrapped.length < GCM_NONCE_BYTES + GCM_TAG_BYTES) throw wrongLength(field);
  const nonce = wrapped.subarray(0, GCM_NONCE_BYTES);
  const gcm = { key: kek.key, nonce, aad: WRAP_AAD };
  return checkedSecret(gcmUnwrap(gcm, wrapped.subarray(GCM_NONCE_BYTES)), field);
}

function plainSecret(bytes: Buffer, field: string, lengthBytes: number): Secret {
  return checkedSecret(Secret.taking(bytes), field, lengthBytes);
}

function checkedSecret(plain: Secret | null, field: string, lengthBytes?: number): Secret {
  if (!plain) {
    throw new ArchiveError(
      `has an '${field}' that was not wrapped with the 'archive_kek' of the configuration, or is damaged`,
    );
  }
  if (lengthBytes === undefined || plain.lengthBytes === lengthBytes) return plain;
  plain.wipe();
  throw wrongLength(field);
}

function wrongLength(field: string): ArchiveError {
  return new ArchiveError(
    `has an '${field}' of a wrong length: it is damaged, or wrapped, and no 'archive_kek' is configured`,
  );
}

function joined([data, tweak]: XtsKeys): Secret {
  const both = new Secret(2 * XTS_KEY_BYTES);
  both.reveal().set(data.reveal());
  both.reveal().set(tweak.reveal(), XTS_KEY_BYTES);
  return both;
}

function splitKeys(both: Secret): XtsKeys {
  try {
    if (both.lengthBytes !== 2 * XTS_KEY_BYTES) throw wrongLength('encryption_key');
    const half = (from: number) => {
      const key = new Secret(XTS_KEY_BYTES);
      key.reveal().set(both.reveal().subarray(from, from + XTS_KEY_BYTES));
      return key;
    };
    return [half(0), half(XTS_KEY_BYTES)];
  } finally {
    both.wipe();
  }
}

function bytesOf(value: unknown, field: string): Buffer {
  const bytes = typeof value === 'string' ? Buffer.from(value, 'base64') : null;
  if (!bytes || bytes.toString('base64') !== value) {
    throw new ArchiveError(`has an '${field}' that is no base64 text: it is damaged`);
  }
  return bytes;
}

function base64(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString('base64');
}

export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  return bytes;
}

export function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64LE(BigInt(value));
  return bytes;
}
