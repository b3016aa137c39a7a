import { writeSync } from 'node:fs';
import { isatty } from 'node:tty';
import { sizeText } from '../size_text.ts';

const stderrFd = 2;
const intervalMs = 250;
const lineIntervalMs = 10_000;
const clearToEnd = '\x1b[K';

export interface ProgressOptions {
  /** Where lines go; by default to stderr if that is a terminal, else nowhere. */
  write?: ((text: string) => void) | undefined;
  /** The time in milliseconds. */
  now?: () => number;
  /** Whole lines, now and then, for what isn't a terminal. */
  lines?: boolean;
}

/** Of work that may take hours: on a terminal as any other, else a line now and then, or nothing. */
export function longProgress(quiet: boolean): Progress {
  if (quiet) return new Progress({ write: undefined });
  return isatty(stderrFd) ? new Progress() : new Progress({ write: writeStderr, lines: true });
}

/**
 * One line on a terminal that tells how far a long work has come, written anew a few times a second:
 * `  45 %  1.2 GiB of 2.6 GiB  800 MiB/s  2 s left`. The rate is the mean since the beginning.
 */
export class Progress {
  readonly #write: ((text: string) => void) | undefined;
  readonly #now: () => number;
  readonly #startMs: number;
  readonly #lines: boolean;
  #shownMs: number;
  #shown = false;

  constructor(options: ProgressOptions = {}) {
    const { now = () => performance.now(), lines = false } = options;
    this.#write = 'write' in options ? options.write : terminal();
    this.#now = now;
    this.#lines = lines;
    this.#startMs = now();
    this.#shownMs = this.#startMs;
  }

  /** Notes how much is done, in bytes; the total may be undefined, where it isn't known yet. */
  update(doneBytes: number, totalBytes: number | undefined): void {
    if (this.#write === undefined) return;
    const nowMs = this.#now();
    // The first line comes after an interval: short works show none. The last one is never left out.
    const restMs = this.#lines ? lineIntervalMs : intervalMs;
    if (nowMs - this.#shownMs < restMs && !(this.#shown && doneBytes === totalBytes)) return;
    this.#shownMs = nowMs;
    this.#shown = !this.#lines;
    const seconds = Math.max(nowMs - this.#startMs, 1) / 1000;
    const line = progressLine(doneBytes, totalBytes, seconds);
    this.#write(this.#lines ? `${line.trimStart()}\n` : `\r${line}${clearToEnd}`);
  }

  /** Leaves the last line where it is. */
  end(): void {
    this.#finish('\n');
  }

  /** Removes the line, after which a message may stand in its place. */
  clear(): void {
    this.#finish(`\r${clearToEnd}`);
  }

  #finish(text: string): void {
    if (this.#shown) this.#write?.(text);
    this.#shown = false;
  }
}

function progressLine(doneBytes: number, totalBytes: number | undefined, seconds: number): string {
  const rate = `${sizeText(Math.round(doneBytes / seconds))}/s`;
  if (totalBytes === undefined) return `  ${sizeText(doneBytes)}  ${rate}`;
  const percent = totalBytes === 0 ? 100 : Math.floor((doneBytes / totalBytes) * 100);
  const parts = `${sizeText(doneBytes)} of ${sizeText(totalBytes)}  ${rate}`;
  const left = doneBytes > 0 ? (seconds * (totalBytes - doneBytes)) / doneBytes : 0;
  return `${String(percent).padStart(4)} %  ${parts}${left > 0 ? `  ${timeText(left)} left` : ''}`;
}

function timeText(seconds: number): string {
  const whole = Math.ceil(seconds);
  if (whole < 60) return `${whole} s`;
  const minutes = Math.ceil(whole / 60);
  return minutes < 60 ? `${minutes} min` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

function terminal(): ((text: string) => void) | undefined {
  return isatty(stderrFd) ? writeStderr : undefined;
}

function writeStderr(text: string): void {
  try {
    writeSync(stderrFd, text);
  } catch {
    // A terminal that has gone away is no reason to stop.
  }
}
