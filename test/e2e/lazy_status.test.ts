/**
 * A lazy disk while it fills, and while it can't: what its status says, that guests wait for what they
 * need and for nothing else, and that all is well when the outage is over.
 */

import { expect } from 'bun:test';
import { spawnSync } from 'node:child_process';
import { closeSync, existsSync, mkdirSync, openSync, unlinkSync, writeSync } from 'node:fs';
import {
  dump,
  ended,
  failed,
  type Lazy,
  lazyDisk,
  Outage,
  qemuIo,
  statuses,
  statusNow,
  statusWhen,
} from './lazy.ts';
import { binary, client, folders, keyValues, threadUsage } from './processes.ts';
import { Bed, matrix, need, type Server, seed, testWith } from './support.ts';

const MIB = 1 << 20;
/** Of 256 KiB. The last one is partial, and so is the image's last one. */
const shift = 9;
const sizeBytes = 12 * MIB + 512 * 77;
const imageBytes = 9 * MIB + 512 * 3;
const STRIPES = { total: 49, source: 37, no_source: 12 };
const demand = { copy_on_read: true, autofetch: false };

async function serve(bed: Bed, { disk, settings }: Lazy): Promise<Server> {
  return await bed.serve(disk, { ...settings, num_queues: 2 });
}

async function rpcText(bed: Bed, rpc: string, command: string): Promise<string> {
  return (await bed.run([binary, 'rpc', rpc, command])).stdout.text;
}

/** A client that reads and writes everywhere, and compares. */
function load(
  bed: Bed,
  server: Server,
  { reference: image }: Lazy,
  more: Record<string, string> = {},
) {
  const options = { queues: 2, depth: 16, ops: 400, max: 65536, timeout: 60, zero: 1, seed };
  const argv = keyValues({ ...options, image, state: bed.path('state'), ...more });
  return bed.spawn([client('vhost-check'), server.socket, ...argv]);
}

const fills = matrix({ encrypted: [false, true], format: [1, 2] } as const);
for (const { encrypted, format } of fills) {
  testWith(
    `status counts what is local while a disk fills: ${encrypted ? 'encrypted' : 'plain'} format ${format}`,
    [],
    async () => {
      await using bed = new Bed();
      const settings = { autofetch: true, autofetch_max_mib_per_s: 4, copy_on_read: true };
      const lazy = await lazyDisk(bed, {
        encrypted,
        format,
        shift,
        sizeBytes,
        imageBytes,
        settings,
      });
      const server = await serve(bed, lazy);
      const counts: number[] = [];
      for await (const { stripes, failing, metadata_failing } of statuses(lazy.rpc)) {
        const { fetched, ...others } = stripes;
        expect(others).toEqual(STRIPES);
        expect(failing).toEqual([]);
        expect(metadata_failing).toBe(false);
        if (counts.at(-1) === fetched) continue;
        expect(fetched).toBeGreaterThan(counts.at(-1) ?? -1);
        counts.push(fetched);
        // What is counted is on record.
        const recorded = await dump(bed, lazy);
        expect(recorded.stripes.fetched).toBeGreaterThanOrEqual(fetched);
        expect(recorded.stripes.written).toBe(0);
        if (fetched === STRIPES.source) break;
      }
      expect(counts.length).toBeGreaterThan(2);
      expect(await rpcText(bed, lazy.rpc, 'status')).toStartWith(
        'stripes            49, 37 of them with a source\nfetched            37 of 37 (100 %)\n',
      );
      await bed.closed(server.child.pid, lazy.image, 10_000);
      await bed.stop(server);
      const { stripes, fetched } = await dump(bed, lazy);
      expect(stripes).toMatchObject({ fetched: 37, missing: 0, hasSource: 37 });
      expect(fetched).toEqual([[0, 36]]);
    },
    60_000,
  );
}

const reasons = {
  cut: /it was cut after it was opened/,
  eio: /EIO/,
};

