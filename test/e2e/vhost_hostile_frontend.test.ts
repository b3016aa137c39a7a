/**
 * Frontends and guests that break every rule, against the running server: it ends their connection or
 * their queue and nothing else. After each of them an ordinary client finds its disk in order, served
 * by the same process.
 */
import { expect, test } from 'bun:test';
import {
  closeSync,
  constants,
  existsSync,
  ftruncateSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  writeSync,
} from 'node:fs';
import { shim } from '../../ffi/library.ts';
import { Request } from '../../src/frontend/vhost/protocol.ts';
import { BlockClient } from '../../src/probe/block_client.ts';
import {
  ConnectionClosed,
  configPayload,
  type FrontendConnection,
  messageBytes,
  regionPayload,
  u64Payload,
  vringAddresses,
  vringFd,
  vringState,
} from '../../src/probe/frontend_connection.ts';
import { writeAndCompare } from '../../src/probe/phases.ts';
import { Random } from '../random.ts';
import { GUEST, inflightPayload, memoryFile, randomMessage, USER } from '../vhost/fake_frontend.ts';
import { connect, FEATURES, Machine, PROTOCOL_FEATURES, TIMEOUT_MS } from './machine.ts';
import { binary } from './processes.ts';
import { Bed, type Server, seed, soak } from './support.ts';

const MIB = 1 << 20;

/**
 * An ordinary client writes a megabyte, flushes it, and reads it back. Clients here block the thread:
 * the server's log is read first, or the server would wait for that.
 */
async function expectOrder(server: Server): Promise<void> {
  await Bun.sleep(0);
  const connection = connect(server);
  const options = { depth: 16, transferBytes: 65536, timeoutMs: TIMEOUT_MS };
  const client = BlockClient.open(connection, options);
  await writeAndCompare(client, MIB, seed);
  client.close();
  connection.close();
  expect(server.child.running).toBe(true);
}

/** What the server holds open and mapped of its frontends. */
function held(server: Server): { descriptors: number; mappings: number } {
  const folder = `/proc/${server.child.pid}`;
  const maps = readFileSync(`${folder}/maps`, 'utf8');
  return {
    descriptors: readdirSync(`${folder}/fd`).length,
    mappings: (maps.match(/\/memfd:ubiblk-(test-guest|probe|inflight)/g) ?? []).length,
  };
}

/** Resolves when the server has let go of the last frontend. */
async function expectHeld(server: Server, expected: ReturnType<typeof held>): Promise<void> {
  for (const deadline = Date.now() + TIMEOUT_MS; Date.now() < deadline; await Bun.sleep(5)) {
    if (Bun.deepEquals(held(server), expected)) return;
  }
  expect(held(server)).toEqual(expected);
}

const engines = ['io_uring', 'sync'];

test('random messages over the socket end connections and leave nothing behind', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk(), { num_queues: 2 });
  const random = new Random(seed);
  const before = held(server);
  await expectOrder(server);
  await expectHeld(server, before);
  for (let round = 0; round < (soak ? 20_000 : 600); round++) {
    const connection = connect(server);
    try {
      if (!random.chance(4)) {
        connection.send(Request.SET_FEATURES, u64Payload(FEATURES));
        connection.send(Request.SET_PROTOCOL_FEATURES, u64Payload(PROTOCOL_FEATURES));
        if (!random.chance(4)) startGarbage(connection, random);
      }
      for (let i = 0; i < 40; i++) {
        const [request, payload, fds] = randomMessage(random);
        for (const fd of fds) fillWithGarbage(fd, random);
        try {
          connection.send(request, payload, fds, random.chance(4) ? 9 : 1);
        } finally {
          for (const fd of fds) shim.ubiblk_close(fd);
        }
      }
    } catch (error) {
      // The server may close the connection, and nothing else.
      if (!(error instanceof ConnectionClosed)) throw error;
    }
    connection.close();
    await Bun.sleep(0);
    if (round % 50 === 49) {
      await expectOrder(server);
      await expectHeld(server, before);
    }
  }
  await bed.stop(server);
}, 600_000);

/** Starts a ring that has been filled with garbage. */
function startGarbage(connection: FrontendConnection, random: Random): void {
  const memory = memoryFile(MIB);
  const kickFd = shim.ubiblk_eventfd();
  fillWithGarbage(memory, random);
  fillWithGarbage(kickFd, random);
  const region = { guestAddress: GUEST, length: MIB, userAddress: USER, fileOffset: 0 };
  connection.send(Request.ADD_MEM_REG, regionPayload(region), [memory]);
  connection.send(Request.SET_VRING_NUM, vringState(0, random.pick([16, 256])));
  const addresses = vringAddresses(0, USER, USER + 0x8000, USER + 0x4000);
  connection.send(Request.SET_VRING_ADDR, addresses);
  connection.send(Request.SET_VRING_KICK, vringFd(0), [kickFd]);
  connection.send(Request.SET_VRING_ENABLE, vringState(0, 1));
  shim.ubiblk_close(memory);
  shim.ubiblk_close(kickFd);
}

