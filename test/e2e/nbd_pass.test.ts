/** Exports that are served as they are: a virtual machine's disk, or another export, without a file. */
import { expect } from 'bun:test';
import { rmSync, statSync } from 'node:fs';
import { FakeServer, type Lie, someExport } from '../nbd/support.ts';
import { compareImages, endNbd, MIB, nbdkit, nbdPrograms, serveNbd } from './nbd.ts';
import { binary, client, keyValues } from './processes.ts';
import { Bed, matrix, need, qemuDisk, type Server, seed, testWith } from './support.ts';

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

/** Starts qemu-nbd. @returns the URI of its export */
async function qemuNbd(bed: Bed, image: string): Promise<string> {
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
  return `nbd+unix:///?socket=${socket}`;
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
        uri = await qemuNbd(bed, image);
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
  'parts of a request come in chunks, with holes between them, into memory in parts',
  [...needs, need.program('qemu-nbd')],
  async () => {
    await using bed = new Bed();
    const image = bed.disk({ sizeBytes: MIB });
    await bed.run([
      'qemu-io',
      '-f',
      'raw',
      '-c',
      'write -P 7 4k 4k',
      '-c',
      'write -P 9 12k 4k',
      image,
    ]);
    const server = await serveVhost(bed, await qemuNbd(bed, image), 1);
    const argv = ['--image-opts', qemuDisk(server.socket), '-c', 'readv -v 0 1024 8192 512 6656'];
    const { stdout } = await bed.run([client('qemu-io'), ...argv]);
    const at = (offset: number) =>
      stdout.text.split(offset.toString(16).padStart(8, '0'))[1].slice(0, 5);
    const found = [0, 4080, 4096, 8176, 8192, 12272, 12288, 16368].map((offset) =>
      at(offset).trim(),
    );
    const bytes = ['00', '00', '07', '07', '00', '00', '09', '09'];
    expect(found).toEqual(bytes.map((byte) => `:  ${byte}`));
    await bed.stop(server);
  },
  60_000,
);

testWith(
  'a server whose replies are none is told of, and not asked without end',
  [need.program('qemu-io')],
  async () => {
    await using bed = new Bed();
    const noReply: Lie = (bytes, phase) =>
      phase === 'talk' ? bytes : Buffer.alloc(bytes.length, 1);
    using liar = new FakeServer(someExport, noReply);
    const server = await serveNbd(bed, null, {}, { args: ['--nbd', liar.uri] });
    const reader = bed.spawn(['qemu-io', '-r', '-f', 'raw', '-c', 'read 0 4k', server.uri]);
    await server.child.said(/doesn't keep to the protocol/, 10_000, 0, server.child.stderr);
    // Of each connection one.
    expect(liar.requests.length).toBe(3);
    await endNbd(server);
    await reader.exit(10_000);
  },
  30_000,
);

testWith(
  'extents that are not whole sectors are told as data',
  needs,
  async () => {
    await using bed = new Bed();
    const image = bed.disk({ sizeBytes: 2 * MIB });
    await bed.run([
      'qemu-io',
      '-f',
      'raw',
      '-c',
      'write -P 7 64k 4k',
      '-c',
      'write -P 9 512k 12k',
      image,
    ]);
    const shifted = ['--filter=offset', 'file', image, 'offset=100', 'range=1M'];
    const source = await nbdkit(bed, shifted);
    const server = await serveNbd(bed, null, {}, { args: ['--nbd', source.uri] });
    const { stdout } = await bed.run(['nbdinfo', '--map', '--json', server.uri]);
    const map: { offset: number; length: number; type: number }[] = JSON.parse(stdout.text);
    expect(map.filter(({ length }) => length % 512 !== 0)).toEqual([]);
    const zeroes = map.filter(({ type }) => type === 3);
    for (const { offset, length } of zeroes) {
      await bed.run([
        'qemu-io',
        '-r',
        '-f',
        'raw',
        '-c',
        `read -P 0 ${offset} ${length}`,
        source.uri,
      ]);
    }
    await compareImages(bed, server.uri, source.uri);
    await endNbd(server);
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
    const rpc = bed.path('rpc.sock');
    const server = await serveNbd(
      bed,
      bed.path('unused'),
      { rpc_socket_path: rpc },
      { args: ['--nbd', source.uri] },
    );
    source.child.signal('SIGKILL');
    await source.child.reaped(10_000);
    const waiting = bed.spawn(['qemu-io', '-f', 'raw', '-c', 'read 0 4k', server.uri]);
    await server.child.said(/is away/, 10_000, 0, server.child.stderr);
    const deadline = Date.now() + 10_000;
    const requests = async () =>
      (await bed.run([binary, 'rpc', rpc, 'queues', '--json'])).stdout.text;
    while (!(await requests()).includes('"read"')) {
      if (Date.now() > deadline) throw new Error(`no request waits: ${bed.report()}`);
    }
    await endNbd(server);
    await waiting.exit(10_000);
  },
  60_000,
);
