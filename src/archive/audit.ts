/** What of an archive is there, whether it is whole, and what nobody needs any more. */
import { UserError } from '../errors.ts';
import type { Slot } from './object_codec.ts';
import type { Archive } from './reader.ts';
import { Slots } from './slots.ts';
import { StoreAwayError } from './store.ts';
import { parseHash } from './stripe_index.ts';

export interface VerifyOptions {
  signal: AbortSignal;
  progress: (doneBytes: number, totalBytes: number) => void;
  /** Told of each stripe that can't be had, in a sentence. */
  problem: (sentence: string) => void;
}

export interface Verified {
  stripes: number;
  objects: number;
  zeroes: number;
  problems: number;
}

/** Fetches every object, checks its hash, decrypts and decompresses it. */
export async function verifyArchive(archive: Archive, options: VerifyOptions): Promise<Verified> {
  const { index, form, store, stripeBytes } = archive;
  const slots = new Slots(form, store.parallel);
  const seen = new Uint8Array(Math.ceil(index.objects / 8));
  let [done, problems] = [0, 0];
  const verify = async (stripe: number, slot: Slot) => {
    const object = index.objectOf(stripe);
    // Of an encrypted archive the same object would be another stripe in another place.
    const known = object !== null && form.xts === 0 && isIn(seen, object);
    if (object !== null && !known) {
      seen[object >> 3] |= 1 << (object & 7);
      try {
        await archive.load(stripe, object, slot);
      } catch (error) {
        if (!(error instanceof UserError) || error instanceof StoreAwayError) throw error;
        if (options.signal.aborted) throw error;
        problems++;
        options.problem(error.message);
      }
    }
    options.progress(++done * stripeBytes, index.stripes * stripeBytes);
  };
  try {
    await slots.forEach(index.stripes, verify, options.signal, () => store.giveUp());
  } finally {
    slots.free();
  }
  return { stripes: index.listed, objects: index.objects, zeroes: index.zeroes, problems };
}

export interface Inventory {
  /** Objects that the index names and that are there, with all their bytes. */
  objects: number;
  objectBytes: number;
  missing: number;
  /** What is there and isn't named by the index. */
  unused: string[];
  unusedBytes: number;
}

/** Compares what is there with the index; nothing is read but names and sizes. */
export async function takeInventory({ store, index }: Archive): Promise<Inventory> {
  const found = new Uint8Array(Math.ceil(index.objects / 8));
  const inventory: Inventory = {
    objects: 0,
    objectBytes: 0,
    missing: 0,
    unused: [],
    unusedBytes: 0,
  };
  for await (const { hash, lengthBytes } of store.list()) {
    const bytes = parseHash(hash);
    const object = bytes && index.find(bytes);
    if (object === null) {
      inventory.unused.push(hash);
      inventory.unusedBytes += lengthBytes;
    } else if (!isIn(found, object)) {
      found[object >> 3] |= 1 << (object & 7);
      inventory.objects++;
      inventory.objectBytes += lengthBytes;
    }
  }
  inventory.missing = index.objects - inventory.objects;
  return inventory;
}

function isIn(set: Uint8Array, number: number): boolean {
  return (set[number >> 3] & (1 << (number & 7))) !== 0;
}