const outages = matrix({
  outage: ['cut', 'eio'],
  io_engine: ['io_uring', 'sync'],
  encrypted: [false, true],
  autofetch: [false, true],
  copy_on_read: [false, true],
} as const);

for (const { outage, encrypted, ...more } of outages) {
  const { io_engine, autofetch, copy_on_read } = more;
  const name = `${io_engine} ${encrypted ? 'encrypted' : 'plain'} autofetch=${autofetch} copy_on_read=${copy_on_read}`;
  testWith(
    `guests wait for a source that is away, and go on when it is back: ${outage} ${name}`,
    [outage === 'eio' && need.loop()],
    async () => {
      await using bed = new Bed();
      const settings = { ...more, autofetch_max_mib_per_s: 2 };
      const imageKind = outage === 'eio' ? 'loop512' : 'ext4';
      const options = { encrypted, shift, sizeBytes, imageBytes, imageKind, settings } as const;
      const lazy = await lazyDisk(bed, options);
      const away = new Outage(lazy.image);
      const server = await serve(bed, lazy);
      away.begin();
      const user = load(bed, server, lazy);
      expect((await failed(server, lazy.rpc, 3)).message).toMatch(reasons[outage]);
      const before = await statusNow(server, lazy.rpc);
      expect(before.failing_count).toBeGreaterThanOrEqual(before.failing.length);
      expect(before.stripes).toMatchObject(STRIPES);
      expect(before.metadata_failing).toBe(false);
      const told = await rpcText(bed, lazy.rpc, 'status');
      expect(told).toMatch(/failing 0 stripe +\d+\n/);
      expect(told).toMatch(reasons[outage]);
      // What autofetch alone has tried may have failed before the client has sent anything.
      while (!/ in flight\n/.test(await rpcText(bed, lazy.rpc, 'queues')));
      await sleeps(server, 1000);
      await failed(server, lazy.rpc, 5);
      expect(user.running).toBe(true);
      expect(server.child.stderr.text.match(/could not be fetched/g)?.length).toBe(1);
      away.end();
      await ended(user);
      const all = autofetch || copy_on_read;
      const after = await statusWhen(
        server,
        lazy.rpc,
        ({ stripes, queued, in_flight }) =>
          queued + in_flight === 0 && (!all || stripes.fetched === STRIPES.source),
      );
      expect(after).toMatchObject({ failing: [], failing_count: 0, metadata_failing: false });
      await server.child.said(
        /stripes are fetched again; \d+ tr(y|ies) had failed/,
        30_000,
        0,
        server.child.stderr,
      );
      await bed.stop(server);
      if (all) await bed.compareFile(lazy.disk, bed.path('state'), { image: lazy.reference });
    },
    90_000,
  );
}

/** Whatever a server waits for, no thread of it may spin. */
async function sleeps(server: Server, forMs: number): Promise<void> {
  const from = performance.now();
  const before = threadUsage(server.child.pid);
  await Bun.sleep(forMs);
  const after = threadUsage(server.child.pid);
  const passedNs = (performance.now() - from) * 1e6;
  for (const [task, { name, cpuNs }] of after) {
    const used = cpuNs - (before.get(task)?.cpuNs ?? 0);
    // One that spins uses all of it.
    expect(used / passedNs, name).toBeLessThan(0.5);
  }
}

testWith(
  'requests that need nothing of the source are answered while others wait for it',
  [],
  async () => {
    await using bed = new Bed();
    const lazy = await lazyDisk(bed, { shift, sizeBytes, imageBytes, settings: demand });
    const away = new Outage(lazy.image);
    const server = await serve(bed, lazy);
    await ended(qemuIo(bed, server, 'read 1M 256k'));
    await statusWhen(server, lazy.rpc, ({ stripes }) => stripes.fetched === 1);
    away.begin();
    // The second one waits; those behind it are sent each when the one before is answered. The first
    // one has QEMU make room for large requests, which it does only while none is in flight.
    const user = qemuIo(
      bed,
      server,
      'read 10M 1M',
      'aio_read 0 64k',
      'write -P 17 1M 4k',
      'write -P 19 10M 4k',
      'write -P 23 5M 256k',
      'read -P 17 1M 4k',
      'read -P 19 10M 4k',
      'read -P 23 5M 256k',
      'flush',
      'aio_flush',
    );
    const { failing } = await statusWhen(server, lazy.rpc, (now) => now.stripes.fetched === 2);
    expect(failing.map(({ stripe }) => stripe)).toEqual([0]);
    await failed(server, lazy.rpc, 2, 0);
    expect(user.running).toBe(true);
    away.end();
    await ended(user);
    expect((await statusNow(server, lazy.rpc)).failing).toEqual([]);
    await bed.stop(server);
  },
  60_000,
);

