/**
 * What the end-to-end tests share: a test bed that owns every process, folder and loop device of one
 * test, and takes all of them away when the test ends, passed or not.
 *
 * The tests run the compiled binary (`dist/ubiblk`, or what `UBIBLK` names) against clients that are
 * not ours: libblkio, QEMU, fio. Every wait is for an event and has a deadline that ends in an
 * error with the output of all processes, never in a hang.
 */

import { test } from 'bun:test';
import { spawnSync } from 'node:child_process';
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  statfsSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { join, resolve } from 'node:path';
import type { Subprocess } from 'bun';

const root = resolve(import.meta.dir, '../..');

/** The binary under test. */
export const binary = resolve(process.env.UBIBLK ?? join(root, 'dist/ubiblk'));

/** `UBIBLK_SOAK=1` asks for the full matrices and the long runs. */
export const soak = process.env.UBIBLK_SOAK === '1';

/** Seed of every random choice of this run; `UBIBLK_TEST_SEED` repeats an earlier one. */
export const seed = Number(process.env.UBIBLK_TEST_SEED ?? Date.now() % 1_000_000_007);

const isRoot = process.getuid?.() === 0;
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

/**
 * A test, or, where `needs` names something that this machine lacks, a skipped one that says so in
 * its name.
 */
export function testWith(
  name: string,
  needs: (string | false | undefined)[],
  body: () => Promise<void>,
  deadlineMs: number,
): void {
  const reasons = needs.filter(Boolean);
  if (reasons.length > 0) test.skip(`${name} [${reasons.join('; ')}]`, body);
  else test(name, body, deadlineMs);
}

export const need = {
  root: () => (isRoot ? undefined : 'needs root'),
  program: (name: string) => (hostProgram(name) ? undefined : `'${name}' is not installed`),
  loop: () => {
    if (!isRoot) return 'loop devices need root';
    if (!existsSync('/dev/loop-control')) return 'this kernel has no loop devices';
    return hostProgram('losetup') ? undefined : `'losetup' is not installed`;
  },
  diskFolder: () => (folders.disk ? undefined : 'no folder on a disk (only tmpfs) was found'),
};

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
    this.name = argv.join(' ');
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
    try {
      process.kill(-this.pid, 'SIGKILL');
    } catch {
      // The whole group has ended.
    }
    await this.process.exited;
  }
}

export interface DiskOptions {
  sizeBytes?: number;
  /** `ext4` stands for whatever file system the disk folder has. */
  kind?: 'ext4' | 'tmpfs' | 'loop512' | 'loop4096';
}

/** Values of the configuration file; `path` and `socket` are added by {@link Bed.serve}. */
export type Settings = Record<string, string | number | boolean | number[]>;

export interface Server {
  child: Child;
  socket: string;
  config: string;
}

/** One test's processes, files and devices; `await using` takes them all away. */
export class Bed {
  readonly folder: string;
  private children: { child: Child; polite: boolean }[] = [];
  private undo: (() => void)[] = [];
  private count = 0;

  constructor() {
    this.folder = this.makeFolder(folders.disk ?? '/tmp');
    beds.add(this);
  }

  private makeFolder(where: string): string {
    const folder = mkdtempSync(join(where, 'ubiblk-test-'));
    this.undo.push(() => rmSync(folder, { recursive: true, force: true }));
    return folder;
  }

  path(name: string): string {
    return join(this.folder, name);
  }

  /** Makes a raw disk of zeroes and returns its path: a file or a loop device. */
  disk(options: DiskOptions = {}): string {
    const { sizeBytes = 64 << 20, kind = 'ext4' } = options;
    const folder = kind === 'tmpfs' ? this.makeFolder(folders.memory ?? '/dev/shm') : this.folder;
    const file = join(folder, `disk${this.count++}.raw`);
    const fd = openSync(file, 'wx', 0o600);
    ftruncateSync(fd, sizeBytes);
    closeSync(fd);
    if (!kind.startsWith('loop')) return file;
    const sectorBytes = kind.slice('loop'.length);
    const made = spawnSync('losetup', ['-f', '--show', '-b', sectorBytes, file], {
      encoding: 'utf8',
    });
    if (made.status !== 0) throw new Error(`losetup: ${made.stderr}`);
    const device = made.stdout.trim();
    this.undo.push(() => {
      spawnSync('losetup', ['-d', device]);
    });
    return device;
  }

