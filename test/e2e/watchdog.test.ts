/** What a service manager hears of servers: readiness, signs of life, the end. */
import { expect } from 'bun:test';
import { type Child, client, keyValues, threadUsage } from './processes.ts';
import { serveStripes } from './remote.ts';
import { Bed, need, type Settings, testWith } from './support.ts';

/** Prints what comes to a socket of datagrams, as a service manager gets it. */
const manager = `
import os, socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
print('bound', flush=True)
while True:
    print(s.recv(4096).decode(), flush=True)
`;

/** A service manager that wants a sign of life in each so many milliseconds. */
async function watched(bed: Bed, limitMs: number, name = 'notify') {
  const socket = bed.path(name);
  const notices = bed.spawn(['python3', '-c', manager, socket]);
  await notices.said(/^bound$/m, 10_000);
  return { notices, env: { NOTIFY_SOCKET: socket, WATCHDOG_USEC: String(limitMs * 1000) } };
}

function signs(notices: Child): number {
  return notices.stdout.text.match(/^WATCHDOG=1$/gm)?.length ?? 0;
}

/** Waits for so many more signs of life. */
async function moreSigns(notices: Child, count: number): Promise<void> {
  const from = notices.stdout.text.length;
  await notices.said(new RegExp(`(WATCHDOG=1\\n(.*\\n)*?){${count}}`), 20_000, from);
}

const needs = [need.program('python3')];
const engines: Settings[] = [{ io_engine: 'io_uring' }, { io_engine: 'sync' }];

for (const settings of engines) {
  testWith(
    `an idle server of ${settings.io_engine} gives signs of life from its readiness to its end`,
    needs,
    async () => {
      await using bed = new Bed();
      const { notices, env } = await watched(bed, 400);
      const server = await bed.serve(bed.disk(), { num_queues: 2, ...settings }, { env });
      await moreSigns(notices, 4);
      await bed.stop(server);
      await notices.said(/^STOPPING=1$/m, 10_000);
      expect(notices.stdout.text).toMatch(/^bound\nREADY=1\n(WATCHDOG=1\n)+STOPPING=1\n/);
      expect(server.child.stderr.text).not.toContain('no answer');
    },
    60_000,
  );

  testWith(
    `a busy server of ${settings.io_engine} gives signs of life`,
    needs,
    async () => {
      await using bed = new Bed();
      const { notices, env } = await watched(bed, 1000);
      const server = await bed.serve(bed.disk(), { num_queues: 2, ...settings }, { env });
      const load = { ops: 1e9, progress: 1, queues: 2, depth: 64, mix: 'rw', max: 65536 };
      const user = bed.spawn([client('vhost-check'), server.socket, ...keyValues(load)]);
      await user.said(/answers/, 30_000);
      await moreSigns(notices, 6);
      expect(server.child.stderr.text).not.toContain('no answer');
    },
    90_000,
  );
}

testWith(
  'one queue thread that stands still silences the server, until it goes on',
  [...needs, need.program('strace'), need.root()],
  async () => {
    await using bed = new Bed();
    const { notices, env } = await watched(bed, 400);
    const server = await bed.serve(bed.disk(), { num_queues: 2 }, { env });
    await moreSigns(notices, 1);
    const threads = [...threadUsage(server.child.pid)];
    const queue = threads.find(([, { name }]) => name === 'queue 1')?.[0] as string;
    // It sleeps in the call already: what is delayed is the next one, after the next answer.
    const delay = 'inject=io_uring_enter:delay_enter=3600s';
    const strace = bed.spawn(['strace', '-p', queue, '-e', 'trace=io_uring_enter', '-e', delay]);
    await server.child.said(/no answer of queue 1: /, 20_000, 0, server.child.stderr);
    const before = signs(notices);
    // Meanwhile another one is heard of.
    const other = await watched(bed, 400, 'other');
    await bed.serve(bed.disk(), {}, { env: other.env });
    await moreSigns(other.notices, 5);
    expect(signs(notices)).toBe(before);
    strace.killGroup();
    await server.child.said(/all queues answer again/, 20_000, 0, server.child.stderr);
    await moreSigns(notices, 3);
    await bed.stop(server);
  },
  60_000,
);

// A sign of life would start the service manager's watchdog again, which it has stopped for the end.
testWith(
  'a server that ends gives no signs of life, however long its end takes',
  [...needs, need.program('strace'), need.root()],
  async () => {
    await using bed = new Bed();
    const { notices, env } = await watched(bed, 100);
    const server = await bed.serve(bed.disk(), {}, { env });
    await moreSigns(notices, 1);
    const threads = [...threadUsage(server.child.pid)];
    const queue = threads.find(([, { name }]) => name === 'queue 0')?.[0] as string;
    const delay = 'inject=io_uring_enter:delay_enter=3600s';
    const strace = bed.spawn(['strace', '-p', queue, '-e', 'trace=io_uring_enter', '-e', delay]);
    await server.child.said(/no answer of queue 0: /, 20_000, 0, server.child.stderr);
    server.child.signal('SIGTERM');
    await notices.said(/^STOPPING=1$/m, 10_000);
    // Meanwhile, ten limits go by.
    const other = await watched(bed, 100, 'other');
    await bed.serve(bed.disk(), {}, { env: other.env });
    await moreSigns(other.notices, 40);
    strace.killGroup();
    expect(await server.child.exit(10_000)).toBe(0);
    expect(notices.stdout.text).toEndWith('STOPPING=1\n');
  },
  60_000,
);

testWith(
  'a stripe server gives signs of life',
  needs,
  async () => {
    await using bed = new Bed();
    const { notices, env } = await watched(bed, 400);
    await serveStripes(bed, bed.disk(), { tls: false, under: ['env', ...keyValues(env)] });
    await moreSigns(notices, 3);
  },
  60_000,
);

testWith(
  'a watchdog that is not for this process, or none, asks nobody',
  needs,
  async () => {
    await using bed = new Bed();
    const { notices, env } = await watched(bed, 4);
    const none: Record<string, string>[] = [{ WATCHDOG_PID: '1' }, { WATCHDOG_USEC: '' }];
    for (const more of none) {
      const server = await bed.serve(bed.disk(), {}, { env: { ...env, ...more } });
      await bed.stop(server);
    }
    await notices.said(/(STOPPING=1\n(.*\n)*?){2}/, 10_000);
    expect(notices.stdout.text).not.toContain('WATCHDOG');
  },
  60_000,
);
