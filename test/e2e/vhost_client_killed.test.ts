/**
 * A frontend that dies, comes back, or comes twice never harms the server or the data: what was
 * answered is there, what was in flight is there or not, sector by sector.
 */

import { expect, test } from 'bun:test';
import { connect, type Socket } from 'node:net';
import { client, keyValues, threadUsage, within } from './processes.ts';
import { Bed, matrix, Random, seed, soak } from './support.ts';

const rows = matrix({
  io_engine: ['io_uring', 'sync'],
  direct_io: [true, false],
  encrypted: [false, true],
  queues: [1, 4],
} as const);

for (const { queues, encrypted, ...settings } of rows) {
  const kind = encrypted ? 'encrypted' : 'plain';
  const name = `${Object.values(settings).join(' ')} ${kind}, ${queues} queues`;
  test(`a client killed in the middle of its load leaves a server and a disk in order: ${name}`, async () => {
    await using bed = new Bed();
    const disk = bed.disk({ encrypted });
    const server = await bed.serve(disk, { ...settings, num_queues: queues });
    const state = bed.path('state');
    const random = new Random(seed);
    const load = { queues, depth: 64, max: 262144, span: 16 << 20, state, zero: 1 };
    for (let round = 0; round < (soak ? 50 : 8); round++) {
      const argv = keyValues({ ...load, ops: 1e9, progress: 1, seed: seed + round });
      const victim = bed.spawn([client('vhost-check'), server.socket, ...argv]);
      // Its first report of progress comes after the comparison with the rounds before.
      const lines = 1 + random.below(3);
      await victim.said(new RegExp(`(answers\\n.*){${lines}}`, 's'), 30_000);
      await victim.destroy(false);
      if (!server.child.running) throw new Error(server.child.report());
    }
    await bed.check(server.socket, { ...load, ops: 2000, seed });
    await bed.stop(server);
    await bed.compareFile(disk, state, { span: load.span });
  }, 120_000);
}

async function connected(path: string): Promise<Socket> {
  const socket = connect(path);
  await within(
    new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', reject);
    }),
    5000,
    () => `a connection to '${path}'`,
  );
  return socket;
}

/** VHOST_USER_GET_FEATURES: request 1, version 1, no payload. */
const getFeatures = Buffer.from([1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);

async function answered(socket: Socket): Promise<Buffer> {
  socket.write(getFeatures);
  return await within(
    new Promise<Buffer>((resolve, reject) => {
      socket.once('data', resolve);
      socket.once('close', () => reject(new Error('the connection was closed')));
      socket.once('error', reject);
    }),
    5000,
    () => 'the answer to GET_FEATURES',
  );
}

test('a second frontend is refused while the first one goes on', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk());
  const options = keyValues({ ops: 1e9, progress: 1, zero: 1, seed });
  const first = bed.spawn([client('vhost-check'), server.socket, ...options]);
  await first.said(/answers/, 30_000);
  for (let i = 0; i < 5; i++) {
    const second = connect(server.socket);
    const closed = new Promise<void>((resolve) => {
      second.once('close', () => resolve());
      second.once('error', () => resolve());
      second.resume();
    });
    await within(closed, 5000, () => `the end of a second connection: ${server.child.report()}`);
    second.destroy();
  }
  await first.said(/answers/, 10_000, first.stdout.text.length);
  await first.destroy(false);
  await bed.check(server.socket, { ops: 500, zero: 1 });
  await bed.stop(server);
}, 60_000);

test('three hundred frontends in a row are served, and leave no thread and no descriptor', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk());
  const size = async () => {
    const listing = await bed.run(['ls', `/proc/${server.child.pid}/fd`]);
    const descriptors = listing.stdout.text.trim().split('\n').length;
    return { descriptors, threads: threadUsage(server.child.pid).size };
  };
  const patiently = async () => {
    // A frontend before may be on its way out: the server may refuse until it has gone.
    for (const deadline = Date.now() + 10_000; ; ) {
      try {
        const socket = await connected(server.socket);
        const answer = await answered(socket);
        return { socket, answer };
      } catch (error) {
        if (Date.now() > deadline || !server.child.running) {
          throw new Error(`${error}: ${server.child.report()}`);
        }
      }
    }
  };
  await bed.check(server.socket, { ops: 100 });
  const before = await size();
  for (let i = 0; i < 300; i++) {
    const { socket, answer } = await patiently();
    // Same request, version 1, the reply flag, eight bytes.
    expect(answer.subarray(0, 12).toString('hex')).toBe('010000000500000008000000');
    // Every third one leaves in the middle of a message.
    if (i % 3 === 2) socket.write(getFeatures.subarray(0, 7));
    if (i % 2 === 0) socket.destroy();
    else socket.resetAndDestroy();
  }
  for (let i = 0; i < 20; i++) await bed.check(server.socket, { ops: 50, span: 1 << 20 });
  const { socket } = await patiently();
  socket.destroy();
  await bed.check(server.socket, { ops: 50, span: 1 << 20 });
  const after = await size();
  // The kernel's I/O workers come and go; one of anything for each frontend would be hundreds.
  expect(after.threads).toBeLessThanOrEqual(before.threads + 8);
  expect(after.descriptors).toBeLessThanOrEqual(before.descriptors + 8);
  await bed.stop(server);
}, 120_000);

test('messages of nonsense end their connection and nothing else', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk());
  const random = new Random(seed);
  for (let i = 0; i < 200; i++) {
    const socket = connect(server.socket);
    const closed = new Promise<void>((resolve) => {
      socket.once('close', () => resolve());
      socket.on('error', () => {});
      socket.resume();
    });
    const bytes = Buffer.alloc(12 + random.below(64));
    for (let at = 0; at < bytes.length; at++) bytes[at] = random.below(256);
    // Half of them look like requests, with a wrong payload; the last byte is never the end of one.
    if (i % 2) {
      bytes.writeUInt32LE(1 + random.below(45), 0);
      bytes.writeUInt32LE(random.below(2) ? 1 : 9, 4);
      bytes.writeUInt32LE(bytes.length - 12, 8);
    }
    socket.end(bytes);
    await within(closed, 5000, () => `the end of connection ${i}: ${server.child.report()}`);
  }
  await bed.check(server.socket, { ops: 500, zero: 1 });
  await bed.stop(server);
}, 60_000);
