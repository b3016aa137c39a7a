/** Programs that talk with their user. */
import { within } from './processes.ts';

/** A program on a terminal of its own, which `script` gives it. */
export class Dialogue {
  /** All that was shown since the last {@link type}. */
  shown = '';
  private changed = Promise.withResolvers<void>();
  private readonly process;

  /** @param command for a shell */
  constructor(command: string, cwd?: string) {
    this.process = Bun.spawn(['script', '-qefc', command, '/dev/null'], {
      cwd,
      stdin: 'pipe',
      stdout: 'pipe',
      env: { ...process.env, TERM: 'xterm' },
    });
    void this.watch();
  }

  type(keys: string): void {
    this.shown = '';
    this.process.stdin.write(keys);
    this.process.stdin.flush();
  }

  /** Waits for a line that is exactly this. */
  async line(text: string): Promise<void> {
    await this.until(() => this.lines().includes(text), text);
  }

  /** Waits for a text anywhere in what is shown. */
  async says(text: string): Promise<void> {
    await this.until(() => this.shown.includes(text), text);
  }

  lines(): string[] {
    return this.shown.split(/[\r\n]+/);
  }

  async exit(): Promise<number> {
    return await within(this.process.exited, 10_000, () => `the end; shown: ${this.shown}`);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.process.kill('SIGKILL');
    await this.process.exited;
  }

  private async watch(): Promise<void> {
    const decoder = new TextDecoder();
    for await (const part of this.process.stdout) {
      this.shown += decoder.decode(part, { stream: true });
      this.changed.resolve();
      this.changed = Promise.withResolvers<void>();
    }
  }

  /** Waits for something to be shown. */
  async until(come: () => boolean, what: string): Promise<void> {
    const wait = async () => {
      while (!come()) await this.changed.promise;
    };
    await within(wait(), 10_000, () => `'${what}'; shown: ${JSON.stringify(this.shown)}`);
  }
}
