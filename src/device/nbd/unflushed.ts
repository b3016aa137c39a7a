/**
 * Whether an export may have lost what its server has answered and nobody has flushed since: a server whose
 * connection is lost may have been started anew. All queues of a disk share it, as a flush is for all of them.
 */

const WRITTEN = 0;
const FLUSHED = 1;
const LOSSES = 2;
const TOLD = 3;
/** 32-bit numbers that it needs. */
export const UNFLUSHED_WORDS = 4;

export class Unflushed {
  /** @param words UNFLUSHED_WORDS of shared memory, zeroes at first */
  constructor(private readonly words: Int32Array) {}

  /** A write has been answered that isn't durable. */
  wrote(): void {
    Atomics.add(this.words, WRITTEN, 1);
  }

  /** What has been written: a flush that begins now is for that. */
  get written(): number {
    return Atomics.load(this.words, WRITTEN);
  }

  /** The last loss that somebody was told of. */
  get told(): number {
    return Atomics.load(this.words, TOLD);
  }

  /** A connection is lost, and perhaps its server with what it had in memory. */
  lost(): void {
    const { words } = this;
    if (Atomics.load(words, WRITTEN) === Atomics.load(words, FLUSHED)) return;
    Atomics.add(words, LOSSES, 1);
  }

  /**
   * A flush has been answered.
   * @param written and
   * @param told when it began
   * @returns false where something may be lost that it was to make durable
   */
  flushed(written: number, told: number): boolean {
    const { words } = this;
    const losses = Atomics.load(words, LOSSES);
    if (losses === told) {
      // An older flush may be answered late.
      const flushed = Atomics.load(words, FLUSHED);
      if (((written - flushed) | 0) > 0) Atomics.store(words, FLUSHED, written);
      return true;
    }
    Atomics.store(words, TOLD, losses);
    return false;
  }
}
