import { type RunOptions, simulate } from './simulation.ts';

const TRACE_LINES = 60;

/** What went wrong with a seed, how it came to that, and how to see it again. */
export function explain(seed: number, options: RunOptions = {}): string {
  const lines: string[] = [];
  const { violation } = simulate(seed, { ...options, trace: (line) => lines.push(line) });
  return [
    `seed ${seed}, the last ${Math.min(TRACE_LINES, lines.length)} of ${lines.length} lines of its trace:`,
    ...lines.slice(-TRACE_LINES),
    `seed ${seed}: ${violation}`,
    `to see all of it: npm run simulate -- --seeds 1 --from ${seed} --trace`,
  ].join('\n');
}