testWith(
  'a client that goes away while its requests wait holds up neither the next one nor its own stripes',
  [],
  async () => {
    await using bed = new Bed();
    const lazy = await lazyDisk(bed, { shift, sizeBytes, imageBytes, settings: demand });
    const away = new Outage(lazy.image);
    const server = await serve(bed, lazy);
    away.begin();
    const more = { span: String(4 * MIB) };
    const victim = load(bed, server, lazy, more);
    await failed(server, lazy.rpc);
    await victim.destroy(false);
    await ended(qemuIo(bed, server, 'write -P 5 8M 512k', 'read -P 5 8M 512k', 'flush'));
    const user = load(bed, server, lazy, more);
    await failed(server, lazy.rpc, 3);
    expect(user.running).toBe(true);
    away.end();
    await ended(user);
    await ended(qemuIo(bed, server, 'read -P 5 8M 512k'));
    await bed.stop(server);
  },
  60_000,
);

const ends = matrix({
  io_engine: ['io_uring', 'sync'],
  encrypted: [false, true],
  waiting: [true, false],
} as const);
for (const { io_engine, encrypted, waiting } of ends) {
  testWith(
    `SIGTERM while the source is away ends the server${waiting ? ' and what waits' : ''}: ${io_engine} ${encrypted ? 'encrypted' : 'plain'}`,
    [],
    async () => {
      await using bed = new Bed();
      const settings = {
        io_engine,
        autofetch: true,
        copy_on_read: true,
        autofetch_max_mib_per_s: 1,
      };
      const lazy = await lazyDisk(bed, { encrypted, shift, sizeBytes, imageBytes, settings });
      const away = new Outage(lazy.image);
      const server = await serve(bed, lazy);
      away.begin();
      const user = waiting ? load(bed, server, lazy) : null;
      await failed(server, lazy.rpc, 2);
      while (user && !/ in flight\n/.test(await rpcText(bed, lazy.rpc, 'queues')));
      server.child.signal('SIGTERM');
      expect(await server.child.exit(10_000)).toBe(0);
      expect([server.socket, lazy.rpc].filter(existsSync)).toEqual([]);
      // What it had not been given yet it never took.
      await user?.said(/failed: Input\/output error/, 10_000, 0, user.stderr);
      await user?.destroy(false);
      away.end();
      const again = await bed.start(server.config, server.socket);
      await ended(load(bed, again, lazy));
      await bed.stop(again);
      await bed.compareFile(lazy.disk, bed.path('state'), { image: lazy.reference });
    },
    60_000,
  );
}

testWith(
  'a disk without room is filled when there is some',
  [need.root()],
  async () => {
    await using bed = new Bed();
    const folder = bed.path('small');
    mkdirSync(folder);
    await bed.run(['mount', '-t', 'tmpfs', '-o', 'size=4m', 'none', folder]);
    try {
      const settings = { autofetch: true, copy_on_read: true };
      const lazy = await lazyDisk(bed, { shift, sizeBytes, imageBytes, settings });
      await bed.run(['truncate', '-s', String(sizeBytes), `${folder}/disk.raw`]);
      lazy.disk = `${folder}/disk.raw`;
      const server = await serve(bed, lazy);
      expect((await failed(server, lazy.rpc, 2)).message).toContain('ENOSPC');
      const { stripes } = await statusNow(server, lazy.rpc);
      expect(stripes.fetched).toBeLessThanOrEqual(16);
      await bed.run(['mount', '-o', 'remount,size=64m', folder]);
      await statusWhen(server, lazy.rpc, (now) => now.stripes.fetched === STRIPES.source);
      await ended(load(bed, server, lazy));
      await bed.stop(server);
      await bed.compareFile(lazy.disk, bed.path('state'), { image: lazy.reference });
    } finally {
      await bed.run(['umount', '-l', folder]);
    }
  },
  60_000,
);

