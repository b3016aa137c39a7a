/** Random choices that can be made again: a run prints its seed, `UBIBLK_TEST_SEED` repeats it. */

export const seed = Number(process.env.UBIBLK_TEST_SEED ?? Date.now() % 1_000_000_007);

/** `UBIBLK_SOAK=1` asks for long runs. */
export const soak = process.env.UBIBLK_SOAK === '1';

export class Random {
  private state: number;

  constructor(start: number) {
    this.state = (Math.imul(start | 0, 0x9e3779b1) ^ 0x6c078965) | 1;
  }

  /** 32 random bits. */
  next(): number {
    this.state ^= this.state << 13;
    this.state ^= this.state >>> 17;
    this.state ^= this.state << 5;
    return this.state >>> 0;
  }

  below(limit: number): number {
    return this.next() % limit;
  }

  chance(oneIn: number): boolean {
    return this.below(oneIn) === 0;
  }

  pick<T>(choices: readonly T[]): T {
    return choices[this.below(choices.length)];
  }
}
