/**
 * Many disks with guests, faults and crashes, each from its seed: docs/testing.md.
 * suite time limit: 400 s
 */
import { expect, setDefaultTimeout, test } from 'bun:test';
import { seed, soak } from '../random.ts';
import { explain } from './simulation/replay.ts';
import type { Ending } from './simulation/scenario.ts';
import { simulate } from './simulation/simulation.ts';

/** Minutes pass in a long run. */
setDefaultTimeout(3_600_000);

const SEEDS = 20_000 * (soak ? 20 : 1);
const CUT_SEEDS = 20 * (soak ? 20 : 1);
const MAX_CUTS = 300;
/** Longer runs take too long for that. */
const MAX_STEPS = 1000;

test(`nothing is lost, mixed up or left waiting in ${SEEDS} simulated runs (from seed ${seed})`, () => {
  for (let i = 0; i < SEEDS; i++) {
    if (simulate(seed + i).violation !== null) throw new Error(explain(seed + i));
  }
});

test(`the first life may end after each of its events (from seed ${seed})`, () => {
  const endings: Ending[] = ['power cut', 'kill', 'stop'];
  for (let i = 0; i < CUT_SEEDS; i++) {
    const whole = simulate(seed + i).steps;
    if (whole > MAX_STEPS) continue;
    for (let steps = 0; steps < Math.min(whole, MAX_CUTS); steps++) {
      const ending = endings[steps % 7 < 5 ? 0 : (steps % 7) - 4];
      const { violation } = simulate(seed + i, { cutAt: { steps, ending } });
      expect(violation && `seed ${seed + i}, ${ending} after ${steps} events: ${violation}`).toBe(
        null,
      );
    }
  }
});

test('a seed decides everything', () => {
  const trace = (from: number): string => {
    const lines: string[] = [];
    for (let i = 0; i < 20; i++) simulate(from + i, { trace: (line) => lines.push(line) });
    return lines.join('\n');
  };
  const first = trace(seed);
  expect(first.split('\n').length).toBeGreaterThan(1000);
  expect(trace(seed) === first).toBe(true);
  expect(trace(seed + 20) === first).toBe(false);
});

test('autofetch finds the one stripe at the end of a large disk', () => {
  const stripes = 200_000;
  const outcome = simulate(seed, {
    scenario: {
      shift: 0,
      stripes,
      diskSectors: stripes,
      sourceBytes: stripes * 512,
      hasSource: Array.from({ length: stripes }, (_, i) => i === stripes - 1),
      zeroStripes: [],
      image: false,
      autofetch: true,
      queues: 1,
      depth: 1,
      lives: [{ ending: 'stop', steps: 0, requests: 0 }],
    },
  });
  expect(outcome.violation).toBe(null);
});
