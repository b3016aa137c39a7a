/** The RPC socket with clients that split, join, flood, dawdle and vanish. */
import { expect, test } from 'bun:test';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  renameSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { UserError } from '../../src/errors.ts';
import { RpcError } from '../../src/observe/rpc_protocol.ts';
import { openDescriptors, RpcBed } from './support.ts';

const PING = '{"command":"ping"}';
const PONG = '{"pong":1}';
const commands = { ping: () => ({ pong: 1 }) };

/** A command that is answered when the test says so. */
function gate() {
  const { promise, resolve } = Promise.withResolvers<void>();
  let calls = 0;
  const command = async () => {
    calls++;
    await promise;
    return { gate: calls };
  };
  return { open: resolve, command, calls: () => calls };
}

test('lines may come byte by byte, many at once, padded, or with blank ones between', async () => {
  using bed = new RpcBed();
  bed.serve({ ...commands, other: () => ({ other: 2 }) });
  const client = await bed.connect();
  await client.drip(`${PING}\n`);
  expect(await client.line()).toBe(PONG);
  client.send(`\n \t\r\n${PING}\n\n  {"command":"other","more":[1]} \r\n${PING.slice(0, 7)}`);
  expect(await client.line()).toBe(PONG);
  expect(await client.line()).toBe('{"other":2}');
  client.send(`${PING.slice(7)}\n`);
  expect(await client.line()).toBe(PONG);
});

test('the last line needs no end: it is answered, and then the connection is closed', async () => {
  using bed = new RpcBed();
  bed.serve(commands);
  const client = await bed.connect();
  client.send(`${PING}\n${PING}`);
  client.finish();
  expect(await client.line()).toBe(PONG);
  expect(await client.line()).toBe(PONG);
  expect(await client.line()).toBe(null);
  await client.closed;
  const silent = await bed.connect();
  silent.finish();
  expect(await silent.line()).toBe(null);
});

test.each([
  ['ping', /^invalid request: ./],
  ['{"command":', /^invalid request: ./],
  ['['.repeat(60_000), /^invalid request: ./],
  ['["ping"]', /^invalid request: it is not an object/],
  ['null', /^invalid request: it is not an object/],
  ['{"Command":"ping"}', /^invalid request: 'command' is missing$/],
  ['{"command":null}', /^invalid request: 'command' is not a string$/],
  ['{"command":["ping"]}', /^invalid request: 'command' is not a string$/],
])('what is no request is answered so, and the connection goes on: %.30s', async (line, text) => {
  using bed = new RpcBed();
  bed.serve(commands);
  const client = await bed.connect();
  const answer = await client.ask(line);
  expect(answer).toEqual({ code: 'invalid_request', error: expect.stringMatching(text) });
  expect(await client.ask(PING)).toEqual({ pong: 1 });
});

test.each(['pong', '', 'constructor', '__proto__', 'toString', 'a\u0000"\n\u{1f600}'])(
  'a command that is not in the table: %j',
  async (command) => {
    using bed = new RpcBed();
    bed.serve(commands);
    const client = await bed.connect();
    expect(await client.ask(JSON.stringify({ command }))).toEqual({
      code: 'unknown_command',
      error: `unknown command: ${command}`,
    });
    expect(await client.ask(PING)).toEqual({ pong: 1 });
  },
);

test('what is not UTF-8 is answered once, and the connection is closed', async () => {
  using bed = new RpcBed();
  bed.serve(commands);
  const client = await bed.connect();
  client.send(Buffer.from([0x22, 0xc3, 0x28, 0x22, 0x0a]));
  client.send(`${PING}\n`);
  expect(await client.line()).toBe(
    '{"code":"invalid_request","error":"invalid request: it is not UTF-8"}',
  );
  expect(await client.line()).toBe(null);
});

test('a request of 64 KiB is read; of one that is longer the client is told, whatever it sends', async () => {
  using bed = new RpcBed();
  bed.serve(commands);
  const most = PING.padEnd(64 * 1024);
  const refusal = {
    code: 'request_too_long',
    error: 'invalid request: it has more than 65536 bytes',
  };
  const client = await bed.connect();
  expect(await client.ask(most)).toEqual({ pong: 1 });
  expect(await client.ask(`${most} `)).toEqual(refusal);
  expect(await client.line()).toBe(null);
  // One that never ends its line, and goes on for longer than all buffers hold.
  const endless = await bed.connect();
  endless.send(Buffer.alloc(8 << 20, 'x'));
  expect(JSON.parse((await endless.line()) ?? '')).toEqual(refusal);
  expect(await endless.line()).toBe(null);
});

test('a refused client that does not go is closed after a while', async () => {
  using bed = new RpcBed();
  bed.serve(commands, { lingerMs: 20, clients: 1 });
  const client = await bed.connect();
  client.send(Buffer.from([0xff, 0x0a]));
  await client.line();
  await client.closed;
  expect(await (await bed.connect()).ask(PING)).toEqual({ pong: 1 });
});