/** Rings full of garbage that is not all absurd; an event descriptor is signalled instead. */
function fillWithGarbage(fd: number, random: Random): void {
  const bytes = new Uint8Array(0x10000);
  for (let i = 0; i < 2000; i++) bytes[random.below(bytes.length)] = random.next() % 5;
  try {
    writeSync(fd, bytes, 0, bytes.length, 0);
  } catch {
    shim.ubiblk_eventfd_signal(fd);
  }
}

test('half messages, wrong versions, and lengths of nonsense', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk());
  const before = held(server);
  await expectOrder(server);
  await expectHeld(server, before);
  const whole = messageBytes(Request.SET_VRING_CALL, vringFd(0));
  for (let cut = 1; cut < whole.length; cut++) {
    const connection = connect(server);
    const callFd = shim.ubiblk_eventfd();
    connection.sendRaw(whole.subarray(0, cut), [callFd]);
    shim.ubiblk_close(callFd);
    connection.close();
  }
  const header = (request: number, flags: number, length: number) => {
    return new Uint8Array(Uint32Array.of(request, flags, length).buffer);
  };
  for (const bytes of [
    header(1, 0, 0),
    header(1, 2, 0),
    header(1, 3, 0),
    header(1, 1, 4097),
    header(1, 1, 0xffff_ffff),
    header(0xffff_ffff, 1, 0),
  ]) {
    const connection = connect(server);
    connection.sendRaw(bytes);
    connection.awaitClosed();
    connection.close();
  }
  // A message in single bytes, with descriptors at each of them, is a message.
  const slow = connect(server);
  const fd = shim.ubiblk_eventfd();
  for (const byte of messageBytes(Request.GET_FEATURES, new Uint8Array(0))) {
    slow.sendRaw(Uint8Array.of(byte), [fd, fd, fd]);
  }
  shim.ubiblk_close(fd);
  expect(slow.receive(Request.GET_FEATURES).payload.byteLength).toBe(8);
  slow.close();
  await expectHeld(server, before);
  await expectOrder(server);
  await bed.stop(server);
}, 60_000);

test('what the configuration space is asked for comes in every size', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk());
  const connection = connect(server);
  for (const [offset, size] of [
    [0, 16],
    [0, 60],
    [0, 76],
    [0, 256],
    [0x100, 60],
  ]) {
    const { payload } = connection.ask(Request.GET_CONFIG, configPayload(offset, size));
    expect(payload.byteLength).toBe(12 + size);
    expect(Number(payload.getBigUint64(12, true))).toBe((64 * MIB) / 512);
  }
  connection.close();
  await bed.stop(server);
}, 60_000);

const breaks: [string, (machine: Machine) => void][] = [
  [
    'an available index far ahead',
    (machine) => {
      machine.queues[0].available[1] = 40_000;
      machine.events[0].kick();
    },
  ],
  ['a head outside the table', (machine) => machine.offer(0, 64)],
  [
    'a head twice',
    (machine) => {
      machine.prepare(0, 3, 0);
      machine.offer(0, 3, 3);
    },
  ],
];

for (const [name, breakQueue] of breaks) {
  test(`${name} stops that queue alone`, async () => {
    await using bed = new Bed();
    const server = await bed.serve(bed.disk(), { num_queues: 2 });
    for (let round = 0; round < 3; round++) {
      const machine = new Machine(server);
      expect(machine.read(0, 0)).toBe(0);
      expect(machine.read(1, 8)).toBe(0);
      breakQueue(machine);
      machine.expectBroken(0);
      for (let i = 0; i < 100; i++) expect(machine.read(1, i * 8)).toBe(0);
      const said = server.child.stderr.text.length;
      machine.close();
      await expectOrder(server);
      await server.child.said(/the frontend has disconnected/, 5000, said, server.child.stderr);
    }
    await server.child.said(/the queue is stopped: /, 5000, 0, server.child.stderr);
    await bed.stop(server);
  }, 60_000);
}

