/** Which object each stripe of a disk is in, in memory that grows by few bytes a stripe. */
import { ArchiveError } from './archive_error.ts';

export const HASH_BYTES = 32;
/** Stripes of the largest disk. */
export const MAX_STRIPES = 2 ** 30;

/** What a stripe is; what is more is the number of its object and these two. */
const ABSENT = 0;
const ZERO = 1;
const FIRST_OBJECT = 2;

const FIRST_ROOM = 1024;

export class StripeIndex {
  /** By stripe. */
  private readonly places: Uint32Array;
  /** Of objects, one after the other. */
  private hashes = new Uint8Array(FIRST_ROOM * HASH_BYTES);
  /** Numbers of objects and one, found by their hashes: open addressing, half of it empty. */
  private table = new Uint32Array(2 * FIRST_ROOM);
  /** How many different objects there are. */
  objects = 0;
  /** How many stripes are listed, and how many of them as zeroes without an object. */
  listed = 0;
  zeroes = 0;

  /** @param stripes one more than the highest number that is used */
  constructor(readonly stripes: number) {
    if (stripes > MAX_STRIPES) throw new ArchiveError(`names a stripe above ${MAX_STRIPES - 1}`);
    this.places = new Uint32Array(stripes);
  }

  has(stripe: number): boolean {
    return stripe < this.stripes && this.places[stripe] !== ABSENT;
  }

  /** The number of a stripe's object, or null where it has none: it is listed as zeroes, or not at all. */
  objectOf(stripe: number): number | null {
    const place = stripe < this.stripes ? this.places[stripe] : ABSENT;
    return place < FIRST_OBJECT ? null : place - FIRST_OBJECT;
  }

  /** A view of an object's hash. */
  hashOf(object: number): Uint8Array {
    return this.hashes.subarray(object * HASH_BYTES, (object + 1) * HASH_BYTES);
  }

  /** The number of the object with this hash, or null. */
  find(hash: Uint8Array): number | null {
    const found = this.table[this.slotOf(hash)];
    return found === 0 ? null : found - 1;
  }

  addZero(stripe: number): void {
    this.list(stripe, ZERO);
    this.zeroes++;
  }

  /** @returns whether the object is new */
  add(stripe: number, hash: Uint8Array): boolean {
    const slot = this.slotOf(hash);
    const found = this.table[slot];
    if (found !== 0) {
      this.list(stripe, found - 1 + FIRST_OBJECT);
      return false;
    }
    const object = this.objects++;
    if (this.hashes.length < this.objects * HASH_BYTES) this.grow();
    this.hashes.set(hash, object * HASH_BYTES);
    this.table[this.slotOf(hash)] = object + 1;
    this.list(stripe, object + FIRST_OBJECT);
    return true;
  }

  private list(stripe: number, place: number): void {
    if (this.places[stripe] !== ABSENT) throw new ArchiveError(`lists stripe ${stripe} twice`);
    this.places[stripe] = place;
    this.listed++;
  }

  private slotOf(hash: Uint8Array): number {
    const mask = this.table.length - 1;
    const start = hash[0] | (hash[1] << 8) | (hash[2] << 16) | (hash[3] << 24);
    for (let slot = start & mask; ; slot = (slot + 1) & mask) {
      const found = this.table[slot];
      if (found === 0 || Buffer.compare(this.hashOf(found - 1), hash) === 0) return slot;
    }
  }

  private grow(): void {
    const hashes = new Uint8Array(2 * this.hashes.length);
    hashes.set(this.hashes);
    this.hashes = hashes;
    this.table = new Uint32Array(2 * this.table.length);
    for (let object = 0; object < this.objects - 1; object++) {
      this.table[this.slotOf(this.hashOf(object))] = object + 1;
    }
  }
}

/** The name of an object. */
export function objectName(hash: Uint8Array): string {
  return `${DATA_PREFIX}${Buffer.from(hash).toString('hex')}`;
}

export const DATA_PREFIX = 'data/';
const HEX_HASH = /^[0-9a-f]{64}$/;

/** The hash that 64 lower-case hexadecimal digits stand for, or null where it is any other text. */
export function parseHash(text: unknown): Uint8Array | null {
  return typeof text === 'string' && HEX_HASH.test(text) ? Buffer.from(text, 'hex') : null;
}
