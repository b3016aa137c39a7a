/**
 * What the server called durable is there after a power cut: it runs in a virtual machine that is reset
 * with its page cache full, and the disk's image is read on the host.
 */

import { test } from 'bun:test';
import { binary, client } from '../e2e/processes.ts';
import { Bed, matrix, quote, seed } from '../e2e/support.ts';

const minutes = 60_000;
const span = 16 << 20;

/**
 * Writes 16 MiB at random through a server in a guest, with `settings`, then cuts its power.
 *
 * @param flush ends the writes with a flush
 * @returns the disk's image and the record of what was answered
 */
async function writeAndCut(bed: Bed, settings: Record<string, string | boolean>, flush: boolean) {
  const image = bed.disk({ sizeBytes: 64 << 20 });
  const socket = '/tmp/vhost.sock';
  const more = { path: '/dev/vda', socket, queue_size: 256, num_queues: 2 };
  const config = bed.config({ ...more, ...settings });
  const check = `${client('vhost-check')} ${socket} queues=2 depth=32 span=${span} zero=1 seed=${seed}`;
  const guest = bed.guest(
    { disks: [image], seconds: 200 },
    `set -e
# Nothing reaches the disk but what the server sends there.
sysctl -qw vm.dirty_writeback_centisecs=0 vm.dirty_ratio=80 vm.dirty_background_ratio=70
${quote(binary)} serve vhost --config ${quote(config)} 2> server.log &
until grep -q 'listening on' server.log; do kill -0 $!; sleep 0.1; done
${check} ops=1500 max=262144 mix=wwwwzd state=/tmp/state
${flush ? `${check} ops=1 mix=f` : ''}
cp /tmp/state state
sync state
echo b > /proc/sysrq-trigger`,
  );
  await bed.guestEnd(guest, 125);
  return { image, state: bed.path('state') };
}

const rows = matrix({ io_engine: ['io_uring', 'sync'], direct_io: [false, true] } as const);

for (const row of rows) {
  const name = Object.values(row).join(' ');
  test(
    `with write_through every answered write outlives a power cut: ${name}`,
    async () => {
      await using bed = new Bed();
      const { image, state } = await writeAndCut(bed, { ...row, write_through: true }, false);
      await bed.compareFile(image, state, { span });
    },
    5 * minutes,
  );

  test(
    `every write before an answered flush outlives a power cut: ${name}`,
    async () => {
      await using bed = new Bed();
      const { image, state } = await writeAndCut(bed, { ...row, write_through: false }, true);
      await bed.compareFile(image, state, { span });
    },
    5 * minutes,
  );
}

test(
  'without either, writes in the page cache are lost: the tests above can fail',
  async () => {
    await using bed = new Bed();
    const settings = { io_engine: 'io_uring', direct_io: false, write_through: false };
    const { image, state } = await writeAndCut(bed, settings, false);
    const argv = [client('vhost-check'), image, 'driver=io_uring', `state=${state}`, 'ops=0'];
    await bed.run([...argv, 'zero=1', `span=${span}`], { expect: 1 });
  },
  5 * minutes,
);
