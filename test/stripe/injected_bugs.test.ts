/** The simulation can fail: each of these bugs, put into the program, is found by it. */
import { expect, setDefaultTimeout, test } from 'bun:test';
import { bugs } from './simulation/bugs/all.ts';
import { simulate } from './simulation/simulation.ts';

/** Some are found late on a machine with other work. */
setDefaultTimeout(120_000);

/** The rarest of them needs some thousand. */
const MAX_SEEDS = 30_000;

function firstFailure(run: (seed: number) => string | null): string | null {
  for (let seed = 1; seed <= MAX_SEEDS; seed++) {
    const violation = run(seed);
    if (violation !== null) return `seed ${seed}: ${violation}`;
  }
  return null;
}

test('without a bug, the seeds used here find nothing', () => {
  for (let seed = 1; seed <= 1000; seed++) expect(simulate(seed).violation).toBe(null);
});

for (const bug of bugs) {
  test(`found: ${bug.name}`, () => {
    expect(firstFailure((seed) => simulate(seed, { bug }).violation)).not.toBe(null);
  });
}

test('no two bugs have one name', () => {
  expect(new Set(bugs.map(({ name }) => name)).size).toBe(bugs.length);
});
