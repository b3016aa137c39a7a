/**
 * The bytes of a metadata file (docs/metadata.md): sector 0 describes the map, one byte for each stripe
 * follows. Version 1.0 packs 512 of them into a sector, version 2.0 packs 508 and ends every sector with
 * the CRC-32 of the rest. All integers are little-endian. Nothing here reads or writes a file.
 */
import { FETCHED, HAS_SOURCE, WRITTEN } from './shared_state.ts';

export type MetadataVersion = 1 | 2;

/** What is wrong with a metadata file: the end of a sentence that begins with the file's name. */
export class MetadataError extends Error {
  override name = 'MetadataError';
}

/** The unit of the formats, whatever the blocks of the storage are. */
export const METADATA_SECTOR = 512;
/** Stripes of 32 KiB to 32 MiB are made; more is read. */
export const MIN_SHIFT = 6;
export const MAX_SHIFT = 16;
/** More would take gigabytes of memory to serve. */
export const MAX_STRIPES = 2 ** 30;

const MAX_SHIFT_READ = 17;
const MAGIC = Uint8Array.from(Buffer.from('BDEV_UBI\0', 'latin1'));
const MAJOR_AT = 9;
const MINOR_AT = 11;
const SHIFT_AT = 13;
/** Of version 2.0. */
const COUNT_AT = 14;
const CRC_AT = 508;
const KNOWN_BITS = FETCHED | WRITTEN | HAS_SOURCE;

/** How many stripes of `512 << shift` bytes a disk has; the last one may be partial. */
export function stripeCount(diskBytes: number, shift: number): number {
  return Math.ceil(diskBytes / (METADATA_SECTOR << shift));
}

/** How many headers have exactly these of the bits in `mask`. */
export function countStripes(headers: Uint8Array, mask: number, bits = mask): number {
  let count = 0;
  for (let i = 0; i < headers.length; i++) if ((headers[i] & mask) === bits) count++;
  return count;
}

export class MetadataLayout {
  readonly stripeBytes: number;
  /** Of the file in its shortest form; what follows is zeroes, or nobody's. */
  readonly sizeBytes: number;
  private readonly perSector: number;

  /**
   * @param shift of the stripe size in sectors of 512 bytes
   * @param stripes of the disk
   */
  constructor(
    readonly version: MetadataVersion,
    readonly shift: number,
    readonly stripes: number,
  ) {
    this.stripeBytes = METADATA_SECTOR << shift;
    this.perSector = version === 1 ? METADATA_SECTOR : CRC_AT;
    this.sizeBytes = METADATA_SECTOR * (1 + Math.ceil(stripes / this.perSector));
  }

  /** Offset in the file of the 512-byte sector that holds a stripe's header. */
  sectorOffset(stripe: number): number {
    return METADATA_SECTOR * (1 + Math.floor(stripe / this.perSector));
  }

  /**
   * Fills `bytes` with what the file holds from `offset` on; zeroes behind the last header.
   * @param headers one for each stripe
   * @param offset and the length of `bytes` are multiples of 512
   */
  encode(headers: Uint8Array, offset: number, bytes: Uint8Array): void {
    const { perSector } = this;
    for (let at = 0; at < bytes.length; at += METADATA_SECTOR) {
      const sector = (offset + at) / METADATA_SECTOR;
      const target = bytes.subarray(at, at + METADATA_SECTOR);
      const first = (sector - 1) * perSector;
      const count = Math.min(Math.max(this.stripes - first, 0), perSector);
      if (sector === 0) this.encodeFirst(target);
      else {
        target.set(headers.subarray(first, first + count));
        target.fill(0, count);
      }
      if (this.version === 2 && (sector === 0 || count > 0)) {
        view(target).setUint32(CRC_AT, crcOf(target), true);
      }
    }
  }

  private encodeFirst(target: Uint8Array): void {
    target.set(MAGIC);
    target.fill(0, MAGIC.length);
    const fields = view(target);
    fields.setUint16(MAJOR_AT, this.version, true);
    fields.setUint8(SHIFT_AT, this.shift);
    if (this.version === 2) fields.setUint32(COUNT_AT, this.stripes, true);
  }
}

/**
 * Reads a metadata file.
 * @param bytes all of it, or as much as `metadataExtent` says
 * @param diskBytes the size of the disk that it belongs to
 * @returns the headers of the disk's stripes, in memory of their own
 * @throws MetadataError where it isn't one, is damaged, or can't be this disk's
 */