  /** Fills a file with bytes that compress badly and repeat nowhere. */
  fill(path: string, sizeBytes: number, start = 1): void {
    const fd = openSync(path, 'r+');
    const chunk = new BigUint64Array(1 << 17);
    const random = new Random(start);
    for (let at = 0; at < sizeBytes; at += chunk.byteLength) {
      for (let i = 0; i < chunk.length; i++) {
        chunk[i] = (BigInt(random.next()) << 32n) | BigInt(random.next());
      }
      writeSync(fd, chunk, 0, Math.min(chunk.byteLength, sizeBytes - at), at);
    }
    closeSync(fd);
  }

  /** Writes a configuration file and returns its path. */
  config(settings: Settings, name = `config${this.count++}.yaml`): string {
    const lines = Object.entries(settings).map(
      ([key, value]) => `${key}: ${JSON.stringify(value)}`,
    );
    writeFileSync(this.path(name), `${lines.join('\n')}\n`);
    return this.path(name);
  }

  spawn(
    argv: string[],
    options: { cwd?: string; env?: Record<string, string>; polite?: boolean } = {},
  ): Child {
    const child = new Child(argv, { cwd: this.folder, ...options });
    this.children.push({ child, polite: options.polite ?? false });
    return child;
  }

  /** Runs a programme to its end and returns it; any other exit status than `expect` throws. */
  async run(
    argv: string[],
    options: {
      deadlineMs?: number;
      expect?: number | NodeJS.Signals;
      cwd?: string;
      env?: Record<string, string>;
      polite?: boolean;
    } = {},
  ): Promise<Child> {
    const { deadlineMs = 60_000, expect = 0 } = options;
    const child = this.spawn(argv, options);
    const status = await child.exit(deadlineMs);
    if (status !== expect) {
      throw new Error(
        `exit ${status}, expected ${expect}: ${child.report()}\n${this.report(child)}`,
      );
    }
    return child;
  }

  /** What the other processes that run or failed have said. */
  report(except?: Child): string {
    return this.children
      .filter(({ child }) => child !== except && child.name.includes(' serve '))
      .slice(-2)
      .map(({ child }) => child.report())
      .join('\n');
  }

  /**
   * Starts `ubiblk serve vhost` and waits until it listens.
   *
   * @throws Error with its output if it ends before, or isn't there within ten seconds
   */
  async serve(disk: string, settings: Settings = {}, program = binary): Promise<Server> {
    const socket = this.path(`vhost${this.count++}.sock`);
    const config = this.config({ path: disk, socket, queue_size: 256, ...settings });
    return await this.start(config, String(settings.socket ?? socket), program);
  }

  /** Starts the server with a configuration that is there already. */
  async start(config: string, socket: string, program = binary, cwd?: string): Promise<Server> {
    const argv = [program, 'serve', 'vhost', '--config', config];
    const child = this.spawn(argv, cwd === undefined ? {} : { cwd });
    await this.listening(child, 10_000);
    return { child, socket, config };
  }

  async listening(server: Child, deadlineMs: number): Promise<void> {
    await server.said(/listening on /, deadlineMs, 0, server.stderr);
  }

  /** SIGTERM; the server must end with 0 and take its socket along. */
  async stop(server: Server): Promise<void> {
    server.child.signal('SIGTERM');
    const status = await server.child.exit(10_000);
    if (status !== 0) throw new Error(`exit ${status} after SIGTERM: ${server.child.report()}`);
    if (existsSync(server.socket)) throw new Error(`'${server.socket}' was left behind`);
  }

  /** Ends the process as a crash would, and returns when it is gone. */
  async crash(server: Server): Promise<void> {
    server.child.signal('SIGKILL');
    await server.child.reaped(15_000);
  }

  /** Runs vhost-check against a socket (or, with `driver`, a file). */
  async check(path: string, options: Record<string, string | number>, deadlineMs = 120_000) {
    return await this.run([client('vhost-check'), path, ...keyValues(options)], { deadlineMs });
  }

  /**
   * Compares the disk itself with what `state` of earlier {@link check} runs says it must hold.
   */
  async compareFile(disk: string, state: string, more: Record<string, string | number> = {}) {
    await this.check(disk, { driver: 'io_uring', state, ops: 0, zero: 1, ...more });
  }

  /** A QEMU guest with `socket` as its /dev/vda; the folder of this test bed is shared with it. */
  guest(
    options: { sockets?: string[]; disks?: string[]; seconds?: number; more?: string[] },
    script: string,
  ): Child {
    const argv = [tool('vm-run'), '--share', this.folder, '--mem', '1G'];
    argv.push('--timeout', String(options.seconds ?? 120));
    for (const socket of options.sockets ?? []) argv.push('--vhost-user-blk', socket);
    for (const disk of options.disks ?? []) argv.push('--disk', disk);
    argv.push(...(options.more ?? []), '--', 'bash', '-c', script);
    return this.spawn(argv, { polite: true, cwd: this.folder });
  }

