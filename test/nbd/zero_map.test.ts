/** Zero stripes are told from others by extents, however these are cut. */
import { expect, test } from 'bun:test';
import type { Extent } from '../../src/nbd/connection.ts';
import { ZeroMap } from '../../src/nbd/zero_map.ts';
import { Random, seed } from '../random.ts';

console.log(`seed ${seed} (UBIBLK_TEST_SEED=${seed} repeats this run)`);

test('a stripe is zero if and only if no data is told of in it', async () => {
  const random = new Random(seed);
  for (let round = 0; round < 300; round++) {
    const stripeBytes = 8 << random.below(3);
    const size = stripeBytes * (1 + random.below(20)) - random.below(stripeBytes);
    const zero = new Uint8Array(size);
    for (let at = 0; at < size; ) {
      const length = 1 + random.below(3 * stripeBytes);
      zero.fill(random.below(2), at, at + length);
      at += length;
    }
    // A server tells of as much as it likes, at least one extent, and may go beyond the range.
    const answer = (offset: number, length: number): Extent[] => {
      const extents: Extent[] = [];
      let at = offset;
      const most = 1 + random.below(4);
      while (at < offset + length && extents.length < most) {
        let end = at;
        while (end < size && zero[end] === zero[at]) end++;
        if (random.chance(3)) end = at + 1 + random.below(end - at);
        extents.push({ length: end - at, zero: zero[at] === 1 });
        at = end;
      }
      return extents;
    };
    const map = new ZeroMap(size, stripeBytes);
    const connection = {
      extents: async (offset: number, length: number) => answer(offset, length),
    };
    const stripes = Math.ceil(size / stripeBytes);
    for (let i = 0; i < 2 * stripes; i++) {
      const stripe = random.below(stripes);
      const told = await map.isZero(stripe, (ask) => ask(connection as never));
      const truth = zero.subarray(stripe * stripeBytes, (stripe + 1) * stripeBytes);
      // Zero stripes may be taken for data where extents end in them, data never for zeroes.
      if (told) expect(truth.every((byte) => byte === 1)).toBe(true);
      if (truth.every((byte) => byte === 0)) expect(told).toBe(false);
    }
  }
});