export function parseMetadata(
  bytes: Uint8Array,
  diskBytes: number,
): { layout: MetadataLayout; headers: Uint8Array } {
  const { layout, recorded } = parseFirst(bytes, diskBytes);
  const { version, stripes } = layout;
  const room = bytes.length / METADATA_SECTOR - 1;
  if (version === 2 && recorded > room * CRC_AT) {
    throw new MetadataError(
      `is too short for the ${recorded} stripes that it says to have: a part of it is missing`,
    );
  }
  const present = version === 1 ? room * METADATA_SECTOR : recorded;
  if (present < stripes) {
    throw new MetadataError(
      `has room for ${present} stripes, but the disk has ${stripes} of ${layout.stripeBytes} bytes: ` +
        'the disk has grown since, or this is the metadata of another one',
    );
  }
  const headers = new Uint8Array(stripes);
  const spare = version === 1 ? copyPlain(bytes, headers) : copyChecked(bytes, headers, recorded);
  checkBits(headers);
  if (spare) {
    throw new MetadataError(
      `records stripes behind the disk's end: the disk, of ${stripes} stripes of ` +
        `${layout.stripeBytes} bytes, has been larger, or this is the metadata of another one`,
    );
  }
  return { layout, headers };
}

/**
 * How much of a metadata file needs to be read, in bytes: a multiple of 512, and possibly more than
 * there is.
 * @param first the file's first sector
 * @throws MetadataError as `parseMetadata`
 */
export function metadataExtent(first: Uint8Array, diskBytes: number): number {
  const { layout, recorded } = parseFirst(first, diskBytes);
  const { version, shift, stripes } = layout;
  return new MetadataLayout(version, shift, Math.max(stripes, recorded)).sizeBytes;
}

interface First {
  layout: MetadataLayout;
  /** The number of stripes that version 2.0 records; 0 in version 1.0. */
  recorded: number;
}

function parseFirst(bytes: Uint8Array, diskBytes: number): First {
  checkMetadataSize(bytes.length);
  const first = bytes.subarray(0, METADATA_SECTOR);
  const version = versionOf(first);
  const fields = view(first);
  const shift = fields.getUint8(SHIFT_AT);
  if (shift > MAX_SHIFT_READ) {
    throw new MetadataError(
      `gives 2^${shift} sectors as the size of a stripe, but at most 2^${MAX_SHIFT_READ} are possible: ` +
        'it is damaged',
    );
  }
  const recorded = version === 2 ? fields.getUint32(COUNT_AT, true) : 0;
  const stripes = stripeCount(diskBytes, shift);
  if (Math.max(stripes, recorded) > MAX_STRIPES) {
    throw new MetadataError(
      `divides the disk into more than ${MAX_STRIPES} stripes of ${METADATA_SECTOR << shift} bytes, ` +
        'which is more than ubiblk serves',
    );
  }
  return { layout: new MetadataLayout(version, shift, stripes), recorded };
}

/**
 * Reads metadata that isn't of a disk here, so that it alone says how many stripes there are: as a file
 * has it, or cut off behind the last header.
 * @returns the headers in memory of their own
 * @throws MetadataError where it is none, or damaged
 */
export function parseStripeMap(bytes: Uint8Array): {
  version: MetadataVersion;
  stripeBytes: number;
  headers: Uint8Array;
} {
  if (bytes.length < METADATA_SECTOR) {
    throw new MetadataError(
      `has ${bytes.length} bytes, and at least ${METADATA_SECTOR} are needed`,
    );
  }
  const { layout, recorded } = parseFirst(bytes.subarray(0, METADATA_SECTOR), 0);
  const { version, stripeBytes } = layout;
  const stripes = version === 1 ? bytes.length - METADATA_SECTOR : recorded;
  const whole = new MetadataLayout(version, layout.shift, stripes);
  if (version === 2 && bytes.length < whole.sizeBytes) {
    throw new MetadataError(
      `has ${bytes.length} bytes, too few for the ${recorded} stripes that it says to have`,
    );
  }
  const headers = new Uint8Array(stripes);
  if (version === 1) headers.set(bytes.subarray(METADATA_SECTOR));
  else copyChecked(bytes, headers, recorded);
  checkBits(headers);
  return { version, stripeBytes, headers };
}

/** What `parseStripeMap` reads; version 1.0 ends behind the last header. */
export function encodeStripeMap(layout: MetadataLayout, headers: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(layout.sizeBytes);
  layout.encode(headers, 0, bytes);
  return layout.version === 2 ? bytes : bytes.subarray(0, METADATA_SECTOR + layout.stripes);
}

