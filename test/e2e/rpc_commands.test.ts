/** What clients of the RPC socket can have done, and what they can't do to a server. */
import { expect, test } from 'bun:test';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { ended, failed, lazyDisk, Outage, qemuIo, statusNow, statusWhen } from './lazy.ts';
import { binary, client, keyValues, within } from './processes.ts';
import { ask } from './rpc.ts';
import { Bed, need, Random, type Server, seed, soak, testWith } from './support.ts';

const MIB = 1 << 20;

async function serve(bed: Bed): Promise<Server & { rpc: string }> {
  const rpc = bed.path('rpc.sock');
  return { ...(await bed.serve(bed.disk(), { num_queues: 2, rpc_socket_path: rpc })), rpc };
}

testWith(
  'flush has the data file synced, beside requests in flight',
  [need.program('strace')],
  async () => {
    await using bed = new Bed();
    const server = await serve(bed);
    const trace = bed.path('trace');
    const { pid } = server.child;
    const strace = bed.spawn(
      ['strace', '-f', '-y', '-e', 'trace=fdatasync', '-o', trace, '-p', String(pid)],
      { polite: true },
    );
    await strace.said(/attached/, 10_000, 0, strace.stderr);
    const load = keyValues({ ops: 1e9, progress: 1, mix: 'w', queues: 2 });
    const user = bed.spawn([client('vhost-check'), server.socket, ...load]);
    await user.said(/answers/, 30_000);
    // The client sends no flush.
    for (let i = 0; i < 3; i++) expect(await ask(server.rpc, 'flush')).toEqual({ flushed: true });
    expect(user.running).toBe(true);
    await user.destroy(false);
    await strace.destroy(true);
    const calls = readFileSync(trace, 'utf8').match(/fdatasync\(\d+<.*disk0\.raw>\)/g);
    expect(calls?.length).toBe(3);
    await bed.stop(server);
  },
  60_000,
);

test('autofetch pauses and goes on; what requests need is fetched meanwhile', async () => {
  await using bed = new Bed();
  const settings = { autofetch: true, autofetch_max_mib_per_s: 4, copy_on_read: true };
  const sizes = { shift: 9, sizeBytes: 16 * MIB, imageBytes: 16 * MIB };
  const lazy = await lazyDisk(bed, { ...sizes, settings });
  const server = await bed.serve(lazy.disk, lazy.settings);
  await statusWhen(server, lazy.rpc, ({ stripes }) => stripes.fetched > 0);
  expect(await ask(lazy.rpc, 'pause_autofetch')).toEqual({ autofetch: false });
  const idle = await statusWhen(
    server,
    lazy.rpc,
    ({ queued, in_flight, metadata }) => queued + in_flight + metadata.pending === 0,
  );
  expect(idle.autofetch).toBe(false);
  const { fetched, source } = idle.stripes;
  expect(fetched).toBeLessThan(source);
  await ended(qemuIo(bed, server, 'read 15M 4k'));
  // QEMU has looked at the first stripe, too, which may have been there.
  const more = await statusWhen(server, lazy.rpc, ({ stripes }) => stripes.fetched > fetched);
  expect(more.stripes.fetched).toBeLessThanOrEqual(fetched + 2);
  expect(await ask(lazy.rpc, 'resume_autofetch')).toEqual({ autofetch: true });
  await statusWhen(server, lazy.rpc, ({ stripes }) => stripes.fetched === source);
  // Nothing is left to do, which is no error.
  expect(await ask(lazy.rpc, 'resume_autofetch')).toEqual({ autofetch: true });
  await bed.stop(server);
}, 60_000);

test('what has failed is tried again when it is told to be', async () => {
  await using bed = new Bed();
  const sizes = { shift: 9, sizeBytes: 4 * MIB, imageBytes: 4 * MIB };
  const lazy = await lazyDisk(bed, { ...sizes, settings: { copy_on_read: true } });
  const away = new Outage(lazy.image);
  const server = await bed.serve(lazy.disk, lazy.settings);
  away.begin();
  const user = qemuIo(bed, server, 'read 1M 4k');
  // By then there are seconds between two tries.
  await failed(server, lazy.rpc, 5);
  const { source } = await statusNow(server, lazy.rpc);
  expect(source?.failures).toBeGreaterThanOrEqual(5);
  away.end();
  expect((await ask(lazy.rpc, 'retry_failed')).retried).toBeGreaterThan(0);
  await ended(user);
  await bed.stop(server);
}, 60_000);

test('commands for stripes are refused with a code where there are none', async () => {
  await using bed = new Bed();
  const server = await serve(bed);
  for (const command of ['pause_autofetch', 'resume_autofetch', 'retry_failed']) {
    expect(await ask(server.rpc, command)).toEqual({
      code: 'no_metadata',
      error: 'the disk has no metadata: nothing is fetched',
    });
  }
  const child = await bed.run([binary, 'rpc', server.rpc, 'retry_failed'], { expect: 1 });
  expect(child.stderr.text).toContain('refused the command: the disk has no metadata');
  await bed.stop(server);
}, 60_000);

