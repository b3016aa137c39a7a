import { Random } from '../../random.ts';

/** The random choices of one run: its seed alone decides them all. */
export class Dice extends Random {
  constructor(seed: number) {
    super(seed);
    // Neighbouring seeds begin alike.
    for (let i = 0; i < 8; i++) this.next();
  }

  /** From 0 up to 1. */
  real(): number {
    return this.next() / 2 ** 32;
  }

  /** From `from` to `to`, both possible. */
  between(from: number, to: number): number {
    return from + this.below(to - from + 1);
  }

  /** How long something takes that mostly takes about `meanMs`: nothing at all, or ten times that, too. */
  delayMs(meanMs: number): number {
    const kind = this.below(16);
    if (kind === 0) return 0;
    return 2 * meanMs * this.real() * (kind === 1 ? 10 : 1);
  }
}
