/** Runs the simulation of lazy disks over a range of seeds, up to the first that finds something. */
import { parseArgs } from 'node:util';
import { seed as randomSeed } from '../test/random.ts';
import { explain } from '../test/stripe/simulation/replay.ts';
import { simulate } from '../test/stripe/simulation/simulation.ts';

const DEFAULT_SEEDS = 10_000;
const PROGRESS_MS = 200;
const MAX_NUMBER = 2 ** 31;

class UsageError extends Error {}

function numberOf(option: string, text: string | undefined, otherwise: number): number {
  if (text === undefined) return otherwise;
  const number = Number(text);
  if (/^\d+$/.test(text) && number < MAX_NUMBER) return number;
  throw new UsageError(`${option} takes a number below ${MAX_NUMBER}, not '${text}'`);
}

function readOptions(words: string[]): { seeds: number; from: number; trace: boolean } {
  try {
    const { values } = parseArgs({
      args: words,
      options: { seeds: { type: 'string' }, from: { type: 'string' }, trace: { type: 'boolean' } },
    });
    const seeds = numberOf('--seeds', values.seeds, DEFAULT_SEEDS);
    return {
      seeds,
      from: numberOf('--from', values.from, randomSeed),
      trace: values.trace ?? false,
    };
  } catch (error) {
    throw error instanceof UsageError ? error : new UsageError((error as Error).message);
  }
}

/** Says on a terminal how far it is, now and then. */
function progress(seeds: number): (done: number) => void {
  let saidMs = performance.now();
  return (done) => {
    const nowMs = performance.now();
    if (!process.stderr.isTTY || (nowMs - saidMs < PROGRESS_MS && done < seeds)) return;
    saidMs = nowMs;
    const percent = Math.floor((done * 100) / seeds);
    process.stderr.write(`\r${done} of ${seeds} seeds (${percent} %)${done === seeds ? '\n' : ''}`);
  };
}

function run(words: string[]): number {
  const { seeds, from, trace } = readOptions(words);
  const say = progress(seeds);
  let events = 0;
  for (let done = 0; done < seeds; done++) {
    const seed = from + done;
    const outcome = simulate(seed, trace ? { trace: (line) => console.log(line) } : {});
    events += outcome.steps;
    if (outcome.violation !== null) {
      if (process.stderr.isTTY) process.stderr.write('\n');
      console.log(trace ? `seed ${seed}: ${outcome.violation}` : explain(seed));
      return 1;
    }
    say(done + 1);
  }
  console.log(`${seeds} seeds from ${from}, ${events} events: nothing wrong`);
  return 0;
}

try {
  process.exitCode = run(process.argv.slice(2));
} catch (error) {
  if (!(error instanceof UsageError)) throw error;
  process.stderr.write(`simulate: ${error.message}\n`);
  process.exitCode = 2;
}