test('shutdown is answered, and ends the server as a signal does', async () => {
  await using bed = new Bed();
  const server = await serve(bed);
  const load = keyValues({ ops: 1e9, progress: 1, queues: 2, depth: 32 });
  const user = bed.spawn([client('vhost-check'), server.socket, ...load]);
  await user.said(/answers/, 30_000);
  expect(await ask(server.rpc, 'shutdown')).toEqual({ shutting_down: true });
  expect(await server.child.exit(10_000)).toBe(0);
  expect(server.child.stderr.text).toContain('a client asks for the end');
  for (const path of [server.socket, server.rpc]) expect(existsSync(path)).toBe(false);
  await user.destroy(false);
}, 60_000);

/** Sends bytes and ends its side, or vanishes. @returns all that came back */
async function talk(path: string, bytes: Uint8Array, vanish: boolean): Promise<string> {
  const socket = createConnection({ path, allowHalfOpen: true });
  const over = Promise.withResolvers<void>();
  let text = '';
  socket.on('error', () => over.resolve());
  socket.on('close', () => over.resolve());
  socket.on('data', (part) => {
    text += part;
  });
  socket.on('end', () => socket.end());
  socket.write(bytes, () => (vanish ? socket.destroy() : socket.end()));
  await over.promise;
  return text;
}

const COMMANDS = ['version', 'status', 'queues', 'stats', 'flush', 'retry_failed', 'nonsense'];

/** Requests, half of them damaged. */
function nonsense(random: Random): Uint8Array {
  const lines: string[] = [];
  for (let i = random.below(8); i >= 0; i--) {
    const command = COMMANDS[random.below(COMMANDS.length)];
    const more = [
      {},
      { id: random.next() },
      { command: [command] },
      { a: 'x'.repeat(random.below(70_000)) },
    ];
    lines.push(JSON.stringify({ command, ...more[random.below(more.length)] }));
  }
  const bytes = new Uint8Array(Buffer.from(`${lines.join('\n')}\n`));
  for (let i = random.below(2) * random.below(20); i > 0; i--) {
    bytes[random.below(bytes.length)] = random.below(256);
  }
  return bytes.subarray(0, bytes.length - (random.below(3) === 0 ? random.below(20) : 0));
}

const descriptors = (pid: number) => readdirSync(`/proc/${pid}/fd`).length;

test('nonsense is answered line by line with errors, and leaves nothing behind', async () => {
  await using bed = new Bed();
  const server = await serve(bed);
  const load = keyValues({ queues: 2, depth: 16, ops: 20_000, max: 16384, seed });
  await ask(server.rpc, 'flush');
  const before = descriptors(server.child.pid);
  const user = bed.spawn([client('vhost-check'), server.socket, ...load]);
  const random = new Random(seed);
  const codes = new Set<unknown>();
  for (let round = 0; round < (soak ? 2000 : 60); round++) {
    const several = Array.from({ length: 1 + random.below(12) }, () =>
      talk(server.rpc, nonsense(random), random.below(4) === 0),
    );
    const answers = await within(Promise.all(several), 20_000, () => server.child.report());
    for (const line of answers.flatMap((text) => text.split('\n').slice(0, -1))) {
      const answer = JSON.parse(line);
      expect('code' in answer).toBe('error' in answer);
      codes.add(answer.code);
    }
  }
  for (const code of ['invalid_request', 'unknown_command', 'request_too_long', 'no_metadata']) {
    expect(codes).toContain(code);
  }
  expect(codes).not.toContain('internal_error');
  await ended(user);
  const gone = async () => {
    while (descriptors(server.child.pid) > before + 1) await ask(server.rpc, 'version');
  };
  await within(gone(), 10_000, () => server.child.report());
  await bed.stop(server);
}, 120_000);

test('many clients at once: each is answered, or refused; a line without end is not kept', async () => {
  await using bed = new Bed();
  const server = await serve(bed);
  const request = Buffer.from('{"command":"stats"}\n'.repeat(20));
  const crowd = Array.from({ length: 200 }, () => talk(server.rpc, request, false));
  const answers = await within(Promise.all(crowd), 30_000, () => server.child.report());
  let served = 0;
  for (const text of answers) {
    const lines = text
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line));
    if (lines.length === 20)
      served += Number(lines.every(({ stats }) => stats.queues.length === 2));
    else expect(lines[0].code).toBe('too_many_clients');
  }
  expect(served).toBeGreaterThanOrEqual(64);
  const endless = createConnection(server.rpc);
  const { text, sent } = await within(pour(endless), 20_000, () => server.child.report());
  expect(JSON.parse(text).code).toBe('request_too_long');
  // What the sockets themselves hold, and little more.
  expect(sent).toBeLessThan(16 * MIB);
  await bed.check(server.socket, { queues: 2, ops: 500 });
  await bed.stop(server);
}, 120_000);

/** Sends without a line's end until the server closes. @returns what it said, and what it was sent */
async function pour(socket: Socket): Promise<{ text: string; sent: number }> {
  const part = Buffer.alloc(64 * 1024, 'x');
  let text = '';
  let open = true;
  socket.on('data', (bytes) => {
    text += bytes;
  });
  socket.on('error', () => {});
  const closed = new Promise<void>((resolve) => socket.on('close', () => resolve()));
  void closed.then(() => {
    open = false;
  });
  let sent = 0;
  while (open && text === '' && sent < 64 * MIB) {
    sent += part.length;
    await Promise.race([new Promise((resolve) => socket.write(part, resolve)), closed]);
    // A write that needs not wait lets no answer in.
    await new Promise((resolve) => setImmediate(resolve));
  }
  if (text === '') socket.destroy();
  else socket.end();
  await closed;
  return { text, sent };
}
