/**
 * Child processes, the tools of other makers, and places for files: what the end-to-end tests and the
 * benchmarks both need. No process outlives its parent's interest in it: each has a process group of
 * its own, every wait has a deadline, and a deadline's error tells what the process had said.
 */

import { spawnSync } from 'node:child_process';
import { accessSync, constants, readdirSync, readFileSync, statfsSync } from 'node:fs';
import { join, resolve } from 'node:path';
import type { Subprocess } from 'bun';

export const root = resolve(import.meta.dir, '../..');

/** The binary under test: `dist/ubiblk`, or what `UBIBLK` names. */
export const binary = resolve(process.env.UBIBLK ?? join(root, 'dist/ubiblk'));

const tmpfsMagic = 0x01021994;

/** A programme of test/tools. */
export function tool(name: string): string {
  return join(root, 'test/tools', name);
}

let clientFolder: string | undefined;

/** Path of a client of another maker (`qemu-io`, `blkio-info`, ...), fetched when first asked for. */
export function client(name: string): string {
  if (clientFolder === undefined) {
    const made = spawnSync(tool('client-tools'), ['--bin'], {
      encoding: 'utf8',
      timeout: 300_000,
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    if (made.status !== 0) throw new Error(`test/tools/client-tools ended with ${made.status}`);
    clientFolder = made.stdout.trim();
  }
  return join(clientFolder, name);
}

/** Full path of a programme of the host, or undefined. */
export function hostProgram(name: string): string | undefined {
  return Bun.which(name, { PATH: `${process.env.PATH}:/usr/sbin:/sbin` }) ?? undefined;
}

function writable(path: string): boolean {
  try {
    accessSync(path, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}

function isTmpfs(path: string): boolean {
  return statfsSync(path).type === tmpfsMagic;
}

/** Where test files go: a folder on a real file system, and one in memory. */
export const folders = {
  disk: [process.env.TMPDIR, '/tmp', '/var/tmp', root].find(
    (path) => path !== undefined && writable(path) && !isTmpfs(path),
  ),
  memory: ['/dev/shm', '/tmp'].find((path) => writable(path) && isTmpfs(path)),
};

/** Output of a process that is read while it runs. */
class Output {
  text = '';
  private waiting = new Set<() => void>();
  readonly ended: Promise<void>;

  constructor(stream: ReadableStream<Uint8Array>) {
    this.ended = this.read(stream);
  }

  private async read(stream: ReadableStream<Uint8Array>) {
    const decoder = new TextDecoder();
    for await (const chunk of stream) {
      this.text += decoder.decode(chunk, { stream: true });
      for (const wake of this.waiting) wake();
    }
    for (const wake of this.waiting) wake();
  }

  changed(): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>();
    const wake = () => {
      this.waiting.delete(wake);
      resolve();
    };
    this.waiting.add(wake);
    return promise;
  }
}

/** Rejects with a description once `milliseconds` have passed before `promise` settles. */
export async function within<T>(
  promise: Promise<T>,
  milliseconds: number,
  describe: () => string,
): Promise<T> {
  let timer: Timer | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(
      () => reject(new Error(`not within ${milliseconds} ms: ${describe()}`)),
      milliseconds,
    );
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}

function tail(text: string, lines = 40): string {
  return text.split('\n').slice(-lines).join('\n');
}

/** A child process in a process group of its own. */
export class Child {
  readonly stdout: Output;
  readonly stderr: Output;
  private readonly process: Subprocess<'ignore', 'pipe', 'pipe'>;
  readonly name: string;

  constructor(argv: string[], options: { cwd?: string; env?: Record<string, string> } = {}) {
    // Of a script the first line will do.
    this.name = argv.join(' ').split('\n')[0];
    this.process = Bun.spawn(argv, {
      cwd: options.cwd,
      env: { ...process.env, ...options.env },
      stdin: 'ignore',
      stdout: 'pipe',
      stderr: 'pipe',
      detached: true,
    });
    this.stdout = new Output(this.process.stdout);
    this.stderr = new Output(this.process.stderr);
  }

  get pid(): number {
    return this.process.pid;
  }

  get running(): boolean {
    return this.process.exitCode === null && this.process.signalCode === null;
  }

  /** Everything it said, for the message of a failed test. */
  report(): string {
    const state = this.running ? 'running' : (this.process.signalCode ?? this.process.exitCode);
    return `${this.name}: ${state}\n${tail(this.stdout.text)}${tail(this.stderr.text)}`;
  }

  signal(name: NodeJS.Signals): void {
    this.process.kill(name);
  }

  /** Exit code, or the name of the signal that ended it, once all its output has been read. */
  async exit(deadlineMs: number): Promise<number | NodeJS.Signals> {
    const all = Promise.all([this.process.exited, this.stdout.ended, this.stderr.ended]);
    await within(all, deadlineMs, () => `the end of ${this.report()}`);
    return this.process.signalCode ?? (this.process.exitCode as number);
  }

  /** Waits for the process alone, whatever still holds its output open. */
  async reaped(deadlineMs: number): Promise<void> {
    await within(this.process.exited, deadlineMs, () => `the end of ${this.report()}`);
  }

  /** Waits until an output matches, from the character `from` of it on. */
  async said(pattern: RegExp, deadlineMs: number, from = 0, output = this.stdout) {
    const find = async () => {
      for (;;) {
        const found = output.text.slice(from).match(pattern);
        if (found) return found;
        if (!this.running) {
          await output.ended;
          const last = output.text.slice(from).match(pattern);
          if (last) return last;
          throw new Error(`ended before it said ${pattern}: ${this.report()}`);
        }
        await Promise.race([output.changed(), this.process.exited]);
      }
    };
    return await within(find(), deadlineMs, () => `${pattern} from ${this.report()}`);
  }

  /** Ends the process and its group, first politely where `polite` says so. */
  async destroy(polite: boolean): Promise<void> {
    if (polite && this.running) {
      this.signal('SIGTERM');
      await Promise.race([this.process.exited, Bun.sleep(3000)]);
    }
    this.killGroup();
    await this.process.exited;
  }

  /** Ends the process and its group at once, without waiting for it. */
  killGroup(): void {
    try {
      process.kill(-this.pid, 'SIGKILL');
    } catch {
      // The whole group has ended.
    }
  }
}

export interface ThreadUsage {
  name: string;
  cpuNs: number;
  /** How often it has gone to sleep: each needs a wake-up before it. */
  sleeps: number;
}

/** What each thread of a process has used so far, by its number. */
export function threadUsage(pid: number): Map<string, ThreadUsage> {
  const threads = new Map<string, ThreadUsage>();
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    const folder = `/proc/${pid}/task/${task}`;
    try {
      const status = readFileSync(`${folder}/status`, 'utf8');
      threads.set(task, {
        name: status.match(/^Name:\s*(.*)$/m)?.[1] ?? '',
        cpuNs: Number(readFileSync(`${folder}/schedstat`, 'utf8').split(' ')[0]),
        sleeps: Number(status.match(/^voluntary_ctxt_switches:\s*(\d+)/m)?.[1] ?? 0),
      });
    } catch {
      // A thread that ended meanwhile.
    }
  }
  return threads;
}

/** `key=value` arguments, as libblkio's tools and vhost-check take them. */
export function keyValues(options: Record<string, string | number>): string[] {
  return Object.entries(options).map(([key, value]) => `${key}=${value}`);
}