test('a broken queue can be stopped and started anew in the same connection', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk(), { num_queues: 2 });
  const machine = new Machine(server);
  machine.offer(0, 64);
  machine.expectBroken(0);
  machine.connection.ask(Request.GET_VRING_BASE, vringState(0, 0));
  machine.queues[0].available[1] = 0;
  machine.queues[0].available[2] = 0;
  Object.assign(machine.queues[0], { nextAvailable: 0, notified: 0 });
  machine.connection.askAck(Request.SET_VRING_BASE, vringState(0, 0));
  const { callFd, kickFd } = machine.events[0];
  machine.connection.askAck(Request.SET_VRING_CALL, vringFd(0), [callFd]);
  machine.connection.askAck(Request.SET_VRING_KICK, vringFd(0), [kickFd]);
  expect(machine.read(0, 0)).toBe(0);
  machine.close();
  await bed.stop(server);
}, 60_000);

for (const engine of engines) {
  test(`memory that is taken away under a running queue is its own loss: ${engine}`, async () => {
    await using bed = new Bed();
    // A queue that doesn't spin has no other look at its ring before it sleeps.
    const settings = { io_engine: engine, poll_queue_timeout_us: engine === 'sync' ? 0 : 1000 };
    const server = await bed.serve(bed.disk(), { num_queues: 2, ...settings });
    const before = held(server);
    await expectOrder(server);
    await expectHeld(server, before);
    const random = new Random(seed);
    for (let round = 0; round < (soak ? 300 : 12); round++) {
      const machine = new Machine(server);
      expect(machine.read(1, 0)).toBe(0);
      // All of it, or from somewhere in the rings or the headers on; with requests in flight.
      const heads = Array.from({ length: 20 }, (_, i) => 3 * i);
      for (const head of heads) machine.prepare(0, head, head * 8);
      if (random.chance(2)) machine.offer(0, ...heads);
      const left = random.pick([0, 0, 4096, 0x10000, 0x20000]);
      ftruncateSync(machine.memory.fd, left);
      machine.events[0].kick();
      machine.events[1].kick();
      // Where the rings are gone, it is noticed; where data alone is, requests fail.
      if (left === 0) machine.expectBroken(0);
      machine.close();
      await expectOrder(server);
    }
    await expectHeld(server, before);
    await bed.stop(server);
  }, 120_000);

  test(`data that is taken away is an I/O error, and the queue goes on: ${engine}`, async () => {
    await using bed = new Bed();
    const server = await bed.serve(bed.disk(), {
      num_queues: 2,
      io_engine: engine,
      direct_io: false,
    });
    const machine = new Machine(server);
    ftruncateSync(machine.memory.fd, MIB);
    expect(machine.read(0, 0)).toBe(1);
    expect(machine.read(1, 0)).toBe(1);
    await server.child.said(/read failed with EFAULT/, 5000, 0, server.child.stderr);
    machine.close();
    await expectOrder(server);
    await bed.stop(server);
  }, 60_000);
}

test('an in-flight record that is taken away is its queue loss', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk(), { num_queues: 2 });
  const machine = new Machine(server);
  const shape = inflightPayload(0, 0, 2, 64);
  const answer = machine.connection.ask(Request.GET_INFLIGHT_FD, shape);
  const size = Number(answer.payload.getBigUint64(0, true));
  const given = inflightPayload(size, 0, 2, 64);
  machine.connection.askAck(Request.SET_INFLIGHT_FD, given, answer.fds);
  expect(machine.read(0, 0)).toBe(0);
  ftruncateSync(answer.fds[0], 0);
  for (const fd of answer.fds) shim.ubiblk_close(fd);
  machine.prepare(0, 0, 0);
  machine.offer(0, 0);
  machine.expectBroken(0);
  machine.close();
  await expectOrder(server);
  await bed.stop(server);
}, 60_000);

test('a pipe for the log that nobody reads does not keep a server from serving', async () => {
  await using bed = new Bed();
  const [pipe, socket] = [bed.path('log'), bed.path('quiet.sock')];
  await bed.run(['mkfifo', pipe]);
  const reader = openSync(pipe, constants.O_RDWR);
  const config = bed.config({ path: bed.disk(), socket });
  const script = `exec ${binary} serve vhost --config ${config} 2> ${pipe}`;
  const child = bed.spawn(['bash', '-c', script]);
  const server = { child, socket, config };
  while (child.running && !existsSync(socket)) await Bun.sleep(5);
  // Several times what the pipe holds.
  for (let round = 0; round < 2000; round++) {
    const connection = connect(server);
    connection.sendRaw(messageBytes(99, new Uint8Array(0)));
    connection.awaitClosed();
    connection.close();
  }
  await expectOrder(server);
  const log = Buffer.alloc(1 << 20);
  const length = readSync(reader, log);
  expect(log.toString('utf8', 0, length)).toContain('request 99 is not offered');
  closeSync(reader);
  await bed.stop(server);
}, 60_000);
