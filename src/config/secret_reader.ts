import { decodeBase64 } from './base64.ts';
import { type Kek, UnwrapError } from './kek.ts';
import { Secret } from './secret.ts';
import type { Mapping } from './yaml_mapping.ts';

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
    const text = mapping.string(key);
    return text === undefined ? undefined : this.decode(mapping, key, text, lengthBytes);
  }

  /** As `read`, for the text of an item `field` (`encryption_key[1]`) of a list. */
  decode(mapping: Mapping, field: string, text: string, lengthBytes?: number): Secret | undefined {
    this.#fields.add(field.replace(/\[\d+\]$/, ''));
    const wrapped = decodeBase64(text);
    if (wrapped === undefined) {
      mapping.error(field, 'is not standard base64 with padding');
      return undefined;
    }
    const plain = this.#unwrap(mapping, field, wrapped);
    if (plain === undefined) {
      return undefined;
    }
    const secret = new Secret(plain);
    this.#created.push(secret);
    if (lengthBytes !== undefined && secret.lengthBytes !== lengthBytes) {
      const hint =
        this.#kek.isNone && secret.lengthBytes === lengthBytes + 16
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

  #unwrap(mapping: Mapping, field: string, wrapped: Uint8Array): Uint8Array | undefined {
    try {
      return this.#kek.unwrap(wrapped);
    } catch (error) {
      if (!(error instanceof UnwrapError)) {
        throw error;
      }
      mapping.error(field, error.message);
      return undefined;
    }
  }
}
