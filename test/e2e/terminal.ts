/** A terminal to try what people see: one of tmux. */
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { within } from './processes.ts';
import type { Bed } from './support.ts';

/** A terminal of a size, with a command in it. */
export class Terminal {
  private readonly socket: string;

  constructor(
    bed: Bed,
    argv: string[],
    columns: number,
    rows: number,
    env: Record<string, string> = {},
  ) {
    this.socket = bed.path(`tmux${columns}x${rows}`);
    const shell = argv.map((word) => `'${word}'`).join(' ');
    const variables = Object.entries(env).flatMap(([name, value]) => ['-e', `${name}=${value}`]);
    const size = ['-x', String(columns), '-y', String(rows)];
    this.tmux(
      '-f',
      '/dev/null',
      'new-session',
      '-d',
      ...variables,
      ...size,
      `${shell}; echo "ended $?"; cat`,
    );
  }

  private tmux(...argv: string[]): string {
    const done = spawnSync('tmux', ['-S', this.socket, ...argv], { encoding: 'utf8' });
    if (done.status !== 0) throw new Error(`tmux ${argv.join(' ')}: ${done.stderr}`);
    return done.stdout;
  }

  /** What is on the screen. @param colours with the codes of colours */
  screen(colours = false): string {
    return this.tmux('capture-pane', '-p', ...(colours ? ['-e'] : []));
  }

  keys(...keys: string[]): void {
    this.tmux('send-keys', ...keys);
  }

  /** The process that the shell of the terminal waits for. */
  get pid(): number {
    const shell = this.tmux('display-message', '-p', '#{pane_pid}').trim();
    const children = readFileSync(`/proc/${shell}/task/${shell}/children`, 'utf8');
    return Number(children.trim());
  }

  /** Whether the cursor is shown, and whether the screen is another one than the shell's. */
  get state(): string {
    return this.tmux('display-message', '-p', '#{cursor_flag} #{alternate_on}').trim();
  }

  resize(columns: number, rows: number): void {
    this.tmux('resize-window', '-x', String(columns), '-y', String(rows));
  }

  /** Waits until the screen is as wanted. */
  async shows(pattern: RegExp): Promise<string> {
    let last = '';
    const find = async () => {
      for (;;) {
        last = this.screen();
        if (pattern.test(last)) return last;
        await Bun.sleep(50);
      }
    };
    return await within(find(), 20_000, () => `${pattern} on\n${last}`);
  }

  [Symbol.dispose](): void {
    spawnSync('tmux', ['-S', this.socket, 'kill-server']);
  }
}
