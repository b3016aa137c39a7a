/**
 * Lazy disks whose image hangs instead of failing: whoever needs nothing of it goes on, and the server
 * tells what it waits for and ends.
 */

import { expect } from 'bun:test';
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync } from 'node:fs';
import { dump, ended, type Lazy, qemuIo, statusNow, statusWhen } from './lazy.ts';
import { binary, type Child, hostProgram, tool } from './processes.ts';
import { Bed, matrix, need, type Settings, testWith } from './support.ts';

const MIB = 1 << 20;
const IMAGE_BYTES = 32 * MIB;
const FIRST_OWN = IMAGE_BYTES / MIB;

const needs = [
  need.root(),
  !existsSync('/dev/fuse') && 'this kernel has no /dev/fuse',
  !hostProgram('python3') && "'python3' is not installed",
];

/** A disk of 64 stripes, half of them of an image that can be made to hang. */
class HangingDisk implements Lazy, AsyncDisposable {
  readonly disk: string;
  readonly folder: string;
  readonly image: string;
  readonly reference = '';
  readonly metadata: string;
  readonly rpc: string;
  config = '';
  settings: Settings = {};
  server!: Child;

  constructor(
    private readonly bed: Bed,
    private readonly operation: 'read' | 'lseek',
  ) {
    this.disk = bed.disk();
    this.folder = bed.path('mounted');
    this.image = `${this.folder}/image`;
    this.metadata = bed.path('disk.meta');
    this.rpc = bed.path('rpc.sock');
  }

  async make(settings: Settings): Promise<void> {
    const { bed, folder } = this;
    mkdirSync(folder);
    this.server = bed.spawn([tool('hanging-image'), folder, String(IMAGE_BYTES), this.operation]);
    await this.server.said(/mounted/, 10_000, 0, this.server.stdout);
    const source = { metadata_path: this.metadata, image_path: this.image };
    this.settings = { ...source, rpc_socket_path: this.rpc, direct_io: false, ...settings };
    this.config = bed.config({ path: this.disk, ...this.settings });
    await bed.run([binary, 'metadata', 'init', '--config', this.config]);
  }

  async hang(): Promise<void> {
    this.server.signal('SIGUSR1');
    await this.server.said(/hangs from now on/, 10_000, 0, this.server.stdout);
  }

  /** Waits until so many operations hang. */
  async hangs(count: number): Promise<void> {
    const lines = new RegExp(`(hangs at [^]*){${count}}`);
    await this.server.said(lines, 20_000, 0, this.server.stdout);
  }

  async goOn(): Promise<void> {
    this.server.signal('SIGUSR2');
    await this.server.said(/goes on/, 10_000, 0, this.server.stdout);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.server?.destroy(false);
    spawnSync('umount', ['-l', this.folder]);
  }
}

async function hangingDisk(bed: Bed, operation: 'read' | 'lseek', settings: Settings) {
  const disk = new HangingDisk(bed, operation);
  await disk.make(settings);
  return disk;
}

const rows = matrix({ autofetch: [true, false], io_engine: ['io_uring', 'sync'] } as const);
for (const settings of rows) {
  const name = `${settings.io_engine} autofetch=${settings.autofetch}`;
  testWith(
    `writes that need nothing of a source whose reads hang are answered: ${name}`,
    needs,
    async () => {
      await using bed = new Bed();
      const all = { ...settings, track_written: true, copy_on_read: true };
      await using lazy = await hangingDisk(bed, 'read', all);
      await lazy.hang();
      const server = await bed.serve(lazy.disk, lazy.settings);
      // As many parts of stripes are waited for as there are buffers for stripes.
      const waiting = settings.autofetch ? 12 : 16;
      const writes = Array.from({ length: 16 }, (_, i) => `aio_write ${i}M 4k`);
      const stuck = settings.autofetch ? null : qemuIo(bed, server, ...writes, 'aio_flush');
      await statusWhen(server, lazy.rpc, ({ in_flight }) => in_flight === waiting);
      await lazy.hangs(waiting);
      await stuck?.destroy(false);
      await ended(
        qemuIo(
          bed,
          server,
          `write -P 7 ${FIRST_OWN}M 4k`,
          'write -P 8 30M 1M',
          `read -P 7 ${FIRST_OWN}M 4k`,
          'read -P 8 30M 1M',
          'flush',
        ),
      );
      const { slow } = await statusWhen(server, lazy.rpc, ({ slow }) => slow.length === waiting);
      for (const { stripe, seconds } of slow) {
        expect(stripe).toBeLessThan(16);
        expect(seconds).toBeGreaterThanOrEqual(5);
      }
      await bed.stop(server);
      await lazy.goOn();
      const { written, fetched } = await dump(bed, lazy);
      const both = [
        [30, 30],
        [FIRST_OWN, FIRST_OWN],
      ];
      expect(written).toEqual(both as [number, number][]);
      expect(fetched).toEqual([[30, 30]]);
    },
    60_000,
  );
}

testWith(
  'a source that hangs for a while is gone on with where it was',
  needs,
  async () => {
    await using bed = new Bed();
    await using lazy = await hangingDisk(bed, 'read', { autofetch: true });
    await lazy.hang();
    const server = await bed.serve(lazy.disk, lazy.settings);
    await lazy.hangs(12);
    await lazy.goOn();
    await statusWhen(server, lazy.rpc, ({ stripes }) => stripes.fetched === stripes.source);
    await ended(qemuIo(bed, server, 'read -P 0x55 0 32M', 'read -P 0 32M 32M'));
    expect((await statusNow(server, lazy.rpc)).slow).toEqual([]);
    await bed.stop(server);
  },
  60_000,
);

testWith(
  'a read of the image that hangs does not keep the server from its end',
  needs,
  async () => {
    await using bed = new Bed();
    await using lazy = await hangingDisk(bed, 'read', {});
    const server = await bed.serve(lazy.disk, lazy.settings);
    await lazy.hang();
    const stuck = qemuIo(bed, server, 'read 3M 4k');
    await lazy.hangs(1);
    server.child.signal('SIGTERM');
    expect(await server.child.exit(30_000)).toBe(1);
    expect(server.child.stderr.text).toContain('a read is left unanswered');
    expect([server.socket, lazy.rpc].filter(existsSync)).toEqual([]);
    await stuck.destroy(false);
    await lazy.goOn();
    const again = await bed.start(server.config, server.socket);
    await ended(qemuIo(bed, again, 'read -P 0x55 3M 4k'));
    await bed.stop(again);
  },
  60_000,
);

testWith(
  'a search for data that hangs keeps nobody but its stripes',
  needs,
  async () => {
    await using bed = new Bed();
    await using lazy = await hangingDisk(bed, 'lseek', { autofetch: true });
    await lazy.hang();
    const server = await bed.serve(lazy.disk, lazy.settings);
    // The kernel lets one at a time search a file.
    await lazy.hangs(1);
    await ended(qemuIo(bed, server, 'write -P 7 40M 4k', 'read -P 7 40M 4k', 'flush'));
    expect((await statusNow(server, lazy.rpc)).stripes.fetched).toBe(0);
    server.child.signal('SIGTERM');
    await server.child.said(/stopped/, 10_000, 0, server.child.stderr);
    // The kernel keeps a process until its calls have returned.
    await lazy.goOn();
    expect(await server.child.exit(10_000)).toBe(0);
  },
  60_000,
);