/** Whether what is open of an immutable file can't be written: a file system that fails on demand. */
function canRefuseWrites(): string | undefined {
  const lacking = need.root() ?? need.diskFolder();
  if (lacking) return lacking;
  const file = `${folders.disk}/ubiblk-test-immutable-${process.pid}`;
  const fd = openSync(file, 'w');
  try {
    spawnSync('chattr', ['+i', file]);
    writeSync(fd, 'x');
    return 'no file system with immutable files was found';
  } catch {
    return undefined;
  } finally {
    spawnSync('chattr', ['-i', file]);
    closeSync(fd);
    unlinkSync(file);
  }
}

const refusing = canRefuseWrites();
for (const { ending, ...settings } of matrix({
  io_engine: ['io_uring', 'sync'],
  ending: ['later', 'meanwhile'],
} as const)) {
  testWith(
    `guests are told when the metadata can't be written, and all goes on when it can: ${settings.io_engine}, stopped ${ending}`,
    [refusing],
    async () => {
      await using bed = new Bed();
      const more = { ...settings, ...demand, track_written: true };
      const lazy = await lazyDisk(bed, { format: 2, shift, sizeBytes, imageBytes, settings: more });
      let server = await serve(bed, lazy);
      await ended(qemuIo(bed, server, 'read 0 256k'));
      // The read was answered from the image; the stripe comes after it.
      await statusWhen(server, lazy.rpc, ({ stripes }) => stripes.fetched === 1);
      const before = await dump(bed, lazy);
      await bed.run(['chattr', '+i', lazy.metadata]);
      try {
        // A stripe to be fetched, one that is overwritten, and the first write to one.
        const user = qemuIo(
          bed,
          server,
          'read 10M 1M',
          'aio_write -P 7 4M 4k',
          'aio_write -P 7 5M 256k',
          'aio_write -P 7 11M 4k',
          'aio_flush',
        );
        await user.exit(30_000);
        expect(user.stdout.text.match(/failed: Input.output error/g)?.length).toBe(3);
        const { metadata, metadata_failing } = await statusNow(server, lazy.rpc);
        expect(metadata_failing).toBe(true);
        expect(metadata).toMatchObject({ message: expect.stringContaining('EPERM'), pending: 3 });
        const { text } = server.child.stderr;
        expect(text.match(/the state of \d stripes? could not be recorded: EPERM/g)?.length).toBe(
          1,
        );
        // What is local and needs no record is not concerned.
        await ended(qemuIo(bed, server, 'read 0 256k', 'read 11M 4k'));
        expect(await dump(bed, lazy)).toEqual(before);
        if (ending === 'meanwhile') await bed.stop(server);
      } finally {
        await bed.run(['chattr', '-i', lazy.metadata]);
      }
      if (ending === 'meanwhile') server = await bed.start(server.config, server.socket);
      else await statusWhen(server, lazy.rpc, (now) => !now.metadata_failing);
      await ended(load(bed, server, lazy, { span: String(5 * MIB) }));
      const write = 'write -P 9 5M 256k';
      const rest = ['write -P 9 11M 4k', 'read -P 9 5M 256k', 'read -P 9 11M 4k'];
      await ended(qemuIo(bed, server, write, ...rest));
      const { stripes } = await statusNow(server, lazy.rpc);
      await bed.stop(server);
      const recorded = await dump(bed, lazy);
      expect(recorded.stripes.fetched).toBe(stripes.fetched);
      expect(recorded.written).toContainEqual([44, 44]);
    },
    60_000,
  );
}
