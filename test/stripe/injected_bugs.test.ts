/**
 * The simulation can fail: each of these bugs, put into the program, is found by it.
 * suite time limit: 400 s
 */
import { expect, setDefaultTimeout, test } from 'bun:test';
import { bugs } from './simulation/bugs/all.ts';
import { explain } from './simulation/replay.ts';
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

test('a failure is told with what led to it, and how to see it again', () => {
  const bug = bugs[0];
  let seed = 1;
  while (simulate(seed, { bug }).violation === null) seed++;
  const lines = explain(seed, { bug }).split('\n');
  expect(lines.length).toBeGreaterThan(10);
  expect(lines.some((line) => /^ *[\d.]+ (guest|main|disk): /.test(line))).toBe(true);
  expect(lines.at(-2)).toStartWith(`seed ${seed}: a power cut may leave`);
  expect(lines.at(-1)).toEndWith(`npm run simulate -- --seeds 1 --from ${seed} --trace`);
});

test('no two bugs have one name', () => {
  expect(new Set(bugs.map(({ name }) => name)).size).toBe(bugs.length);
});
