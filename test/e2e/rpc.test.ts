/** The RPC socket of a running server, asked by `ubiblk rpc` and by Python. */
import { expect, test } from 'bun:test';
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { createConnection } from 'node:net';
import { binary, client, keyValues, within } from './processes.ts';
import { Bed, need, type Server, type Settings, testWith } from './support.ts';

const python = need.program('python3');

/** Sends its arguments as lines, the last one without an end, and prints what comes back. */
const pythonClient = `
import socket, sys
s = socket.socket(socket.AF_UNIX)
s.settimeout(10)
s.connect(sys.argv[1])
s.sendall("\\n".join(sys.argv[2:]).encode())
s.shutdown(socket.SHUT_WR)
while True:
    part = s.recv(65536)
    if not part: break
    sys.stdout.write(part.decode())
`;

async function serve(bed: Bed, settings: Settings = {}): Promise<Server & { rpc: string }> {
  const rpc = bed.path('rpc.sock');
  return { ...(await bed.serve(bed.disk(), { rpc_socket_path: rpc, ...settings })), rpc };
}

async function ask(bed: Bed, socket: string, command: string): Promise<unknown> {
  const { stdout } = await bed.run([binary, 'rpc', socket, command, '--json']);
  return JSON.parse(stdout.text);
}

/** Runs `ubiblk rpc`, which must fail. @returns what it says */
async function refusal(bed: Bed, argv: string[], status = 1): Promise<string> {
  const child = await bed.run([binary, 'rpc', ...argv], { expect: status });
  expect(child.stdout.text).toBe('');
  expect(child.stderr.text).not.toMatch(/^\s+at /m);
  return child.stderr.text;
}

/** Starts a server that must not come up. @returns what it says */
async function refusedServer(bed: Bed, settings: Settings, more: string[] = []): Promise<string> {
  const config = bed.config({ path: bed.disk(), socket: bed.path('other.sock'), ...settings });
  const child = await bed.run([binary, 'serve', 'vhost', '--config', config, ...more], {
    deadlineMs: 20_000,
    expect: 1,
  });
  expect(child.stderr.text).not.toMatch(/^\s+at /m);
  expect(existsSync(bed.path('other.sock'))).toBe(false);
  return child.stderr.text;
}

async function versionOf(bed: Bed): Promise<string> {
  const { stdout } = await bed.run([binary, '--version']);
  return stdout.text.match(/^ubiblk (\S+)/)?.[1] ?? '';
}

test('version and status, for programs and for people; nobody else has the socket', async () => {
  await using bed = new Bed();
  const server = await serve(bed, { num_queues: 2 });
  expect(statSync(server.rpc).mode & 0o7777).toBe(0o660);
  const version = await versionOf(bed);
  expect(version).toMatch(/^\d+\.\d+\.\d+$/);
  expect(await ask(bed, server.rpc, 'version')).toEqual({ version });
  expect(await ask(bed, server.rpc, 'status')).toMatchObject({ status: null });
  expect(await ask(bed, server.rpc, 'queues')).toEqual({ queues: [[], []] });
  const { stdout } = await bed.run([binary, 'rpc', server.rpc, 'queues']);
  expect(stdout.text).toBe('queue 0            idle\nqueue 1            idle\n');
  await bed.stop(server);
  expect(existsSync(server.rpc)).toBe(false);
}, 60_000);

testWith(
  'a client in Python: several lines at once, errors with their texts and codes',
  [python],
  async () => {
    await using bed = new Bed();
    const server = await serve(bed);
    const requests = [
      '{"command": "version"}',
      '',
      '{"command": "open_the_door"}',
      'status',
      ' {"command": "status", "id": 7} \r',
      '{"command": "queues"}',
    ];
    const { stdout } = await bed.run(['python3', '-c', pythonClient, server.rpc, ...requests]);
    const lines = stdout.text.trimEnd().split('\n');
    expect(lines[0]).toBe(`{"version":"${await versionOf(bed)}"}`);
    expect(lines[1]).toBe('{"code":"unknown_command","error":"unknown command: open_the_door"}');
    expect(lines[2]).toMatch(/^\{"code":"invalid_request","error":"invalid request: .+"\}$/);
    expect(lines[3]).toMatch(/^\{"device":\{.+\},"status":null\}$/);
    expect(lines.slice(4)).toEqual(['{"queues":[[]]}']);
    await bed.stop(server);
  },
  60_000,
);

