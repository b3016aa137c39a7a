/**
 * The test runner behind `npm test`: runs each suite as a process with a hard time limit, because a
 * test that blocks in an FFI call can't be stopped from within, and sums up their numbers. What a
 * suite starts inherits a mark in its environment, by which left-overs are found and killed.
 * Suites are found by folder:
 *
 *   c/test/*_test.c                          C tests, built with AddressSanitizer and UBSan
 *   src, ffi, test: **\/*.test.ts             unit tests, two files at a time
 *   test/e2e/**\/*.test.ts                    end-to-end tests of dist/ubiblk, one after the other
 *   test/vm/**\/*.test.ts                     tests in a virtual machine, one after the other
 *
 * A file whose comment says `suite time limit: 900 s` gets that instead of its folder's limit.
 */
import { spawn } from 'node:child_process';
import { closeSync, mkdirSync, openSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { basename } from 'node:path';

const LOGS = 'build/test';
/** With UBIBLK_SOAK=1 suites may take this many times their limit. */
const SOAK_FACTOR = 10;
const LOG_TAIL_LINES = 200;
const MARK = 'UBIBLK_TEST_SUITE';

interface Counts {
  passed: number;
  failed: number;
  skipped: number;
}

interface Suite {
  name: string;
  command: string[];
  timeLimitS: number;
  /** Reads the numbers from what the process left; null where they can't be told. Without it, the
   * process counts as one test. */
  count?: (run: Run) => Counts | null;
  /** Suites that follow one another are run together where they have the same number here. */
  parallel?: number;
}

interface Run {
  output: string;
  junitPath: string;
}

interface Outcome extends Counts {
  notes: string[];
}

const soak = process.env.UBIBLK_SOAK === '1';
const bun = process.execPath;
/** The marks of the suites that run now. */
const running = new Set<string>();
let suitesRun = 0;

function step(name: string, timeLimitS: number, ...command: string[]): Suite {
  return { name, command, timeLimitS };
}

function countLine(run: Run): Counts | null {
  const match = /^(\d+) passed, (\d+) failed$/m.exec(run.output);
  return match && { passed: Number(match[1]), failed: Number(match[2]), skipped: 0 };
}

function countJunit(run: Run): Counts | null {
  let xml: string;
  try {
    xml = readFileSync(run.junitPath, 'utf8');
  } catch {
    return null;
  }
  const head = /<testsuites [^>]*>/.exec(xml)?.[0] ?? '';
  const number = (name: string) => Number(new RegExp(` ${name}="(\\d+)"`).exec(head)?.[1] ?? 0);
  const [tests, failed, skipped] = [number('tests'), number('failures'), number('skipped')];
  return { passed: tests - failed - skipped, failed, skipped };
}

function bunSuites(kind: string, files: string[], timeLimitS: number, parallel: number): Suite[] {
  return files.sort().map((path) => ({
    name: `${kind} ${path}`,
    command: [bun, 'test', `--timeout=${timeLimitS * 1000}`, `./${path}`],
    timeLimitS: Number(
      /suite time limit: (\d+) s/.exec(readFileSync(path, 'utf8'))?.[1] ?? timeLimitS,
    ),
    count: countJunit,
    parallel,
  }));
}

function glob(pattern: string): string[] {
  return [...new Bun.Glob(pattern).scanSync('.')].sort();
}

function staticSuites(): Suite[] {
  const scripts = [
    ...glob('scripts/*'),
    ...glob('packaging/deb/*'),
    ...glob('test/**/*'),
    '.ci/run',
  ].filter((path) => /^#!.*\b(ba)?sh\b/.test(readFileSync(path, 'latin1').slice(0, 80)));
  const c = [...glob('c/**/*.c'), ...glob('c/**/*.h'), ...glob('test/**/*.c')];
  return [
    step('biome', 120, 'node_modules/.bin/biome', 'check', '--error-on-warnings', '.'),
    step('tsc', 300, 'node_modules/.bin/tsc', '-p', '.'),
    step('clang-format', 120, 'clang-format', '--dry-run', '--Werror', ...c),
    step('shellcheck', 120, 'shellcheck', '-x', 'scripts/common.sh', ...scripts),
  ];
}

function testSuites(): Suite[] {
  const files = ['src', 'ffi', 'test'].flatMap((folder) => glob(`${folder}/**/*.test.ts`));
  const e2e = files.filter((path) => path.startsWith('test/e2e/'));
  const vm = files.filter((path) => path.startsWith('test/vm/'));
  const unit = files.filter((path) => !e2e.includes(path) && !vm.includes(path));
  const cTests = glob('c/test/*_test.c').map((path) => `build/c/test/${basename(path, '.c')}`);
  return [
    step('build dist/ubiblk', 600, 'scripts/build'),
    step('build C tests with sanitizers', 300, 'make', '-s', '-C', 'c', 'tests'),
    ...cTests.map((path) => ({
      name: `C ${basename(path)}`,
      command: [path],
      timeLimitS: 120,
      count: countLine,
    })),
    ...bunSuites('unit', unit, 120, 2),
    ...bunSuites('e2e', e2e, 600, 1),
    ...bunSuites('vm', vm, 900, 1),
  ];
}

function logBase(suite: Suite): string {
  return `${LOGS}/${suite.name.replaceAll(/[^\w.-]+/g, '_')}`;
}

/** Kills the processes that carry the mark, also those with a session of their own. */
function killMarked(mark: string): boolean {
  let any = false;
  for (const entry of readdirSync('/proc')) {
    if (!/^\d+$/.test(entry)) continue;
    try {
      const environment = `\0${readFileSync(`/proc/${entry}/environ`, 'latin1')}`;
      if (!environment.includes(`\0${MARK}=${mark}\0`)) continue;
      process.kill(Number(entry), 'SIGKILL');
      any = true;
    } catch {
      // It ended meanwhile, or it is another user's.
    }
  }
  return any;
}

/** Runs the process to its end or its time limit; whatever it left running is killed. */
async function runSuite(suite: Suite): Promise<Outcome> {
  const [logPath, junitPath] = [`${logBase(suite)}.log`, `${logBase(suite)}.xml`];
  const command = [...suite.command];
  if (command[1] === 'test') {
    command.splice(2, 0, '--reporter=junit', `--reporter-outfile=${junitPath}`);
  }
  rmSync(junitPath, { force: true });

  // Output goes to a file: a pipe would stay open for as long as any grandchild lives.
  const log = openSync(logPath, 'w');
  const mark = `${process.pid}-${++suitesRun}`;
  const child = spawn(command[0], command.slice(1), {
    detached: true,
    env: { ...process.env, [MARK]: mark },
    stdio: ['ignore', log, log],
  });
  closeSync(log);
  running.add(mark);
  const notes: string[] = [];
  const limitMs = suite.timeLimitS * 1000 * (soak ? SOAK_FACTOR : 1);
  const timer = setTimeout(() => {
    notes.push(`killed after ${limitMs / 1000} s, its time limit`);
    killMarked(mark);
  }, limitMs);
  const exitCode = await new Promise<number | null>((resolve) => {
    child.on('exit', (code, signal) => {
      if (signal && notes.length === 0) notes.push(`ended by ${signal}`);
      resolve(code);
    });
    child.on('error', (error) => {
      notes.push(error.message);
      resolve(null);
    });
  });
  clearTimeout(timer);
  if (killMarked(mark) && notes.length === 0) {
    notes.push('left processes behind, which were killed');
  }
  running.delete(mark);

  const output = readFileSync(logPath, 'utf8');
  const counts = suite.count
    ? suite.count({ output, junitPath })
    : { passed: exitCode === 0 ? 1 : 0, failed: 0, skipped: 0 };
  const result: Outcome = { passed: 0, failed: 0, skipped: 0, ...counts, notes };
  if (exitCode !== 0 && result.failed === 0) result.failed = 1;
  if (result.passed + result.failed + result.skipped === 0) {
    notes.push('ran no test');
    result.failed = 1;
  }
  return result;
}

function summary(counts: Counts): string {
  const skipped = counts.skipped > 0 ? `, ${counts.skipped} skipped` : '';
  return `${counts.passed} passed, ${counts.failed} failed${skipped}`;
}

function report(suite: Suite, outcome: Outcome, seconds: number): void {
  const mark = outcome.failed > 0 ? 'FAIL' : 'ok  ';
  const notes = outcome.notes.map((note) => `; ${note}`).join('');
  console.log(`${mark} ${suite.name} (${summary(outcome)}, ${seconds.toFixed(1)} s${notes})`);
  const log = `${logBase(suite)}.log`;
  const lines = readFileSync(log, 'utf8').trimEnd().split('\n');
  if (outcome.failed === 0) {
    for (const line of lines) if (line.startsWith('(skip)')) console.log(`     ${line}`);
    return;
  }
  if (lines.length > LOG_TAIL_LINES) console.log(`     ... the whole of it is in ${log}`);
  for (const line of lines.slice(-LOG_TAIL_LINES)) console.log(`     ${line}`);
}

/** Splits the list into runs of neighbours that may share the machine. */
function groups(suites: Suite[]): Suite[][] {
  const result: Suite[][] = [];
  for (const suite of suites) {
    const last = result.at(-1);
    if (last && (suite.parallel ?? 1) > 1 && last[0].parallel === suite.parallel) last.push(suite);
    else result.push([suite]);
  }
  return result;
}

async function main(words: string[]): Promise<number> {
  const checkOnly = words.includes('--check');
  const wanted = words.filter((word) => word !== '--check');
  const unknown = wanted.find((word) => word.startsWith('-'));
  if (unknown) {
    process.stderr.write(`test: unknown option '${unknown}': only --check is known\n`);
    return 2;
  }
  mkdirSync(LOGS, { recursive: true });
  const all = checkOnly ? staticSuites() : [...staticSuites(), ...testSuites()];
  const suites = all.filter(
    (suite) => wanted.length === 0 || wanted.some((word) => suite.name.includes(word)),
  );

  const total: Counts = { passed: 0, failed: 0, skipped: 0 };
  for (const group of groups(suites)) {
    const queue = [...group];
    const worker = async () => {
      for (let suite = queue.shift(); suite; suite = queue.shift()) {
        const startMs = performance.now();
        const outcome = await runSuite(suite);
        report(suite, outcome, (performance.now() - startMs) / 1000);
        total.passed += outcome.passed;
        total.failed += outcome.failed;
        total.skipped += outcome.skipped;
      }
    };
    await Promise.all(Array.from({ length: group[0].parallel ?? 1 }, worker));
  }
  if (suites.length === 0) {
    process.stderr.write(`test: no suite's name has '${wanted.join("' or '")}' in it\n`);
    total.failed = 1;
  }
  console.log(summary(total));
  return total.failed === 0 ? 0 : 1;
}

for (const [signal, status] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  process.on(signal, () => {
    for (const mark of running) killMarked(mark);
    process.exit(status);
  });
}
process.exitCode = await main(process.argv.slice(2));
