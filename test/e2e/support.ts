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
  closeSync,
  existsSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readlinkSync,
  rmSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import { Random, seed, soak } from '../random.ts';
import { binary, Child, client, folders, hostProgram, keyValues, tool } from './processes.ts';

export { Random, seed, soak };

const isRoot = process.getuid?.() === 0;

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
  kernel: (major: number, minor: number, what: string) => {
    const [here, there] = release().split('.').map(Number);
    const isNewer = here > major || (here === major && there >= minor);
    return isNewer ? undefined : `this kernel is older than ${major}.${minor}, which ${what}`;
  },
  diskFolder: () => (folders.disk ? undefined : 'no folder on a disk (only tmpfs) was found'),
};

export interface DiskOptions {
  sizeBytes?: number;
  /** `ext4` stands for whatever file system the disk folder has. */
  kind?: 'ext4' | 'tmpfs' | 'loop512' | 'loop4096';
  /** Loop devices only: the kernel refuses writes. */
  readOnly?: boolean;
  /** With {@link testKeys}: its zeroes are encrypted ones, and a server of it gets the keys. */
  encrypted?: boolean;
}

/** base64 of the keys of all encrypted disks. */
export const testKeys = [3, 5].map((byte) => Buffer.alloc(32, byte).toString('base64'));

/** Values of the configuration file; `path` and `socket` are added by {@link Bed.serve}. */
export type Settings = Record<string, string | number | boolean | number[] | string[]>;

export interface StartOptions {
  program?: string;
  cwd?: string;
  env?: Record<string, string>;
}

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
  private readonly encrypted = new Set<string>();

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
    const { sizeBytes = 64 << 20, kind = 'ext4', readOnly = false, encrypted = false } = options;
    const folder = kind === 'tmpfs' ? this.makeFolder(folders.memory ?? '/dev/shm') : this.folder;
    const file = join(folder, `disk${this.count++}.raw`);
    const fd = openSync(file, 'wx', 0o600);
    ftruncateSync(fd, sizeBytes);
    closeSync(fd);
    if (encrypted) cipherSectors('encode', file, file);
    if (encrypted) this.encrypted.add(file);
    if (!kind.startsWith('loop')) return file;
    const sectorBytes = kind.slice('loop'.length);
    const mode = readOnly ? ['-r'] : [];
    const made = spawnSync('losetup', ['-f', '--show', '-b', sectorBytes, ...mode, file], {
      encoding: 'utf8',
    });
    if (made.status !== 0) throw new Error(`losetup: ${made.stderr}`);
    const device = made.stdout.trim();
    this.undo.push(() => {
      spawnSync('losetup', ['-d', device]);
    });
    if (encrypted) this.encrypted.add(device);
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
    writeFileSync(this.path(name), `${lines.join('\n')}\n`, { mode: 0o600 });
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
  async serve(disk: string, settings: Settings = {}, options: StartOptions = {}): Promise<Server> {
    const socket = this.path(`vhost${this.count++}.sock`);
    const keys: Settings = this.encrypted.has(disk) ? { encryption_key: testKeys } : {};
    const config = this.config({ path: disk, socket, queue_size: 256, ...keys, ...settings });
    return await this.start(config, String(settings.socket ?? socket), options);
  }

  /** Starts the server with a configuration that is there already. */
  async start(config: string, socket: string, options: StartOptions = {}): Promise<Server> {
    const { program = binary, ...more } = options;
    const child = this.spawn([program, 'serve', 'vhost', '--config', config], more);
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

  /** Waits until a process has a file open no more. */
  async closed(pid: number, path: string, deadlineMs: number): Promise<void> {
    const isOpen = () =>
      readdirSync(`/proc/${pid}/fd`).some((fd) => {
        try {
          return readlinkSync(`/proc/${pid}/fd/${fd}`) === path;
        } catch {
          return false;
        }
      });
    const deadline = Date.now() + deadlineMs;
    while (isOpen()) {
      if (Date.now() > deadline) throw new Error(`process ${pid} still has '${path}' open`);
      await Bun.sleep(20);
    }
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
    const path = this.encrypted.has(disk) ? this.decrypted(disk) : disk;
    await this.check(path, { driver: 'io_uring', state, ops: 0, zero: 1, ...more });
  }

  /** An encrypted disk with the content of a plain one. */
  cipher(plain: string): string {
    const disk = this.path(`cipher${this.count++}.raw`);
    writeFileSync(disk, '');
    cipherSectors('encode', plain, disk);
    this.encrypted.add(disk);
    return disk;
  }

  /** The plain content of an encrypted disk, in a file of its own. */
  decrypted(disk: string): string {
    const plain = this.path(`plain${this.count++}.raw`);
    writeFileSync(plain, '');
    cipherSectors('decode', disk, plain);
    return plain;
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
  async guestEnd(guest: Child, expect = 0): Promise<Child> {
    // vm-run ends it long before, and tells what it was doing.
    const status = await guest.exit(120 * 60_000);
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
    for (const { child } of this.children) child.killGroup();
    for (const action of this.undo.reverse()) action();
    this.undo = [];
    beds.delete(this);
  }
}

const beds = new Set<Bed>();
process.on('exit', () => {
  for (const bed of beds) bed.clean();
});
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.on(signal, () => process.exit(130));

/** Encrypts or decrypts a file with an implementation that isn't ours. */
function cipherSectors(action: 'encode' | 'decode', input: string, output: string): void {
  // The size of a block device isn't in its status.
  const bytes = statSync(input).isBlockDevice()
    ? [spawnSync('blockdev', ['--getsize64', input]).stdout.toString().trim()]
    : [];
  const argv = [tool('xts-sectors.mjs'), action, ...testKeys, input, output, ...bytes];
  const done = spawnSync('node', argv, { encoding: 'utf8' });
  if (done.status !== 0) throw new Error(`xts-sectors: ${done.stderr}`);
}

/** QEMU's name for the disk behind a vhost-user socket, for `--image-opts`. */
export function qemuDisk(socket: string): string {
  return `driver=virtio-blk-vhost-user,path=${socket},cache.direct=on`;
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
 * @param possible leaves out rows that there can't be
 */
export function matrix<D extends Dimensions>(
  dimensions: D,
  possible: (row: Row<D>) => boolean = () => true,
): Row<D>[] {
  const all = everyRow(dimensions).filter(possible);
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

/** Shell quoting for a script that runs in a guest. */
export function quote(text: string): string {
  return `'${text.replaceAll("'", `'\\''`)}'`;
}

if (!existsSync(binary)) {
  throw new Error(`'${binary}' is not there: run 'npm run build' first`);
}
console.log(`seed ${seed} (UBIBLK_TEST_SEED=${seed} repeats this run)`);