  /** Waits for a guest's end; any other exit status than `expect` throws. */
  async guestEnd(guest: Child, deadlineMs: number, expect = 0): Promise<Child> {
    const status = await guest.exit(deadlineMs);
    if (status !== expect) {
      throw new Error(`the guest ended with ${status}: ${guest.report()}\n${this.report(guest)}`);
    }
    return guest;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.children.map(({ child, polite }) => child.destroy(polite)));
    this.clean();
  }

  /** Takes files and devices away, without waiting for anything. */
  clean(): void {
    for (const { child } of this.children) {
      try {
        process.kill(-child.pid, 'SIGKILL');
      } catch {
        // Ended already.
      }
    }
    for (const action of this.undo.reverse()) action();
    this.undo = [];
    beds.delete(this);
  }
}

const beds = new Set<Bed>();
process.on('exit', () => {
  for (const bed of beds) bed.clean();
});

/** `key=value` arguments, as libblkio's tools and vhost-check take them. */
export function keyValues(options: Record<string, string | number>): string[] {
  return Object.entries(options).map(([key, value]) => `${key}=${value}`);
}

/** QEMU's name for the disk behind a vhost-user socket, for `--image-opts`. */
export function qemuDisk(socket: string): string {
  return `driver=virtio-blk-vhost-user,path=${socket},cache.direct=on`;
}

/** xorshift32: the same seed gives the same choices everywhere. */
export class Random {
  private state: number;

  constructor(start: number) {
    this.state = (Math.imul(start | 0, 0x9e3779b1) ^ 0x6c078965) | 1;
  }

  next(): number {
    this.state ^= this.state << 13;
    this.state ^= this.state >>> 17;
    this.state ^= this.state << 5;
    return this.state >>> 0;
  }

  below(limit: number): number {
    return this.next() % limit;
  }
}

type Dimensions = Record<string, readonly unknown[]>;
type Row<D extends Dimensions> = { [K in keyof D]: D[K][number] };

/** Every combination of the values. */
function everyRow<D extends Dimensions>(dimensions: D): Row<D>[] {
  let rows: Record<string, unknown>[] = [{}];
  for (const [key, values] of Object.entries(dimensions)) {
    rows = rows.flatMap((row) => values.map((value) => ({ ...row, [key]: value })));
  }
  return rows as Row<D>[];
}

/**
 * Rows of a test matrix: all of them in soak mode, else a random subset in which any two values of
 * two dimensions meet at least once. What was chosen depends on {@link seed} alone.
 */
export function matrix<D extends Dimensions>(dimensions: D): Row<D>[] {
  const all = everyRow(dimensions);
  if (soak) return all;
  const random = new Random(seed);
  const keys = Object.keys(dimensions);
  const pairsOf = (row: Row<D>) =>
    keys.flatMap((a, i) => keys.slice(i + 1).map((b) => `${a}=${row[a]} ${b}=${row[b]}`));
  const open = new Set(all.flatMap(pairsOf));
  const rows: Row<D>[] = [];
  while (open.size > 0) {
    let best = all[0];
    let bestNew = -1;
    const first = random.below(all.length);
    for (let i = 0; i < all.length; i++) {
      const row = all[(first + i) % all.length];
      const found = pairsOf(row).filter((pair) => open.has(pair)).length;
      if (found > bestNew) {
        best = row;
        bestNew = found;
      }
    }
    for (const pair of pairsOf(best)) open.delete(pair);
    rows.push(best);
  }
  return rows;
}

/** CPU time and voluntary context switches of all threads of a process. */
export function usage(pid: number): { cpuNs: number; switches: number; threads: number } {
  let cpuNs = 0;
  let switches = 0;
  let threads = 0;
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    const folder = `/proc/${pid}/task/${task}`;
    try {
      cpuNs += Number(readFileSync(`${folder}/schedstat`, 'utf8').split(' ')[0]);
      const status = readFileSync(`${folder}/status`, 'utf8');
      switches += Number(status.match(/^voluntary_ctxt_switches:\s*(\d+)/m)?.[1] ?? 0);
      threads++;
    } catch {
      // A thread that ended meanwhile.
    }
  }
  return { cpuNs, switches, threads };
}

/** Shell quoting for a script that runs in a guest. */
export function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

if (!existsSync(binary)) {
  throw new Error(`'${binary}' is not there: run 'npm run build' first`);
}
console.log(`seed ${seed} (UBIBLK_TEST_SEED=${seed} repeats this run)`);
