import { GCM_TAG_BYTES } from '../crypto/gcm.ts';
import type { Secret } from '../crypto/secret.ts';
import { type Kek, KekError } from './kek.ts';
import type { Base64Text, Mapping } from './yaml_mapping.ts';

/** Decodes and unwraps the secret fields of one file, and remembers them so that they can be wiped. */
export class SecretReader {
  readonly #kek: Kek;
  readonly #created: Secret[] = [];
  readonly #fields = new Set<string>();

  constructor(kek: Kek) {
    this.#kek = kek;
  }

  /** How many secret fields were read; the two halves of an encryption key are one field. */
  get fieldCount(): number {
    return this.#fields.size;
  }

  /** True when values came in wrapped: one KEK and one nonce served all of them. */
  get wrapped(): boolean {
    return !this.#kek.isNone;
  }

  /** The secret of a string field, or undefined if it is absent or wrong (reported). */
  read(mapping: Mapping, key: string, lengthBytes?: number): Secret | undefined {
    const text = mapping.base64(key);
    return text === undefined ? undefined : this.decode(mapping, key, text, lengthBytes);
  }

  /** As `read`, for the text of an item `field` (`encryption_key[1]`) of a list. */
  decode(
    mapping: Mapping,
    field: string,
    text: Base64Text,
    lengthBytes?: number,
  ): Secret | undefined {
    this.#fields.add(field.replace(/\[\d+\]$/, ''));
    const wrapped = text.decode();
    if (wrapped === undefined) {
      mapping.error(field, 'is not standard base64 with padding');
      return undefined;
    }
    const secret = this.#unwrap(mapping, field, wrapped);
    if (secret === undefined) {
      return undefined;
    }
    this.#created.push(secret);
    if (lengthBytes !== undefined && secret.lengthBytes !== lengthBytes) {
      const hint =
        this.#kek.isNone && secret.lengthBytes === lengthBytes + GCM_TAG_BYTES
          ? '; it looks wrapped by a KEK, give its file with --kek'
          : '';
      mapping.error(field, `must be ${lengthBytes} bytes, not ${secret.lengthBytes}${hint}`);
      return undefined;
    }
    return secret;
  }

  wipe(): void {
    for (const secret of this.#created) {
      secret.wipe();
    }
  }

  #unwrap(mapping: Mapping, field: string, wrapped: Secret): Secret | undefined {
    try {
      return this.#kek.unwrap(wrapped);
    } catch (error) {
      if (!(error instanceof KekError)) {
        throw error;
      }
      mapping.error(field, error.message);
      return undefined;
    }
  }
}
