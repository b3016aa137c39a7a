/** An archive that is there: its description, its index, and its stripes. */

import { createHash } from 'node:crypto';
import type { ArchiveKek } from '../config/device_config.ts';
import { expandXts, freeXts } from '../crypto/xts.ts';
import { UserError } from '../errors.ts';
import type { StripeBuffer } from '../stripe/interfaces.ts';
import { ArchiveError } from './archive_error.ts';
import {
  DESCRIPTION_NAME,
  type Description,
  parseDescription,
  sha256Hex,
  wipeDescription,
} from './description.ts';
import { parseJsonIndex } from './json_index.ts';
import type { ObjectForm, Slot } from './object_codec.ts';
import { INDEX_NAMES, type ObjectStore } from './store.ts';
import { objectName, type StripeIndex } from './stripe_index.ts';
import { parseMapping } from './stripe_mapping.ts';

/** How often a replacement may come between the description and the index. */
const ATTEMPTS = 5;

/** An object that isn't what it should be. */
export class DamagedObjectError extends UserError {}

export class Archive {
  readonly form: ObjectForm;

  private constructor(
    readonly store: ObjectStore,
    readonly description: Omit<Description, 'hmacKey' | 'keys'> & { encrypted: boolean },
    readonly index: StripeIndex,
    /** Bytes of the description and of the index. */
    readonly headBytes: number,
    xts: number,
  ) {
    const { stripeSectors, compression } = description;
    this.form = { stripeSectors, compression, xts };
  }

  /**
   * Reads and checks the description and the index. Nothing of the KEK is used afterwards.
   * @throws UserError where there is no archive, or it is damaged, incomplete, or of another KEK
   */
  static async open(store: ObjectStore, kek: ArchiveKek): Promise<Archive> {
    for (let attempt = 1; ; attempt++) {
      const stored = await store.get(DESCRIPTION_NAME);
      if (!stored) {
        throw new UserError(
          `there is no archive in ${store.name}: it has no '${DESCRIPTION_NAME}'; is it the right place?`,
        );
      }
      try {
        return await Archive.openDescribed(store, stored, kek);
      } catch (error) {
        // Somebody may have replaced the archive meanwhile.
        const now = await store.get(DESCRIPTION_NAME);
        if (attempt === ATTEMPTS || !now || Buffer.compare(now, stored) === 0) throw error;
      }
    }
  }

  private static async openDescribed(
    store: ObjectStore,
    stored: Uint8Array,
    kek: ArchiveKek,
  ): Promise<Archive> {
    const parsed = named(store, DESCRIPTION_NAME, () => parseDescription(stored, kek));
    let xts = 0;
    try {
      const { keys, hmacKey, ...description } = parsed;
      xts = keys ? expandXts(keys) : 0;
      const name = INDEX_NAMES[parsed.format];
      const bytes = await store.get(name);
      if (!bytes) {
        throw new UserError(
          `the archive in ${store.name} is not complete: it has no '${name}'; run 'ubiblk archive' ` +
            'again, with --resume where it is encrypted',
        );
      }
      const index = named(store, name, () => {
        checkDigest(bytes, parsed);
        const read = hmacKey ? parseMapping(bytes, hmacKey, xts) : parseJsonIndex(bytes);
        checkStripes(read, parsed);
        return read;
      });
      // A description that was replaced since may have other keys.
      const now = await store.get(DESCRIPTION_NAME);
      if (!now || Buffer.compare(now, stored) !== 0) {
        throw new UserError(`the archive in ${store.name} is being replaced; try again`);
      }
      const headBytes = stored.length + bytes.length;
      const encrypted = keys !== null;
      return new Archive(store, { ...description, encrypted }, index, headBytes, xts);
    } catch (error) {
      freeXts(xts);
      throw error;
    } finally {
      wipeDescription(parsed);
    }
  }

  get stripeBytes(): number {
    return this.form.stripeSectors * 512;
  }

  /** Of the disk; where an older archive doesn't record it, whole stripes up to the last one listed. */
  get sizeBytes(): number {
    return this.description.diskBytes ?? this.index.stripes * this.stripeBytes;
  }

  /** How many stripes the disk has. */
  get stripes(): number {
    return Math.ceil(this.sizeBytes / this.stripeBytes);
  }

  /** What tells its content from every other's: 32 bytes. */
  identity(): Buffer {
    const { index, form, description } = this;
    const hash = createHash('sha256').update(description.text);
    hash.update(JSON.stringify([form.stripeSectors, description.diskBytes]));
    const place = Buffer.alloc(4);
    for (let stripe = 0; stripe < index.stripes; stripe++) {
      const object = index.objectOf(stripe);
      if (object === null) continue;
      place.writeUInt32LE(stripe);
      hash.update(place).update(index.hashOf(object));
    }
    return hash.digest();
  }

  /**
   * Fetches an object into a slot.
   * @returns its length
   * @throws UserError where it is missing, or can't be fetched now
   */
  async fetch(object: number, slot: Slot): Promise<number> {
    const name = objectName(this.index.hashOf(object));
    const length = await this.store.fetch(name, slot.object);
    if (length !== null) return length;
    throw new UserError(`'${name}' is missing in the archive in ${this.store.name}`);
  }

  /**
   * Makes a stripe of an object that was fetched into a slot.
   * @param to a whole stripe; by default the slot's
   * @returns false where all of it is zeroes
   * @throws UserError where it is damaged
   */
  async unseal(
    stripe: number,
    object: number,
    slot: Slot,
    length: number,
    to?: StripeBuffer,
  ): Promise<boolean> {
    const hash = this.index.hashOf(object);
    try {
      return await slot.unseal(stripe, hash, slot.object, length, to);
    } catch (error) {
      if (!(error instanceof ArchiveError)) throw error;
      const name = objectName(hash);
      throw new DamagedObjectError(
        `'${name}', of stripe ${stripe}, in the archive in ${this.store.name} ${error.message}`,
      );
    }
  }

  /**
   * Both. What is damaged is fetched once more: it may have been damaged on its way.
   * @returns false where all of it is zeroes
   */
  async load(stripe: number, object: number, slot: Slot): Promise<boolean> {
    try {
      return await this.unseal(stripe, object, slot, await this.fetch(object, slot));
    } catch (error) {
      if (!(error instanceof DamagedObjectError)) throw error;
      return await this.unseal(stripe, object, slot, await this.fetch(object, slot));
    }
  }

  /** Wipes the keys; the store stays open. Nothing may be under way. */
  close(): void {
    freeXts(this.form.xts);
  }
}

function checkDigest(bytes: Uint8Array, { indexDigests }: Description): void {
  if (indexDigests === null || indexDigests.includes(sha256Hex(bytes))) return;
  throw new ArchiveError(
    `was changed, or is damaged: its SHA-256 is none that '${DESCRIPTION_NAME}' names`,
  );
}

function checkStripes({ stripes }: StripeIndex, { diskBytes, stripeSectors }: Description): void {
  if (diskBytes === undefined || (stripes - 1) * stripeSectors * 512 < diskBytes) return;
  throw new ArchiveError(
    `lists stripe ${stripes - 1}, behind the end of a disk of ${diskBytes} bytes`,
  );
}

/** Has what is wrong with an object told with its name. */
export function named<Result>(store: ObjectStore, name: string, read: () => Result): Result {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof ArchiveError)) throw error;
    throw new UserError(`'${name}' of the archive in ${store.name} ${error.message}`);
  }
}
