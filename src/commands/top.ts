import { isatty } from 'node:tty';
import { UsageError } from '../errors.ts';
import type { Log } from '../log.ts';
import { frame } from '../top/frame.ts';
import { jsonLine, plainLine } from '../top/lines.ts';
import { type View, Watch } from '../top/watch.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { secondsOf } from './seconds.ts';

const stdoutFd = 1;
const DEFAULT_INTERVAL_S = 1;
/** A server that takes longer is shown as one that doesn't answer. */
const ANSWER_MS = 2000;
/** For so long the others wait for it. */
const PATIENCE_MS = 300;

/** `ubiblk top`: watches running disks (docs/top.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const sockets = [...args.all('socket'), ...args.operands];
  if (sockets.length === 0) throw new UsageError("option '--socket PATH' is required");
  const intervalS = secondsOf(args, 'interval', DEFAULT_INTERVAL_S);
  const watches = [...new Set(sockets)].map((socket) => new Watch(socket, ANSWER_MS));
  const print = (views: View[]) => {
    const now = new Date();
    if (args.has('json')) writeOutput(`${jsonLine(views, now)}\n`);
    else writeOutput(views.map((view) => `${plainLine(view, now)}\n`).join(''));
  };
  if (args.has('once')) return await once(watches, intervalS, print, log);
  if (args.has('json') || args.has('plain') || !canDraw()) {
    return await follow(watches, intervalS, print);
  }
  return await draw(watches, intervalS);
}

/** One that is dumb shows each code that moves its cursor. */
function canDraw(): boolean {
  const { TERM = 'dumb' } = process.env;
  return isatty(stdoutFd) && TERM !== 'dumb';
}

function look(watches: readonly Watch[], patienceMs?: number): Promise<View[]> {
  return Promise.all(watches.map((watch) => watch.look(patienceMs)));
}

/** What happens in one interval. @returns 1 where a server isn't there */
async function once(
  watches: readonly Watch[],
  intervalS: number,
  print: (views: View[]) => void,
  log: Log,
): Promise<number> {
  const first = await look(watches);
  const missing = first.filter(({ problem }) => problem !== null);
  for (const { problem } of missing) log.error(problem ?? '');
  if (missing.length === first.length) return 1;
  await Bun.sleep(intervalS * 1000);
  const last = await look(watches);
  print(last);
  return [...first, ...last].some(({ problem }) => problem !== null) ? 1 : 0;
}

/** Prints until a signal. */
async function follow(
  watches: readonly Watch[],
  intervalS: number,
  print: (views: View[]) => void,
): Promise<number> {
  const stopped = new Promise<true>((resolve) => {
    for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => resolve(true));
  });
  for await (const views of looks(watches, intervalS, stopped)) print(views);
  return 0;
}

/** Draws until the user has had enough. */
async function draw(watches: readonly Watch[], intervalS: number): Promise<number> {
  const { Screen } = await import('../top/screen.ts');
  let views: View[] = [];
  const show = () => screen.show(frame(views, intervalS, screen.size));
  const screen = new Screen(show);
  const quit = screen.quit.then(() => true as const);
  try {
    for await (views of looks(watches, intervalS, quit)) show();
  } finally {
    screen.close();
  }
  return 0;
}

/** Looks at fixed times, however long an answer takes, until the end comes. */
async function* looks(
  watches: readonly Watch[],
  intervalS: number,
  end: Promise<true>,
): AsyncGenerator<View[]> {
  let nextMs = performance.now();
  for (;;) {
    const views = await Promise.race([look(watches, PATIENCE_MS), end]);
    if (views === true) return;
    yield views;
    nextMs = Math.max(nextMs + intervalS * 1000, performance.now());
    const waited = Bun.sleep(nextMs - performance.now()).then(() => false as const);
    if (await Promise.race([waited, end])) return;
  }
}
