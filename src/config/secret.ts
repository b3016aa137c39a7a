import { inspect } from 'node:util';

const placeholder = '[secret]';

/**
 * Bytes that must not appear in a message, a log or a dump of an object: every way of printing it
 * gives a placeholder. The owner calls `wipe()` when the bytes are no longer needed.
 */
export class Secret {
  readonly #bytes: Uint8Array;

  /** Takes over `bytes` (no copy): `wipe()` overwrites them. */
  constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
  }

  get lengthBytes(): number {
    return this.#bytes.length;
  }

  /** The bytes themselves, not a copy. */
  reveal(): Uint8Array {
    return this.#bytes;
  }

  wipe(): void {
    this.#bytes.fill(0);
  }

  toString(): string {
    return placeholder;
  }

  toJSON(): string {
    return placeholder;
  }

  [inspect.custom](): string {
    return placeholder;
  }
}
