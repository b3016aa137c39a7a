/** What an NBD server has told of its zeroes (`base:allocation`), asked for in large ranges. */
import { KNOWN_ZERO } from '../stripe/interfaces.ts';
import type { Extent, NbdConnection } from './connection.ts';

/** Asked for at once, in bytes: servers answer with as much of it as they care to. */
const ASKED_BYTES = 2 ** 30;
const UNKNOWN = 0;
const DATA = 1;

type Ask = (question: (connection: NbdConnection) => Promise<Extent[]>) => Promise<Extent[]>;

export class ZeroMap {
  /** One byte for each stripe. */
  readonly shared: SharedArrayBuffer;
  private readonly states: Uint8Array;
  private asking: Promise<void> | null = null;

  constructor(
    private readonly sizeBytes: number,
    private readonly stripeBytes: number,
  ) {
    this.shared = new SharedArrayBuffer(Math.ceil(sizeBytes / stripeBytes));
    this.states = new Uint8Array(this.shared);
  }

  /** Whether all of a stripe is zeroes, as the server says. @param ask puts a question to it */
  async isZero(stripe: number, ask: Ask): Promise<boolean> {
    while (this.states[stripe] === UNKNOWN) {
      if (this.asking) {
        await this.asking;
        continue;
      }
      this.asking = this.learn(stripe, ask);
      try {
        await this.asking;
      } finally {
        this.asking = null;
      }
    }
    return this.states[stripe] === KNOWN_ZERO;
  }

  /** Learns of all stripes, one range after the other. @throws Error where the server can't be asked */
  async learnAll(ask: Ask): Promise<void> {
    for (let stripe = 0; stripe < this.states.length; stripe++) {
      if (this.states[stripe] === UNKNOWN) await this.isZero(stripe, ask);
    }
  }

  private async learn(stripe: number, ask: Ask): Promise<void> {
    const start = stripe * this.stripeBytes;
    const length = Math.min(Math.max(ASKED_BYTES, this.stripeBytes), this.sizeBytes - start);
    this.note(stripe, await ask((connection) => connection.extents(start, length)), start + length);
  }

  /** @param end of what was asked for: the last extent may go beyond */
  private note(first: number, extents: readonly Extent[], end: number): void {
    const { states, stripeBytes, sizeBytes } = this;
    let at = first * stripeBytes;
    for (const { length, zero } of extents) {
      const until = Math.min(at + length, end);
      if (!zero && until > at) {
        states.fill(DATA, Math.floor(at / stripeBytes), Math.ceil(until / stripeBytes));
      }
      at = until;
    }
    const endOf = (stripe: number) => Math.min((stripe + 1) * stripeBytes, sizeBytes);
    for (let stripe = first; stripe < states.length && endOf(stripe) <= at; stripe++) {
      if (states[stripe] === UNKNOWN) states[stripe] = KNOWN_ZERO;
    }
    // Of the one that was asked for something is known in any case.
    if (states[first] === UNKNOWN) states[first] = DATA;
  }
}
