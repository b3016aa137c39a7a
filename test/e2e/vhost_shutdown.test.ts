/** Stopping under load, going on after a restart, and doing nothing while there is nothing to do. */

import { expect, test } from 'bun:test';
import { existsSync } from 'node:fs';
import { client, keyValues, threadUsage } from './processes.ts';
import { Bed, matrix, seed, soak } from './support.ts';

const rows = matrix({
  io_engine: ['io_uring', 'sync'],
  direct_io: [true, false],
  encrypted: [false, true],
  signal: ['SIGTERM', 'SIGINT'],
} as const);

for (const { signal, encrypted, ...settings } of rows) {
  const kind = encrypted ? 'encrypted' : 'plain';
  test(`${signal} under load ends the server with 0 and loses nothing: ${Object.values(settings).join(' ')} ${kind}`, async () => {
    await using bed = new Bed();
    const disk = bed.disk({ encrypted });
    const state = bed.path('state');
    const load = { queues: 2, depth: 64, max: 262144, span: 16 << 20, state, zero: 1 };
    let config: string | undefined;
    let socket = bed.path('vhost.sock');
    for (let round = 0; round < 4; round++) {
      const server = config
        ? await bed.start(config, socket)
        : await bed.serve(disk, { ...settings, socket, num_queues: 2 });
      ({ config, socket } = server);
      const argv = keyValues({ ...load, ops: 1e9, progress: 1, seed: seed + round });
      const user = bed.spawn([client('vhost-check'), server.socket, ...argv]);
      await user.said(/answers/, 30_000);
      server.child.signal(signal);
      expect(await server.child.exit(10_000)).toBe(0);
      expect(existsSync(socket)).toBe(false);
      await user.destroy(false);
    }
    await bed.compareFile(disk, state, { span: load.span });
    const last = await bed.start(config ?? '', socket);
    await bed.check(socket, { ...load, ops: 500 });
    await bed.stop(last);
  }, 60_000);
}

test('an idle server stops at once on a signal, connected or not', async () => {
  await using bed = new Bed();
  const disk = bed.disk();
  for (const connected of [false, true]) {
    const server = await bed.serve(disk);
    if (connected) {
      const monitor = bed.spawn([
        client('qemu-storage-daemon'),
        '--blockdev',
        `driver=virtio-blk-vhost-user,node-name=v,path=${server.socket},cache.direct=on`,
        '--chardev',
        'stdio,id=c',
        '--monitor',
        'chardev=c',
      ]);
      await monitor.said(/"QMP"/, 15_000);
    }
    await bed.stop(server);
  }
}, 60_000);

test('a second signal ends the server whatever it waits for', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk());
  const argv = keyValues({ ops: 1e9, progress: 1, depth: 128, max: 1 << 20, mix: 'wwwf' });
  const user = bed.spawn([client('vhost-check'), server.socket, ...argv]);
  await user.said(/answers/, 30_000);
  server.child.signal('SIGTERM');
  server.child.signal('SIGTERM');
  await server.child.exit(10_000);
  await user.destroy(false);
}, 60_000);

test('an idle server uses no CPU: before a frontend, with an idle one, and after it', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk(), { num_queues: 4 });
  const idle = async (when: string) => {
    // The polling window after the last request is a millisecond; what comes after must be sleep.
    await Bun.sleep(1000);
    const before = threadUsage(server.child.pid);
    const seconds = soak ? 20 : 3;
    await Bun.sleep(seconds * 1000);
    const after = threadUsage(server.child.pid);
    let usedNs = 0;
    const data: string[] = [];
    for (const [task, { name, cpuNs, sleeps }] of after) {
      const earlier = before.get(task);
      usedNs += cpuNs - (earlier?.cpuNs ?? 0);
      if (!/^(queue|vhost)/.test(name)) continue;
      data.push(name);
      expect({ when, name, sleeps }).toEqual({ when, name, sleeps: earlier?.sleeps ?? -1 });
    }
    expect(data.length).toBeGreaterThan(4);
    // The main thread's runtime has timers of its own, for some tenths of a percent of a core.
    expect(usedNs / seconds / 1e7, when).toBeLessThan(1);
  };
  await idle('before a frontend');
  const argv = ['driver=virtio-blk-vhost-user', 'node-name=v', `path=${server.socket}`];
  const user = bed.spawn([
    client('qemu-storage-daemon'),
    '--blockdev',
    `${argv.join(',')},cache.direct=on`,
    '--chardev',
    'stdio,id=c',
    '--monitor',
    'chardev=c',
  ]);
  await user.said(/"QMP"/, 15_000);
  await idle('connected, nothing asked');
  await user.destroy(true);
  await bed.check(server.socket, { queues: 4, ops: 5000, depth: 64 });
  await idle('after a client that has gone');
  await bed.stop(server);
}, 120_000);
