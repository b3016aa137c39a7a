/** A terminal that shows one picture after the other, and gets back what it had when that is over. */
import ansiEscapes from 'ansi-escapes';
import { createLogUpdate } from 'log-update';
import type { FrameSize } from './frame.ts';

const CTRL_C = 3;

export class Screen {
  private readonly update = createLogUpdate(process.stdout);
  /** Resolves when the user has had enough. */
  readonly quit: Promise<void>;
  private readonly ended = Promise.withResolvers<void>();

  /** @param onResize is called when the picture must be drawn anew */
  constructor(onResize: () => void) {
    this.quit = this.ended.promise;
    process.stdout.write(ansiEscapes.enterAlternativeScreen);
    process.stdout.on('resize', () => {
      // What is there may have been broken up: nothing of it is drawn over.
      this.update.done();
      process.stdout.write(ansiEscapes.clearViewport);
      onResize();
    });
    process.on('exit', this.restore);
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
      process.on(signal, () => this.ended.resolve());
    }
    const { stdin } = process;
    if (!stdin.isTTY) return;
    stdin.setRawMode(true);
    stdin.on('data', (keys: Buffer) => {
      if (keys.includes(CTRL_C) || /q/i.test(keys.toString())) this.ended.resolve();
    });
    stdin.on('end', () => this.ended.resolve());
  }

  get size(): FrameSize {
    // A serial line, or a terminal that nobody has told its size, has none: 0.
    const { columns, rows } = process.stdout;
    return { columns: columns || 80, rows: rows || 24, colour: !process.env.NO_COLOR };
  }

  show(lines: readonly string[]): void {
    this.update(lines.join('\n'));
  }

  close(): void {
    process.off('exit', this.restore);
    this.restore();
  }

  private readonly restore = (): void => {
    this.update.done();
    if (process.stdin.isTTY) process.stdin.setRawMode(false);
    process.stdout.write(ansiEscapes.exitAlternativeScreen + ansiEscapes.cursorShow);
  };
}