/** @throws MetadataError where a file of so many bytes can't be one */
export function checkMetadataSize(sizeBytes: number): void {
  if (sizeBytes >= METADATA_SECTOR && sizeBytes % METADATA_SECTOR === 0) return;
  throw new MetadataError(
    `has ${sizeBytes} bytes; a metadata file has a multiple of ${METADATA_SECTOR}, and not none`,
  );
}

/** The CRC comes first: what it covers is only believed when it is right. */
function versionOf(first: Uint8Array): MetadataVersion {
  const fields = view(first);
  const [major, minor] = [fields.getUint16(MAJOR_AT, true), fields.getUint16(MINOR_AT, true)];
  const intact = hasCrc(first);
  if (!MAGIC.every((byte, at) => first[at] === byte)) {
    throw new MetadataError(
      `is no metadata file, or sector 0 is damaged; with other keys than it was written with, or ` +
        'without any, it would look the same',
    );
  }
  if (intact && major === 2 && minor === 0) return 2;
  if ((major === 2 && minor === 0) || (!intact && isDamagedVersion2(first))) {
    throw damaged(0);
  }
  if (major === 1 && minor === 0) return 1;
  if (major === 0) {
    throw new MetadataError(
      `is of version ${major}.${minor}, which three generations of older programs (Seed, v0.2 and v0.3) ` +
        "have written in different ways that can't be told apart; make it anew with " +
        "'ubiblk metadata init'",
    );
  }
  throw new MetadataError(
    `is of version ${major}.${minor}, which this ubiblk doesn't know; it reads 1.0 and 2.0`,
  );
}

/** Whether only the version is wrong: a changed bit must not make it a file without CRCs. */
function isDamagedVersion2(first: Uint8Array): boolean {
  const mended = first.slice();
  const fields = view(mended);
  fields.setUint16(MAJOR_AT, 2, true);
  fields.setUint16(MINOR_AT, 0, true);
  return hasCrc(mended);
}

/** @returns whether a bit is set between the last stripe's header and the end of its sector */
function copyPlain(bytes: Uint8Array, headers: Uint8Array): boolean {
  const end = METADATA_SECTOR + headers.length;
  headers.set(bytes.subarray(METADATA_SECTOR, end));
  // Further sectors are nobody's: where a file has grown, they may be anything.
  const sectorEnd = Math.ceil(end / METADATA_SECTOR) * METADATA_SECTOR;
  return bytes.subarray(end, sectorEnd).some((byte) => byte !== 0);
}

/** @returns whether a bit is set in one of the recorded headers behind those of the disk */
function copyChecked(bytes: Uint8Array, headers: Uint8Array, recorded: number): boolean {
  let spare = false;
  for (let stripe = 0, sector = 1; stripe < recorded; stripe += CRC_AT, sector++) {
    const at = sector * METADATA_SECTOR;
    const source = bytes.subarray(at, at + METADATA_SECTOR);
    if (!hasCrc(source)) throw damaged(sector);
    const count = Math.min(Math.max(headers.length - stripe, 0), CRC_AT);
    headers.set(source.subarray(0, count), stripe);
    if (count < CRC_AT) spare ||= source.subarray(count, CRC_AT).some((byte) => byte !== 0);
  }
  return spare;
}

function checkBits(headers: Uint8Array): void {
  const words = new Uint32Array(headers.buffer, 0, headers.length >> 2);
  let all = 0;
  for (let i = 0; i < words.length; i++) all |= words[i];
  for (let i = words.length * 4; i < headers.length; i++) all |= headers[i];
  if ((all & ~(KNOWN_BITS * 0x01010101)) === 0) return;
  const stripe = headers.findIndex((header) => (header & ~KNOWN_BITS) !== 0);
  const text = headers[stripe].toString(16).padStart(2, '0');
  throw new MetadataError(
    `has a header of stripe ${stripe} with bits that mean nothing (0x${text}): it is damaged`,
  );
}

function damaged(sector: number): MetadataError {
  return new MetadataError(
    `is damaged: the CRC of sector ${sector} is wrong (wrong keys would look the same)`,
  );
}

function hasCrc(sector: Uint8Array): boolean {
  return view(sector).getUint32(CRC_AT, true) === crcOf(sector);
}

function crcOf(sector: Uint8Array): number {
  return Bun.hash.crc32(sector.subarray(0, CRC_AT));
}

function view(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
