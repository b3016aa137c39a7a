/** Keys and bytes of the fixtures of archives. */
import { createHash } from 'node:crypto';
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
