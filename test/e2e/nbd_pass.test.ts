/** Exports that are served as they are: a virtual machine's disk, or another export, without a file. */
import { expect } from 'bun:test';
import { rmSync, statSync } from 'node:fs';
import { compareImages, endNbd, MIB, nbdkit, nbdPrograms, serveNbd } from './nbd.ts';
import { binary, client, keyValues } from './processes.ts';
import { Bed, matrix, need, type Server, seed, testWith } from './support.ts';

const needs = nbdPrograms.map((name) => need.program(name));

/** Starts `ubiblk serve vhost --nbd`. */
async function serveVhost(bed: Bed, uri: string, queues: number): Promise<Server> {
  const socket = bed.path('vhost.sock');
  const config = bed.config({ path: bed.path('unused'), num_queues: queues, queue_size: 128 });
  const argv = [binary, 'serve', 'vhost', '--nbd', uri, '--config', config, '--socket', socket];
  const child = bed.spawn(argv);
  await bed.listening(child, 10_000);
  return { child, socket, config };
}

const rows = matrix({
  server: [
    'file',
    'memory',
    'no FUA',
    'no zero',
    'no structured replies',
    'one connection',
    'qemu-nbd',
  ],
  queues: [1, 2],
} as const);

for (const { server: kind, queues } of rows) {
  testWith(
    `a virtual machine's disk is an export: ${kind}, ${queues} queues`,
    [...needs, need.program('qemu-nbd')],
    async () => {
      await using bed = new Bed();
      const image = bed.disk({ sizeBytes: 32 * MIB });
      const argv: Record<string, string[]> = {
        file: ['file', image],
        memory: ['memory', '32M'],
        'no FUA': ['--filter=fua', 'file', image],
        'no zero': ['--filter=nozero', 'file', image, 'zeromode=none'],
        'no structured replies': ['--no-sr', 'file', image],
        'one connection': ['--filter=multi-conn', 'file', image, 'multi-conn-mode=disable'],
      };
      let uri: string;
      if (kind === 'qemu-nbd') {
        const socket = bed.path('qemu.sock');
        const pid = bed.path('qemu.pid');
        const child = bed.spawn([
          'qemu-nbd',
          '-t',
          '-e',
          '8',
          '--discard=unmap',
          '-k',
          socket,
          '-f',
          'raw',
          '--pid-file',
          pid,
          image,
        ]);
        while (!(await Bun.file(pid).exists())) {
          if (!child.running) throw new Error(child.report());
          await Bun.sleep(10);
        }
        uri = `nbd+unix:///?socket=${socket}`;
      } else {
        uri = (await nbdkit(bed, argv[kind])).uri;
      }
      const server = await serveVhost(bed, uri, queues);
      const options = {
        queues: kind === 'one connection' ? 1 : queues,
        depth: 32,
        seed,
        zero: 1,
        ops: 6000,
      };
      await bed.check(server.socket, options);
      await bed.stop(server);
    },
    90_000,
  );
}

testWith(
  'an export is served as it is over NBD, with the same content',
  needs,
  async () => {
    await using bed = new Bed();
    const image = bed.disk({ sizeBytes: 16 * MIB });
    bed.fill(image, 16 * MIB);
    const source = await nbdkit(bed, ['file', image]);
    const server = await serveNbd(bed, null, {}, { args: ['--nbd', source.uri] });
    await compareImages(bed, server.uri, image);
    const other = bed.path('other.raw');
    await bed.run(['truncate', '-s', '16M', other]);
    bed.fill(other, 16 * MIB, 5);
    await bed.run(['nbdcopy', other, server.uri]);
    await endNbd(server);
    await bed.run(['cmp', other, image]);
    expect(statSync(image).size).toBe(16 * MIB);
  },
  60_000,
);

testWith(
  'requests wait for an export that goes away, and are made when it is back',
  needs,
  async () => {
    await using bed = new Bed();
    const image = bed.disk({ sizeBytes: 32 * MIB });
    let source = await nbdkit(bed, ['--filter=delay', 'file', image, 'wdelay=2ms']);
    const server = await serveVhost(bed, source.uri, 2);
    const state = bed.path('state');
    const check = bed.spawn([
      client('vhost-check'),
      server.socket,
      ...keyValues({ queues: 2, depth: 16, seed, ops: 8000, zero: 1, state, timeout: 60 }),
    ]);
    for (let i = 0; i < 3; i++) {
      // Some requests have been answered since the last time.
      await Bun.sleep(300);
      source.child.signal('SIGKILL');
      await source.child.reaped(10_000);
      rmSync(source.socket);
      rmSync(`${source.socket}.pid`);
      source = await nbdkit(bed, ['--filter=delay', 'file', image, 'wdelay=2ms']);
    }
    expect(await check.exit(60_000)).toBe(0);
    await bed.stop(server);
    await bed.compareFile(image, state);
  },
  120_000,
);

testWith(
  'a server ends while its export is away',
  needs,
  async () => {
    await using bed = new Bed();
    const source = await nbdkit(bed, ['memory', '1M']);
    const server = await serveNbd(bed, null, {}, { args: ['--nbd', source.uri] });
    source.child.signal('SIGKILL');
    await source.child.reaped(10_000);
    const waiting = bed.spawn(['qemu-io', '-f', 'raw', '-c', 'read 0 4k', server.uri]);
    await server.child.said(/is away/, 10_000, 0, server.child.stderr);
    await endNbd(server);
    await waiting.exit(10_000);
  },
  60_000,
);
