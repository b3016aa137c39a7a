import { writeSync } from 'node:fs';
import { isatty } from 'node:tty';
import { sizeText } from '../size_text.ts';

const stderrFd = 2;
const intervalMs = 250;
const clearToEnd = '\x1b[K';

export interface ProgressOptions {
  /** Where lines go; by default to stderr if that is a terminal, else nowhere. */
  write?: ((text: string) => void) | undefined;
  /** The time in milliseconds. */
  now?: () => number;
}

/**
 * One line on a terminal that tells how far a long work has come, written anew a few times a second:
 * `  45 %  1.2 GiB of 2.6 GiB  800 MiB/s`. The rate is the mean since the beginning.
 */
export class Progress {
  readonly #write: ((text: string) => void) | undefined;
  readonly #now: () => number;
  readonly #startMs: number;
  #shownMs: number;
  #shown = false;

  constructor({ write = terminal(), now = () => performance.now() }: ProgressOptions = {}) {
    this.#write = write;
    this.#now = now;
    this.#startMs = now();
    this.#shownMs = this.#startMs;
  }

  /** Notes how much is done, in bytes; the total may be undefined, where it isn't known yet. */
  update(doneBytes: number, totalBytes: number | undefined): void {
    if (this.#write === undefined) return;
    const nowMs = this.#now();
    // The first line comes after an interval: short works show none. The last one is never left out.
    if (nowMs - this.#shownMs < intervalMs && !(this.#shown && doneBytes === totalBytes)) return;
    this.#shownMs = nowMs;
    this.#shown = true;
    const seconds = Math.max(nowMs - this.#startMs, 1) / 1000;
    this.#write(`\r${progressLine(doneBytes, totalBytes, seconds)}${clearToEnd}`);
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
  return `${String(percent).padStart(4)} %  ${sizeText(doneBytes)} of ${sizeText(totalBytes)}  ${rate}`;
}

function terminal(): ((text: string) => void) | undefined {
  if (!isatty(stderrFd)) return undefined;
  return (text) => {
    try {
      writeSync(stderrFd, text);
    } catch {
      // A terminal that has gone away is no reason to stop.
    }
  };
}
