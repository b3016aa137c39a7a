/** Lists and pictures of stripes, against the simplest way to make them. */
import { expect, test } from 'bun:test';
import { stripeMap } from '../../src/commands/stripe_map.ts';
import { jsonRangeTexts, rangeTexts, stripeRanges } from '../../src/commands/stripe_ranges.ts';
import { Random, seed } from '../random.ts';

/** As in spec/cli.md: runs of three and more as `a-b`. */
function simpleList(stripes: number[]): string {
  const text = stripes.map((stripe, i) => {
    const inside = stripes[i - 1] === stripe - 1 && stripes[i + 1] === stripe + 1;
    return inside ? '-' : String(stripe);
  });
  return text.join(', ').replace(/(, -)+, /g, '-');
}

test(`lists of any runs are those of the specification (${seed})`, () => {
  const random = new Random(seed);
  for (const length of [0, 1, 2, 3, 10, 500, 100_000]) {
    for (const oneIn of [1, 2, 3, 10, 1000]) {
      const headers = Uint8Array.from({ length }, () => (random.chance(oneIn) ? 5 : 4));
      const stripes = [...headers.keys()].filter((stripe) => headers[stripe] === 5);
      const parts = [...rangeTexts(headers, 1)];
      expect(parts.join('')).toBe(simpleList(stripes));
      expect(Math.max(0, ...parts.map((part) => part.length))).toBeLessThan(66_000);
      const json = [...jsonRangeTexts(headers, 1)];
      expect(Math.max(0, ...json.map((part) => part.length))).toBeLessThan(66_000);
      expect(JSON.parse(`[${json.join('')}]`)).toEqual([...stripeRanges(headers, 1)]);
      const listed = [...stripeRanges(headers, 1)].flatMap(([first, last]) =>
        Array.from({ length: last - first + 1 }, (_, i) => first + i),
      );
      expect(listed).toEqual(stripes);
    }
  }
});

test(`a map of any size fits, and no stripe is left out (${seed})`, () => {
  const random = new Random(seed);
  for (let round = 0; round < 100; round++) {
    const length = 1 + random.below(round % 10 === 0 ? 200_000 : 2000);
    const headers = Uint8Array.from({ length }, () => random.pick([0, 1, 2, 4, 4, 5, 6, 7]));
    const [columns, rows] = [20 + random.below(150), 8 + random.below(50)];
    const text = stripeMap(headers, {
      columns,
      rows,
      colours: false,
      stripeBytes: 1024,
      lastStripeBytes: 512,
    });
    const lines = text.trimEnd().split('\n');
    // One line is the prompt's.
    expect(lines.length).toBeLessThan(rows);
    const perCell = Number(/(\S+) in each place/.exec(text)?.[1].replace('one', '1'));
    const cells = lines.filter((line) => /^ *\d+ {2}[.=#~]+$/.test(line));
    expect(Math.max(...cells.map((line) => line.length))).toBeLessThanOrEqual(columns);
    let stripe = 0;
    for (const line of cells) {
      expect(Number(line.trimStart().split(' ')[0])).toBe(stripe);
      for (const sign of line.replace(/^ *\d+ {2}/, '')) {
        const kinds = new Set([...headers.subarray(stripe, stripe + perCell)].map(signOf));
        expect(sign).toBe(kinds.size === 1 ? [...kinds][0] : '~');
        stripe += perCell;
      }
    }
    expect(Math.ceil(length / perCell) * perCell).toBe(stripe);
    const count = (sign: string) => [...headers].filter((header) => signOf(header) === sign).length;
    expect(text).toContain(
      `= local ${count('=')}   # written ${count('#')}   . missing ${count('.')}`,
    );
    expect(text).toEndWith(`stripe ${length - 1}, the last one, has only 512 bytes\n`);
  }
});

function signOf(header: number): string {
  return { 0: '=', 1: '=', 2: '#', 4: '.', 5: '=', 6: '.', 7: '#' }[header] ?? '?';
}
