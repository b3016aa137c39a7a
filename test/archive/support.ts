/** Keys and bytes of the fixtures of archives. */
import { createHash } from 'node:crypto';
import { completeText, newDescription, sha256Hex } from '../../src/archive/description.ts';
import { FilesystemStore } from '../../src/archive/filesystem_store.ts';
import { encodeJsonIndex } from '../../src/archive/json_index.ts';
import { ObjectLane, Slot } from '../../src/archive/object_codec.ts';
import { INDEX_NAMES } from '../../src/archive/store.ts';
import { objectName, StripeIndex } from '../../src/archive/stripe_index.ts';
import type { ArchiveKek } from '../../src/config/device_config.ts';
import { Secret } from '../../src/crypto/secret.ts';
import { expandXts, type XtsKeys } from '../../src/crypto/xts.ts';

export const noKek: ArchiveKek = { method: 'none' };

export function sha256(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}

export function secretOf(bytes: Uint8Array): Secret {
  return Secret.taking(Uint8Array.from(bytes));
}

/** key1 is 00 to 1f, key2 80 to 9f. */
export function fixtureKeys(): XtsKeys {
  const from = (start: number) => secretOf(Uint8Array.from({ length: 32 }, (_, i) => start + i));
  return [from(0), from(0x80)];
}

export function fixtureXts(): number {
  return expandXts(fixtureKeys());
}

/** The KEK of the wrapping fixtures. */
export function fixtureKek(): ArchiveKek {
  return {
    method: 'aes256-gcm',
    key: secretOf(Buffer.alloc(32, 0x11)),
    initVector: secretOf(Buffer.alloc(12, 0x22)),
    authData: secretOf(Buffer.from('test-aad')),
  };
}

export const STRIPE_SECTORS = 128;
export const STRIPE_BYTES = STRIPE_SECTORS * 512;

/** An archive in a folder; stripe N of its disk is filled with N + 1. */
export async function makeArchive(folder: string, stripes: number, encrypted = false) {
  const store = new FilesystemStore(folder, 'an archive of the tests');
  const run = await store.begin();
  const compression = { method: 'snappy' } as const;
  const shape = { format: 1, stripeSectors: STRIPE_SECTORS, compression } as const;
  const diskBytes = stripes * STRIPE_BYTES;
  const description = newDescription({ ...shape, diskBytes }, encrypted, noKek);
  const form = { ...shape, xts: description.keys ? expandXts(description.keys) : 0 };
  const lane = new ObjectLane(1);
  const slot = new Slot(form, lane);
  const index = new StripeIndex(stripes);
  for (let stripe = 0; stripe < stripes; stripe++) {
    slot.stripe.bytes.fill(stripe + 1);
    const sealed = await slot.seal(stripe, null, false);
    if (!sealed) throw new Error('left out');
    index.add(stripe, sealed.hash);
    await store.put(objectName(sealed.hash), sealed.object);
  }
  const bytes = encodeJsonIndex(index);
  await store.commit({
    description: completeText(description, [sha256Hex(bytes)]),
    meanwhile: null,
    indexName: INDEX_NAMES[1],
    index: bytes,
  });
  await run.end();
  run.leave();
  slot.free();
  lane.close();
  return store;
}
