/** What only another kernel can show: a slow disk, and io_uring forbidden. The server runs in a VM. */

import { expect, test } from 'bun:test';
import { binary, client } from '../e2e/processes.ts';
import { Bed, need, quote, testWith } from '../e2e/support.ts';

const minutes = 60_000;

test(
  'where io_uring is forbidden, one sentence names io_engine: sync, which works',
  async () => {
    await using bed = new Bed();
    const socket = '/tmp/vhost.sock';
    const path = '/tmp/disk.raw';
    const uring = bed.config({ path, socket, io_engine: 'io_uring' });
    const sync = bed.config({ path, socket, queue_size: 256, io_engine: 'sync' });
    const guest = bed.guest(
      { seconds: 120 },
      `set -e
sysctl -qw kernel.io_uring_disabled=2
truncate -s 32M ${path}
status=0
${quote(binary)} serve vhost --config ${quote(uring)} 2> refused.log || status=$?
echo "status=$status"
cat refused.log
[[ $status == 1 ]]
${quote(binary)} serve vhost --config ${quote(sync)} 2> server.log &
until grep -q 'listening on' server.log; do kill -0 $!; sleep 0.1; done
${client('vhost-check')} ${socket} ops=1000 depth=32 zero=1 span=$((8 << 20))
kill $!
wait $!
[[ ! -e ${socket} ]]`,
    );
    await bed.guestEnd(guest);
    expect(guest.stdout.text).toContain('status=1');
    const said = guest.stdout.text.slice(0, guest.stdout.text.indexOf('vhost-check:'));
    expect(said).toContain('io_engine: sync');
    expect(said).not.toMatch(/^\s+at /m);
  },
  3 * minutes,
);

testWith(
  'a server that waits for a slow disk sleeps meanwhile, and stops when the disk is done',
  [need.program('dmsetup')],
  async () => {
    await using bed = new Bed();
    const socket = '/tmp/vhost.sock';
    const settings = { path: '/dev/mapper/slow', socket, queue_size: 256, num_queues: 2 };
    for (const engine of ['io_uring', 'sync'])
      bed.config({ ...settings, io_engine: engine }, engine);
    const guest = bed.guest(
      { seconds: 150 },
      `set -e
modprobe -a loop dm-delay
truncate -s 32M /dev/shm/disk.raw
loop=$(losetup -f --show /dev/shm/disk.raw)
dmsetup create slow --table "0 65536 delay $loop 0 400"
cpu() { cat /proc/$1/task/*/schedstat | awk '{ ns += $1 } END { print int(ns / 1e6) }'; }
now() { date +%s%3N; }
for engine in io_uring sync; do
  ${quote(binary)} serve vhost --config $engine 2> $engine.log &
  server=$!
  until grep -q 'listening on' $engine.log; do kill -0 $server; sleep 0.1; done
  ${client('vhost-check')} ${socket} ops=2 depth=1 span=4096 max=4096 mix=w > /dev/null
  cpu0=$(cpu $server) from=$(now)
  ${client('vhost-check')} ${socket} ops=12 depth=2 queues=2 span=$((64 << 10)) max=65536 mix=w
  echo "$engine: $(($(cpu $server) - cpu0)) ms of $(($(now) - from)) ms"
  # A signal while requests are with the disk: it waits for them, and no longer.
  ${client('vhost-check')} ${socket} ops=1000 depth=8 span=4194304 max=65536 mix=w timeout=5 > /dev/null 2>&1 &
  client=$!
  sleep 2
  kill $server
  wait $server
  kill -9 $client
done`,
    );
    await bed.guestEnd(guest);
    const found = [...guest.stdout.text.matchAll(/(\w+): (\d+) ms of (\d+) ms/g)];
    expect(found.length).toBe(2);
    for (const [line, , used, passed] of found) {
      // Spinning shows as 100 %.
      expect(Number(used) / Number(passed), line).toBeLessThan(0.5);
    }
  },
  4 * minutes,
);