testWith(
  'the group may connect, others may not',
  [python, need.root()],
  async () => {
    await using bed = new Bed();
    chmodSync(bed.folder, 0o755);
    const server = await serve(bed);
    // What Python has to read for itself is read before it is another user.
    const asUser = (gid: number) =>
      pythonClient.replace(
        's = ',
        `import os\nos.setgroups([])\nos.setgid(${gid})\nos.setuid(65534)\ns = `,
      );
    const request = '{"command":"status"}';
    const member = await bed.run(['python3', '-c', asUser(0), server.rpc, request]);
    expect(member.stdout.text).toEndWith('"status":null}\n');
    const other = await bed.run(['python3', '-c', asUser(65534), server.rpc, request], {
      expect: 1,
    });
    expect(other.stderr.text).toContain('PermissionError');
    await bed.stop(server);
  },
  60_000,
);

type Shown = [string, number?, number?];

/** A connection that asks for the queues again and again. */
async function* samples(path: string): AsyncGenerator<Shown[][]> {
  const socket = createConnection(path);
  const request = '{"command":"queues"}\n';
  socket.on('connect', () => socket.write(request));
  let text = '';
  for await (const part of socket) {
    text += part;
    if (!text.endsWith('\n')) continue;
    yield JSON.parse(text).queues;
    text = '';
    socket.write(request);
  }
}

for (const engine of ['io_uring', 'sync']) {
  test(`requests in flight are shown by queue, in sectors, and none when all are answered: ${engine}`, async () => {
    await using bed = new Bed();
    const server = await serve(bed, { num_queues: 2, io_engine: engine });
    const disk = { sectors: (64 << 20) / 512 };
    const load = { queues: 2, depth: 32, ops: 1e9, progress: 1, mix: 'rwf' };
    const user = bed.spawn([client('vhost-check'), server.socket, ...keyValues(load)]);
    await user.said(/answers/, 30_000);
    const missing = new Set(['0 read', '0 write', '0 flush', '1 read', '1 write', '1 flush']);
    const look = async () => {
      for await (const queues of samples(server.rpc)) {
        expect(queues.length).toBe(2);
        for (const [queue, requests] of queues.entries()) {
          expect(requests.length).toBeLessThanOrEqual(32);
          for (const [op, sector, sectors] of requests) {
            missing.delete(`${queue} ${op}`);
            if (op === 'flush') continue;
            expect(Number.isInteger(sector) && Number.isInteger(sectors)).toBe(true);
            expect(sector as number).toBeLessThan(disk.sectors);
            expect(sectors as number).toBeGreaterThan(0);
          }
        }
        if (missing.size === 0) return;
      }
    };
    await within(look(), 30_000, () => `${[...missing]} in flight: ${user.report()}`);
    await user.destroy(false);
    // The server finishes what a client that is gone has left, and then shows nothing.
    const empty = async () => {
      for await (const queues of samples(server.rpc)) if (queues.flat().length === 0) return;
    };
    await within(empty(), 10_000, () => server.child.report());
    await bed.check(server.socket, { queues: 2, ops: 2000, depth: 32 });
    expect(await ask(bed, server.rpc, 'queues')).toEqual({ queues: [[], []] });
    await bed.stop(server);
  }, 90_000);
}

test('data is right, and the end in order, while clients ask without pause or do not read', async () => {
  await using bed = new Bed();
  const server = await serve(bed, { num_queues: 2 });
  const stuck = Array.from({ length: 30 }, () => createConnection(server.rpc));
  for (const socket of stuck) {
    socket.on('error', () => {});
    socket.pause();
    socket.write('{"command":"queues"}\n'.repeat(5000));
  }
  let asking = true;
  const askers = Array.from({ length: 4 }, async () => {
    for await (const _ of samples(server.rpc)) if (!asking) return;
  });
  await bed.check(server.socket, { queues: 2, depth: 32, ops: 20_000, max: 65536 });
  asking = false;
  await within(Promise.all(askers), 10_000, () => server.child.report());
  await bed.stop(server);
  expect(existsSync(server.rpc)).toBe(false);
  for (const socket of stuck) socket.destroy();
}, 120_000);

