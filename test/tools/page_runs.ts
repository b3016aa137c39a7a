/**
 * Runs what pages show, as they print it:
 *
 *     bun test/tools/page_runs.ts PAGE...
 *
 * An indented block that begins with `$ ` is a piece of a shell's session: commands behind `$ `, what follows
 * them of a command behind `> `, and else what is printed, by the command or by what runs in the
 * background. All blocks of a page are one session, in an empty folder, in which `ubiblk` and the names of
 * the reference system's programs are the executable under test. Every command must succeed. Of what is
 * printed, `...` stands for anything within a line, and for any number of lines where it is alone in one.
 */
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { programsOf } from '../../src/commands/completion_words.ts';
import { commands } from '../../src/commands/table.ts';
import { binary, within } from '../e2e/processes.ts';

export interface PageRun {
  /** The line of the page, from 1. */
  line: number;
  command: string;
  printed: string[];
}

const DEADLINE_MS = 120_000;
const PRINT_DEADLINE_MS = 10_000;
const INDENT = '    ';

/** The runs of a page, in their order. */
export function runsOf(markdown: string): PageRun[] {
  const runs: PageRun[] = [];
  let run: PageRun | null = null;
  for (const [index, text] of markdown.split('\n').entries()) {
    const line = text.startsWith(INDENT) ? text.slice(INDENT.length) : null;
    if (line?.startsWith('$ ')) {
      run = { line: index + 1, command: line.slice(2), printed: [] };
      runs.push(run);
    } else if (line === null) {
      run = null;
    } else if (run && line.startsWith('> ') && run.printed.length === 0) {
      run.command += `\n${line.slice(2)}`;
    } else {
      run?.printed.push(line);
    }
  }
  return runs;
}

/** What was printed, as the page has it. */
export function patternOf(printed: readonly string[]): RegExp {
  const lines = printed.map((line) => {
    if (line === '...') return '(?:.*\\n)*?';
    const parts = line.split('...').map((part) => part.replace(/[.*+?^${}()|[\]\\]/g, '\\$&'));
    return `${parts.join('.*')}\\n`;
  });
  return new RegExp(`^${lines.join('')}$`);
}

/** A shell that is fed one command after the other. */
class Session {
  private readonly shell: Bun.Subprocess<'pipe', 'pipe', 'inherit'>;
  private readonly folder = mkdtempSync(join(tmpdir(), 'ubiblk-page-'));
  private output = '';
  private wake = () => {};
  private count = 0;

  constructor() {
    const bin = join(this.folder, '.bin');
    mkdirSync(bin);
    for (const name of ['ubiblk', ...programsOf(commands).map((program) => program.name)]) {
      symlinkSync(binary, join(bin, name));
    }
    const path = `${bin}:${process.env.PATH}:/usr/sbin:/sbin`;
    this.shell = Bun.spawn(['bash', '--norc', '-c', 'exec 2>&1; exec bash --norc'], {
      cwd: this.folder,
      env: {
        PATH: path,
        HOME: this.folder,
        LC_ALL: 'C.UTF-8',
        TERM: 'dumb',
        XDG_RUNTIME_DIR: this.folder,
      },
      stdin: 'pipe',
      stdout: 'pipe',
      stderr: 'inherit',
      detached: true,
    });
    this.read();
  }

  private async read(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const chunk of this.shell.stdout) {
      this.output += decoder.decode(chunk, { stream: true });
      this.wake();
    }
  }

  /** Runs a command. @throws Error where it fails, or prints something else */
  async run({ command, printed }: PageRun): Promise<void> {
    this.shell.stdin.write(`${command}\nprintf '\\001%s %s\\n' ${++this.count} $?\n`);
    this.shell.stdin.flush();
    const mark = new RegExp(`\x01${this.count} (\\d+)\n`);
    await this.until(() => mark.test(this.output), DEADLINE_MS, 'its end');
    const status = mark.exec(this.output)?.[1];
    this.output = this.output.replace(mark, '');
    if (status !== '0') throw new Error(`exit status ${status}:\n${this.output}`);
    // What runs in the background may still be at it.
    const pattern = patternOf(printed);
    const expected = `this output:\n${printed.join('\n')}`;
    await this.until(() => pattern.test(this.output), PRINT_DEADLINE_MS, expected);
    this.output = '';
  }

  private async until(isSo: () => boolean, deadlineMs: number, what: string): Promise<void> {
    const wait = async () => {
      while (!isSo()) {
        const { promise, resolve } = Promise.withResolvers<void>();
        this.wake = resolve;
        await promise;
      }
    };
    await within(wait(), deadlineMs, () => `${what}\n--- but:\n${this.output}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    try {
      process.kill(-this.shell.pid, 'SIGKILL');
    } catch {
      // All of it has ended.
    }
    await this.shell.exited;
    rmSync(this.folder, { recursive: true, force: true });
  }
}

/** Runs a page. @throws Error that names the line of the first run which isn't as it is printed */
export async function runPage(page: string): Promise<void> {
  await using session = new Session();
  for (const run of runsOf(readFileSync(page, 'utf8'))) {
    try {
      await session.run(run);
    } catch (error) {
      throw new Error(`${page}:${run.line}: $ ${run.command}\n${(error as Error).message}`);
    }
  }
}

if (import.meta.main) {
  for (const page of process.argv.slice(2)) await runPage(page);
}