test('answers have their keys in alphabetical order, at every depth, and lists in theirs', async () => {
  using bed = new RpcBed();
  bed.serve({
    sort: () => ({ b: [{ z: 1, y: null }, 'x', ['b', 'a']], a: { d: true, c: 'é\n' } }),
  });
  const client = await bed.connect();
  client.send('{"command":"sort"}\n');
  expect(await client.line()).toBe(
    '{"a":{"c":"é\\n","d":true},"b":[{"y":null,"z":1},"x",["b","a"]]}',
  );
});

test('a command that fails is answered with its error, and only a fault of ours is logged', async () => {
  using bed = new RpcBed();
  bed.serve({
    user: () => {
      throw new UserError('the disk is full');
    },
    coded: () => Promise.reject(new RpcError('not_now', 'later')),
    internal: () => (undefined as unknown as { x: object }).x,
    nothing: () => {},
    ...commands,
  });
  const client = await bed.connect();
  const ask = (command: string) => client.ask(JSON.stringify({ command }));
  expect(await ask('user')).toEqual({ code: 'failed', error: 'the disk is full' });
  expect(await ask('coded')).toEqual({ code: 'not_now', error: 'later' });
  expect(bed.log.errors).toEqual([]);
  expect(await ask('internal')).toMatchObject({ code: 'internal_error' });
  expect(bed.log.errors.length).toBe(1);
  expect(await ask('nothing')).toEqual({});
  expect(await ask('ping')).toEqual({ pong: 1 });
});

test('a command that takes its time keeps its place in the order, and nobody else waits', async () => {
  using bed = new RpcBed();
  const { open, command } = gate();
  bed.serve({ ...commands, gate: command });
  const slow = await bed.connect();
  slow.send(`{"command":"gate"}\n${PING}\n`);
  slow.finish();
  const other = await bed.connect();
  expect(await other.ask(PING)).toEqual({ pong: 1 });
  open();
  expect(await slow.line()).toBe('{"gate":1}');
  expect(await slow.line()).toBe(PONG);
  expect(await slow.line()).toBe(null);
});

test('a flood of requests does not keep others waiting', async () => {
  using bed = new RpcBed();
  bed.serve({ ...commands, count: () => ({ count: ++counted }) });
  let counted = 0;
  const flood = await bed.connect();
  flood.send(`{"command":"count"}\n`.repeat(20_000));
  expect(await flood.line()).toBe('{"count":1}');
  const other = await bed.connect();
  for (let i = 0; i < 10; i++) expect(await other.ask(PING)).toEqual({ pong: 1 });
  expect(counted).toBeLessThan(20_000);
  for (let i = 2; i <= 20_000; i++) expect(await flood.line()).toBe(`{"count":${i}}`);
});

test('one client more than there may be is told so and closed; one that leaves makes room', async () => {
  using bed = new RpcBed();
  bed.serve(commands, { clients: 3 });
  const clients = [await bed.connect(), await bed.connect(), await bed.connect()];
  for (const client of clients) expect(await client.ask(PING)).toEqual({ pong: 1 });
  const extra = await bed.connect();
  expect(await extra.line()).toBe(
    '{"code":"too_many_clients","error":"too many clients: 3 are connected"}',
  );
  expect(await extra.line()).toBe(null);
  for (const client of clients) expect(await client.ask(PING)).toEqual({ pong: 1 });
  clients[1].finish();
  await clients[1].closed;
  const next = await bed.connect();
  expect(await next.ask(PING)).toEqual({ pong: 1 });
});

test('more clients at once than the queue of new connections is long', async () => {
  using bed = new RpcBed();
  bed.serve(commands, { clients: 100 });
  const clients = await Promise.all(Array.from({ length: 100 }, () => bed.connect()));
  const answers = await Promise.all(clients.map((client) => client.ask(PING)));
  expect(answers).toEqual(Array(100).fill({ pong: 1 }));
});

const BIG = 16 << 20;

test('who does not read gets no further command carried out, and then everything, in order', async () => {
  using bed = new RpcBed();
  let made = 0;
  const big = () => ({ made: ++made, text: 'x'.repeat(BIG) });
  bed.serve({ ...commands, big });
  const slow = await bed.connect();
  slow.stopReading();
  slow.send('{"command":"big"}\n{"command":"big"}\n{"command":"ping"}\n');
  const other = await bed.connect();
  for (let i = 0; i < 100 || made === 0; i++) {
    expect(await other.ask(PING)).toEqual({ pong: 1 });
  }
  expect(made).toBe(1);
  slow.goOnReading();
  for (const count of [1, 2]) {
    expect(JSON.parse((await slow.line()) ?? '')).toEqual({ made: count, text: 'x'.repeat(BIG) });
  }
  expect(await slow.line()).toBe(PONG);
});

