/** Two servers never share a data file, and a new one waits for a dying one's last writes. */

import { expect, test } from 'bun:test';
import { existsSync, readdirSync, readlinkSync } from 'node:fs';
import { binary, client, keyValues, within } from './processes.ts';
import { Bed, need, testWith } from './support.ts';

test('a second server on the same data file is refused in one sentence', async () => {
  await using bed = new Bed();
  const disk = bed.disk();
  const first = await bed.serve(disk);
  const socket = bed.path('second.sock');
  const config = bed.config({ path: disk, socket });
  // It waits for up to ten seconds, in case the first one is about to end.
  const second = await bed.run([binary, 'serve', 'vhost', '--config', config], {
    deadlineMs: 30_000,
    expect: 1,
  });
  expect(second.stderr.text).toContain(disk);
  expect(second.stderr.text).not.toMatch(/^\s+at /m);
  expect(existsSync(socket)).toBe(false);
  await bed.check(first.socket, { ops: 500 });
  await bed.stop(first);
}, 60_000);

test('a second server takes over as soon as the first one ends', async () => {
  await using bed = new Bed();
  const disk = bed.disk();
  const first = await bed.serve(disk);
  const socket = bed.path('second.sock');
  const config = bed.config({ path: disk, socket, queue_size: 256 });
  const child = bed.spawn([binary, 'serve', 'vhost', '--config', config]);
  // It waits for the lock once it has the file open.
  await within(opened(child.pid, disk), 10_000, () => child.report());
  expect(child.stderr.text).not.toMatch(/listening on/);
  await bed.crash(first);
  await bed.listening(child, 15_000);
  await bed.check(socket, { ops: 500 });
  await bed.stop({ child, socket, config });
}, 60_000);

testWith(
  'a second server takes over a block device as soon as the first one ends',
  [need.loop()],
  async () => {
    await using bed = new Bed();
    const disk = bed.disk({ kind: 'loop512' });
    const first = await bed.serve(disk);
    const socket = bed.path('second.sock');
    const config = bed.config({ path: disk, socket, queue_size: 256 });
    const child = bed.spawn([binary, 'serve', 'vhost', '--config', config]);
    await child.said(/is in use; waiting for it to be let go of/, 10_000, 0, child.stderr);
    await bed.crash(first);
    await bed.listening(child, 15_000);
    await bed.check(socket, { ops: 500 });
    await bed.stop({ child, socket, config });
  },
  60_000,
);

async function opened(pid: number, file: string): Promise<void> {
  for (;;) {
    const folder = `/proc/${pid}/fd`;
    const files = readdirSync(folder).map((fd) => {
      try {
        return readlinkSync(`${folder}/${fd}`);
      } catch {
        return '';
      }
    });
    if (files.includes(file)) return;
    // There is no event for what another process has open.
    await Bun.sleep(20);
  }
}

test('the server that follows a killed one at depth 64 finds the disk at rest', async () => {
  await using bed = new Bed();
  const disk = bed.disk();
  const state = bed.path('state');
  const load = { depth: 64, max: 1 << 20, span: 32 << 20, state, zero: 1 };
  for (let round = 0; round < 5; round++) {
    const server = await bed.serve(disk);
    const argv = keyValues({ ...load, ops: 1e9, progress: 1, mix: 'wwwwwwwz', timeout: 3 });
    const victim = bed.spawn([client('vhost-check'), server.socket, ...argv]);
    await victim.said(/answers/, 30_000);
    server.child.signal('SIGKILL');
    // Not reaped: the next server is to meet what this one left in flight.
    await victim.destroy(false);
    const next = await bed.serve(disk);
    await bed.check(next.socket, { ...load, ops: 100 });
    await bed.stop(next);
  }
}, 120_000);

test('a missing folder for the socket is named', async () => {
  await using bed = new Bed();
  const config = bed.config({ path: bed.disk(), socket: bed.path('no/such/folder/vhost.sock') });
  const child = await bed.run([binary, 'serve', 'vhost', '--config', config], {
    deadlineMs: 20_000,
    expect: 1,
  });
  expect(child.stderr.text).toContain(bed.path('no/such/folder'));
  expect(child.stderr.text).not.toMatch(/^\s+at /m);
}, 30_000);
