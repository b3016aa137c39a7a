import { createDecipheriv } from 'node:crypto';
import { unlinkSync } from 'node:fs';
import { errorName, UserError } from '../errors.ts';
import { decodeBase64 } from './base64.ts';
import { Problems } from './problems.ts';
import { Secret } from './secret.ts';
import { readTextFile } from './text_file.ts';
import { type Mapping, parseMapping } from './yaml_mapping.ts';

export const wrappingMethods = ['none', 'aes256-gcm'] as const;

export const kekKeyBytes = 32;
export const kekInitVectorBytes = 12;
const tagBytes = 16;

/** Why a value could not be unwrapped: the end of a sentence that begins with the field's name. */
export class UnwrapError extends Error {
  override name = 'UnwrapError';
}

/**
 * The key-encryption key of a device (spec/config.md A.4). Whoever holds it calls `wipe()` after
 * the last value was unwrapped.
 */
export interface Kek {
  /** True when values come out as they are: no KEK file, or one with `method: none`. */
  readonly isNone: boolean;
  /**
   * The plain bytes of `wrapped`, which is left alone and may be what is returned.
   * @throws UnwrapError
   */
  unwrap(wrapped: Uint8Array): Uint8Array;
  wipe(): void;
}

export const noKek: Kek = {
  isNone: true,
  unwrap: (wrapped) => wrapped,
  wipe: () => {},
};

/** AES-256-GCM with the one nonce and the one additional data of the KEK file for every value. */
class GcmKek implements Kek {
  readonly isNone = false;
  readonly #file: string;
  readonly #key: Secret | undefined;
  readonly #initVector: Secret | undefined;
  readonly #authData: Secret | undefined;

  constructor(file: string, parts: { key?: Secret; initVector?: Secret; authData?: Secret }) {
    this.#file = file;
    this.#key = parts.key;
    this.#initVector = parts.initVector;
    this.#authData = parts.authData;
  }

  unwrap(wrapped: Uint8Array): Uint8Array {
    const key = this.#part(this.#key, 'key', kekKeyBytes);
    const initVector = this.#part(this.#initVector, 'init_vector', kekInitVectorBytes);
    const authData = this.#part(this.#authData, 'auth_data');
    if (wrapped.length < tagBytes) {
      throw new UnwrapError(
        `is ${wrapped.length} bytes, too short to be wrapped by the KEK (the tag alone is ${tagBytes})`,
      );
    }
    const decipher = createDecipheriv('aes-256-gcm', key, initVector, { authTagLength: tagBytes });
    decipher.setAAD(authData);
    decipher.setAuthTag(wrapped.subarray(wrapped.length - tagBytes));
    const plain = decipher.update(wrapped.subarray(0, wrapped.length - tagBytes));
    try {
      decipher.final();
    } catch {
      plain.fill(0);
      throw new UnwrapError(
        `cannot be decrypted: it was not wrapped with the KEK of '${this.#file}', or is damaged`,
      );
    }
    return plain;
  }

  wipe(): void {
    this.#key?.wipe();
    this.#initVector?.wipe();
    this.#authData?.wipe();
  }

  #part(part: Secret | undefined, name: string, lengthBytes?: number): Uint8Array {
    const missing = `cannot be decrypted: the KEK file '${this.#file}'`;
    if (part === undefined) {
      throw new UnwrapError(`${missing} has no '${name}'`);
    }
    if (lengthBytes !== undefined && part.lengthBytes !== lengthBytes) {
      throw new UnwrapError(
        `${missing} has a '${name}' of ${part.lengthBytes} bytes instead of ${lengthBytes}`,
      );
    }
    return part.reveal();
  }
}

/**
 * Reads a KEK file. Parts that are missing or too long show when a value is unwrapped.
 * @param strict unknown keys are errors
 * @param warn gets one line for each thing that is doubtful
 * @throws UserError if the file cannot be read or parsed
 */
export function loadKekFile(file: string, strict: boolean, warn: (line: string) => void): Kek {
  const { text, openToOthers } = readTextFile(file, 'KEK file');
  if (openToOthers) {
    warn(`the KEK file '${file}' is open to its group or to others; chmod it to 600`);
  }
  const problems = new Problems(file);
  const mapping = parseMapping(text, problems, strict);
  const kek = mapping === undefined ? noKek : readKek(file, mapping);
  mapping?.reportUnknownKeys();
  for (const line of problems.warnings()) {
    warn(line);
  }
  try {
    problems.throwIfAny();
  } catch (error) {
    kek.wipe();
    throw error;
  }
  return kek;
}

/** Deletes the KEK file, for `--unlink-kek`. @throws UserError */
export function unlinkKekFile(file: string): void {
  try {
    unlinkSync(file);
  } catch (error) {
    throw new UserError(`cannot delete the KEK file '${file}': ${errorName(error)}`);
  }
}

function readKek(file: string, mapping: Mapping): Kek {
  const method = mapping.requiredChoice('method', wrappingMethods);
  const parts = {
    key: readPart(mapping, 'key'),
    initVector: readPart(mapping, 'init_vector'),
    authData: readPart(mapping, 'auth_data'),
  };
  return method === 'aes256-gcm' ? new GcmKek(file, parts) : noKek;
}

function readPart(mapping: Mapping, key: string): Secret | undefined {
  const text = mapping.string(key);
  if (text === undefined) {
    return undefined;
  }
  const bytes = decodeBase64(text);
  if (bytes === undefined) {
    mapping.error(key, 'is not standard base64 with padding');
    return undefined;
  }
  return new Secret(bytes);
}