test('whoever vanishes, in whatever state, leaves nothing behind', async () => {
  using bed = new RpcBed();
  const { open, command } = gate();
  const server = bed.serve({ gate: command, big: () => ({ text: 'x'.repeat(BIG) }), ...commands });
  const before = openDescriptors();
  for (let round = 0; round < 5; round++) {
    const idle = await bed.connect();
    const inCommand = await bed.connect();
    inCommand.send('{"command":"gate"}\n{"command":"gate"}\n');
    const slow = await bed.connect();
    slow.stopReading();
    slow.send('{"command":"big"}\n');
    const half = await bed.connect();
    half.send(PING.slice(3));
    const refused = await bed.connect();
    refused.send(Buffer.from([0xff, 0x0a]));
    await refused.line();
    // Its answer comes after all of the above were read.
    expect(await (await bed.connect()).ask(PING)).toEqual({ pong: 1 });
    for (const client of [idle, inCommand, slow, half, refused]) client.vanish();
  }
  open();
  // Each turn of the event loop may show some of them to be gone.
  const last = await bed.connect();
  for (let i = 0; i < 1000 && server.clientCount > 6; i++) await last.ask(PING);
  expect(server.clientCount).toBe(6);
  // Both ends of those six are in this process.
  expect(openDescriptors() - before).toBe(12);
  expect(bed.log.errors).toEqual([]);
});

test('who asks nothing for a while, or does not take an answer, is closed', async () => {
  using bed = new RpcBed();
  bed.serve({ ...commands, big: () => ({ text: 'x'.repeat(BIG) }) }, { idleMs: 30 });
  const idle = await bed.connect();
  expect(await idle.line()).toBe(null);
  const dripping = await bed.connect();
  dripping.send('{');
  expect(await dripping.line()).toBe(null);
  const slow = await bed.connect();
  slow.stopReading();
  slow.send('{"command":"big"}\n');
  // A client that came later has been closed: so is this one, which can only be seen by reading on.
  await (await bed.connect()).closed;
  await (await bed.connect()).closed;
  slow.goOnReading();
  expect(await slow.line()).toBe(null);
});

test('a command that takes longer than a client may idle is still answered', async () => {
  using bed = new RpcBed();
  const { open, command } = gate();
  bed.serve({ gate: command }, { idleMs: 10 });
  const waiting = await bed.connect();
  waiting.send('{"command":"gate"}\n');
  for (let i = 0; i < 5; i++) await (await bed.connect()).closed;
  open();
  expect(await waiting.line()).toBe('{"gate":1}');
});

test('the socket is for the owner and the group, whatever the umask', async () => {
  using bed = new RpcBed();
  const umask = process.umask(0o777);
  try {
    bed.serve(commands);
    process.umask(0);
    bed.serve(commands, {}, bed.path('other.sock'));
  } finally {
    process.umask(umask);
  }
  expect(statSync(bed.path()).mode & 0o7777).toBe(0o660);
  expect(statSync(bed.path('other.sock')).mode & 0o7777).toBe(0o660);
});

test('a socket that is served is not taken, and stays', async () => {
  using bed = new RpcBed();
  bed.serve(commands);
  expect(() => bed.serve(commands)).toThrow(
    new UserError(
      `another process listens on the socket '${bed.path()}'; stop it or choose another path`,
    ),
  );
  expect(await (await bed.connect()).ask(PING)).toEqual({ pong: 1 });
});

test('what is no socket is not taken, and a missing folder is named', () => {
  using bed = new RpcBed();
  writeFileSync(bed.path('file'), 'content');
  mkdirSync(bed.path('folder'));
  for (const name of ['file', 'folder']) {
    expect(() => bed.serve(commands, {}, bed.path(name))).toThrow(
      `'${bed.path(name)}' exists and is not a socket; remove it or choose another path`,
    );
  }
  expect(readFileSync(bed.path('file'), 'utf8')).toBe('content');
  expect(() => bed.serve(commands, {}, bed.path('no/rpc.sock'))).toThrow(
    `the directory of the socket '${bed.path('no/rpc.sock')}' does not exist; create it`,
  );
});

test('a process that ends at once takes its socket along', () => {
  using bed = new RpcBed();
  const script = `
    import { existsSync } from 'node:fs';
    import { Log } from './src/log.ts';
    import { RpcServer } from './src/observe/rpc_server.ts';
    RpcServer.start('${bed.path()}', {}, new Log({ level: 'error', format: 'human' }, 'test'));
    process.exit(existsSync('${bed.path()}') ? 7 : 1);
  `;
  expect(Bun.spawnSync([process.execPath, '-e', script]).exitCode).toBe(7);
  expect(existsSync(bed.path())).toBe(false);
});

test('the end closes the clients and removes the socket, but not one that has taken its place', async () => {
  using bed = new RpcBed();
  const first = bed.serve(commands);
  const client = await bed.connect();
  expect(await client.ask(PING)).toEqual({ pong: 1 });
  first.stop();
  await client.closed;
  expect(existsSync(bed.path())).toBe(false);

  const second = bed.serve(commands);
  bed.serve(commands, {}, bed.path('other.sock'));
  renameSync(bed.path('other.sock'), bed.path());
  second.stop();
  expect(lstatSync(bed.path()).isSocket()).toBe(true);
  expect(await (await bed.connect()).ask(PING)).toEqual({ pong: 1 });
});
