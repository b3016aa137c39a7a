import { inspect } from 'node:util';
import { failed } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { windowOver } from '../../ffi/memory.ts';

const placeholder = '[secret]';

/**
 * Bytes that must not leave this process by accident: in memory that is locked, in no core dump and
 * outside JavaScript's heap, and a placeholder in whatever prints it. The owner calls `wipe()` when
 * they are no longer needed.
 */
export class Secret {
  #address: number;
  readonly lengthBytes: number;

  /**
   * Makes zeroes, for the owner to fill.
   * @throws Error (ENOMEM) where there are far more secrets than any configuration has
   */
  constructor(lengthBytes: number) {
    openLibrary();
    const address = shim.ubiblk_secret_alloc(Math.max(lengthBytes, 1)) as number;
    if (address < 0) throw failed('memory for secrets', address);
    this.#address = address;
    this.lengthBytes = lengthBytes;
  }

  /** Takes over what is in `bytes`, which are overwritten. */
  static taking(bytes: Uint8Array): Secret {
    const secret = new Secret(bytes.length);
    secret.reveal().set(bytes);
    bytes.fill(0);
    return secret;
  }

  /** Another secret of the same bytes, which lives by itself. */
  copy(): Secret {
    const other = new Secret(this.lengthBytes);
    other.reveal().set(this.reveal());
    return other;
  }

  /** Where the bytes are, for the native library. @throws Error once they are wiped */
  get address(): number {
    if (this.#address === 0) throw new Error('a secret was used after it was wiped');
    return this.#address;
  }

  /** The bytes themselves, not a copy; not to be kept beyond `wipe()`. */
  reveal(): Uint8Array {
    if (this.lengthBytes === 0) return new Uint8Array();
    return new Uint8Array(windowOver(this.address, this.lengthBytes));
  }

  /** Overwrites and gives back the memory; the second time nothing. */
  wipe(): void {
    if (this.#address !== 0) shim.ubiblk_secret_free(this.#address);
    this.#address = 0;
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

/** Whether all secrets so far are locked into memory; if not, RLIMIT_MEMLOCK is too low. */
export function secretsAreLocked(): boolean {
  openLibrary();
  return shim.ubiblk_secret_locked() === 1;
}
