import { unlinkSync } from 'node:fs';
import {
  GCM_KEY_BYTES,
  GCM_NONCE_BYTES,
  GCM_TAG_BYTES,
  type GcmKey,
  gcmUnwrap,
  gcmWrap,
} from '../crypto/gcm.ts';
import { Secret } from '../crypto/secret.ts';
import { errorName, UserError } from '../errors.ts';
import { Problems } from './problems.ts';
import { readTextFile } from './text_file.ts';
import { type Mapping, parseMapping } from './yaml_mapping.ts';

export const wrappingMethods = ['none', 'aes256-gcm'] as const;

/** Why a value could not be (un)wrapped: the end of a sentence that begins with the value's name. */
export class KekError extends Error {
  override name = 'KekError';
}

/**
 * The key-encryption key of a device (spec/config.md A.4). Whoever holds it calls `wipe()` after
 * the last value was unwrapped.
 */
export interface Kek {
  /** True when values come out as they are: no KEK file, or one with `method: none`. */
  readonly isNone: boolean;
  /**
   * Takes over `wrapped`, and gives its plain bytes for the caller to wipe.
   * @throws KekError
   */
  unwrap(wrapped: Secret): Secret;
  /**
   * The reverse: takes over `plain`.
   * @throws KekError
   */
  wrap(plain: Secret): Secret;
  wipe(): void;
}

export const noKek: Kek = {
  isNone: true,
  unwrap: (wrapped) => wrapped,
  wrap: (plain) => plain,
  wipe: () => {},
};

/** The parts of a KEK file; what is missing shows when they are needed. */
interface Parts {
  key: Secret | undefined;
  initVector: Secret | undefined;
  authData: Secret | undefined;
}

/** AES-256-GCM with the one nonce and the one additional data of the KEK file for every value. */
class GcmKek implements Kek {
  readonly isNone = false;
  readonly #file: string;
  readonly #parts: Parts;

  constructor(file: string, parts: Parts) {
    this.#file = file;
    this.#parts = parts;
  }

  unwrap(wrapped: Secret): Secret {
    try {
      const key = this.#gcmKey('cannot be decrypted');
      if (wrapped.lengthBytes < GCM_TAG_BYTES) {
        throw new KekError(
          `is ${wrapped.lengthBytes} bytes, too short to be wrapped by the KEK ` +
            `(the tag alone is ${GCM_TAG_BYTES})`,
        );
      }
      const plain = gcmUnwrap(key, wrapped.reveal());
      if (plain === null) {
        throw new KekError(
          `cannot be decrypted: it was not wrapped with the KEK of '${this.#file}', or is damaged`,
        );
      }
      return plain;
    } finally {
      wrapped.wipe();
    }
  }

  wrap(plain: Secret): Secret {
    try {
      return Secret.taking(gcmWrap(this.#gcmKey('cannot be encrypted'), plain));
    } finally {
      plain.wipe();
    }
  }

  wipe(): void {
    wipeParts(this.#parts);
  }

  #gcmKey(purpose: string): GcmKey {
    const { key, initVector, authData } = this.#parts;
    return {
      key: this.#part(purpose, key, 'key', GCM_KEY_BYTES),
      nonce: this.#part(purpose, initVector, 'init_vector', GCM_NONCE_BYTES).reveal(),
      aad: this.#part(purpose, authData, 'auth_data').reveal(),
    };
  }

  #part(purpose: string, part: Secret | undefined, name: string, lengthBytes?: number): Secret {
    const beginning = `${purpose}: the KEK file '${this.#file}'`;
    if (part === undefined) {
      throw new KekError(`${beginning} has no '${name}'`);
    }
    if (lengthBytes !== undefined && part.lengthBytes !== lengthBytes) {
      throw new KekError(
        `${beginning} has a '${name}' of ${part.lengthBytes} bytes instead of ${lengthBytes}`,
      );
    }
    return part;
  }
}

/**
 * Reads a KEK file. Parts that are missing or too long show when a value is (un)wrapped.
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
  let kek = noKek;
  try {
    const mapping = parseMapping(text, problems, strict);
    kek = mapping === undefined ? noKek : readKek(file, mapping);
    mapping?.reportUnknownKeys();
    for (const line of problems.warnings()) {
      warn(line);
    }
    problems.throwIfAny();
    return kek;
  } catch (error) {
    kek.wipe();
    throw error;
  } finally {
    text.wipe();
  }
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
  if (method === 'aes256-gcm') {
    return new GcmKek(file, parts);
  }
  wipeParts(parts);
  return noKek;
}

function readPart(mapping: Mapping, key: string): Secret | undefined {
  const text = mapping.base64(key);
  const bytes = text?.decode();
  if (text !== undefined && bytes === undefined) {
    mapping.error(key, 'is not standard base64 with padding');
  }
  return bytes;
}

function wipeParts({ key, initVector, authData }: Parts): void {
  key?.wipe();
  initVector?.wipe();
  authData?.wipe();
}