test('a socket that a server listens on is not taken from it', async () => {
  await using bed = new Bed();
  const server = await serve(bed);
  const sentence = `another process listens on the socket '${server.rpc}'; stop it or choose another path`;
  expect(await refusedServer(bed, { rpc_socket_path: server.rpc })).toContain(sentence);
  expect(await refusedServer(bed, { rpc_socket_path: server.rpc }, ['--check'])).toContain(
    sentence,
  );
  expect(await ask(bed, server.rpc, 'status')).toMatchObject({ status: null });
  // Of one that uses the frontend's socket of another as well.
  expect(await refusedServer(bed, { rpc_socket_path: server.socket })).toContain(
    `another process listens on the socket '${server.socket}'`,
  );
  await bed.check(server.socket, { ops: 500 });
  await bed.stop(server);
}, 90_000);

test('a socket that a killed server left behind is used again', async () => {
  await using bed = new Bed();
  const server = await serve(bed);
  await bed.crash(server);
  expect(lstatSync(server.rpc).isSocket()).toBe(true);
  expect(await refusal(bed, [server.rpc, 'version'])).toContain(
    `nobody listens on the socket '${server.rpc}'; is the server running?`,
  );
  const next = await bed.start(server.config, server.socket);
  expect(await ask(bed, server.rpc, 'status')).toMatchObject({ status: null });
  await bed.stop(next);
  expect(existsSync(server.rpc)).toBe(false);
}, 60_000);

test('what is no socket is left alone; a path that can not be is named', async () => {
  await using bed = new Bed();
  writeFileSync(bed.path('file'), 'content');
  mkdirSync(bed.path('folder'));
  for (const name of ['file', 'folder']) {
    expect(await refusedServer(bed, { rpc_socket_path: bed.path(name) })).toContain(
      `'${bed.path(name)}' exists and is not a socket`,
    );
  }
  expect(readFileSync(bed.path('file'), 'utf8')).toBe('content');
  expect(await refusedServer(bed, { rpc_socket_path: bed.path('no/rpc.sock') })).toContain(
    `the directory '${bed.path('no')}' of the socket '${bed.path('no/rpc.sock')}' does not exist`,
  );
  const both = bed.path('folder/../other.sock');
  expect(await refusedServer(bed, { rpc_socket_path: both })).toContain('they need two paths');
}, 60_000);

test('the socket is gone after a second signal too', async () => {
  await using bed = new Bed();
  const server = await serve(bed);
  const argv = keyValues({ ops: 1e9, progress: 1, depth: 128, max: 1 << 20, mix: 'wwwf' });
  const user = bed.spawn([client('vhost-check'), server.socket, ...argv]);
  await user.said(/answers/, 30_000);
  server.child.signal('SIGTERM');
  server.child.signal('SIGTERM');
  await server.child.exit(10_000);
  expect(existsSync(server.rpc)).toBe(false);
  await user.destroy(false);
}, 60_000);

test('ubiblk rpc says in a sentence what is wrong', async () => {
  await using bed = new Bed();
  const server = await serve(bed);
  const { rpc } = server;
  expect(await refusal(bed, [rpc, 'open_the_door'])).toContain(
    `[ERROR rpc] the server at '${rpc}' refused the command: unknown command: open_the_door\n`,
  );
  expect(await refusal(bed, [bed.path('none.sock'), 'status'])).toContain(
    `there is no socket '${bed.path('none.sock')}'`,
  );
  expect(await refusal(bed, [server.config, 'status'])).toContain('is not a socket');
  expect(await refusal(bed, [server.socket, 'status'])).toContain(
    `the server at '${server.socket}' closed the connection without an answer`,
  );
  server.child.signal('SIGSTOP');
  expect(await refusal(bed, [rpc, 'status', '--timeout', '0.2'])).toContain(
    `the server at '${rpc}' did not answer within 0.2 s`,
  );
  server.child.signal('SIGCONT');
  expect(await ask(bed, rpc, 'status')).toMatchObject({ status: null });
  expect(await refusal(bed, [rpc], 2)).toContain('argument COMMAND is missing');
  expect(await refusal(bed, [rpc, 'status', '--timeout', '0'], 2)).toContain('--timeout must be');
  await bed.stop(server);
}, 60_000);
