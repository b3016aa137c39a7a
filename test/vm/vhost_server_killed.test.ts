/**
 * A server that is killed in the middle of a guest's load and started again: the guest goes on, and no
 * request is lost, answered twice or answered wrongly.
 *
 * The load mixes requests of 512 bytes to 1 MiB with flushes and zeroing, so that they complete in
 * another order than they were sent in: a server that only counts completions loses some of them.
 */

import { expect, test } from 'bun:test';
import { writeFileSync } from 'node:fs';
import { type Child, client } from '../e2e/processes.ts';
import { Bed, need, Random, type Server, seed, soak, testWith } from '../e2e/support.ts';

const minutes = 60_000;

/**
 * Kills and restarts the server `times` times, each time after the guest has reported progress.
 *
 * @param progress matches one report of progress on the guest's output
 */
async function killAndRestart(
  bed: Bed,
  first: Server,
  guest: Child,
  times: number,
  progress: RegExp,
): Promise<Server> {
  const random = new Random(seed);
  let server = first;
  let resumed = 0;
  await guest.said(progress, 60_000);
  for (let round = 1; round <= times; round++) {
    // Somewhere between two reports of progress.
    await Bun.sleep(random.below(120));
    await bed.crash(server);
    server = await bed.start(server.config, server.socket);
    try {
      await guest.said(progress, 40_000, guest.stdout.text.length);
    } catch (error) {
      throw new Error(`no progress after restart ${round}: ${error}\n${bed.report()}`);
    }
    if (/requests left in flight/.test(server.child.stderr.text)) resumed++;
  }
  console.log(`${resumed} of ${times} servers found requests in flight`);
  expect(resumed).toBeGreaterThan(0);
  return server;
}

/** Ends a guest's script: errors that the block layer has seen are errors here. */
const verdict = `if dmesg | grep -E 'is not a head|I/O error|blk_update_request|timed out'; then exit 1; fi`;

const loads = [
  { kills: 50, settings: { io_engine: 'io_uring', direct_io: true } },
  { kills: 20, settings: { io_engine: 'io_uring', direct_io: false } },
  { kills: 20, settings: { io_engine: 'sync', direct_io: true } },
  { kills: 20, settings: { io_engine: 'io_uring', direct_io: true }, encrypted: true },
];
for (const { kills, settings, encrypted = false } of loads) {
  const times = soak ? 500 : kills;
  test(
    `a guest at depth 32 on two queues goes on while its server is killed ${times} times: ${Object.values(settings).join(' ')}${encrypted ? ' encrypted' : ''}`,
    async () => {
      await using bed = new Bed();
      const disk = bed.disk({ sizeBytes: 64 << 20, encrypted });
      const first = await bed.serve(disk, { ...settings, num_queues: 2 });
      const check = client('vhost-check');
      const load = `driver=io_uring direct=1 depth=32 max=1048576 span=$((32 << 20)) ops=1000000000 timeout=60 zero=1`;
      const guest = bed.guest(
        { sockets: [`${first.socket},num-queues=2`], seconds: soak ? 1800 : 240 },
        `taskset 1 ${check} /dev/vda ${load} mix=rrwwwwzfu until=stop state=state0 seed=${seed} progress=1 &
one=$!
taskset 2 ${check} /dev/vda ${load} mix=rrrrwwwwwf until=stop state=state1 seed=${seed + 1} offset=$((32 << 20)) &
two=$!
wait $one && wait $two || exit 1
${verdict}`,
      );
      const last = await killAndRestart(bed, first, guest, times, /\d answers\n/);
      writeFileSync(bed.path('stop'), '');
      await bed.guestEnd(guest);
      await bed.stop(last);
      await bed.compareFile(disk, bed.path('state0'), { span: 32 << 20 });
      await bed.compareFile(disk, bed.path('state1'), { span: 32 << 20, offset: 32 << 20 });
    },
    (soak ? 40 : 9) * minutes,
  );
}

testWith(
  'fio in a guest verifies its data while the server is killed',
  [need.program('fio')],
  async () => {
    await using bed = new Bed();
    const first = await bed.serve(bed.disk({ sizeBytes: 64 << 20 }), {
      num_queues: 1,
      write_through: true,
    });
    const guest = bed.guest(
      { sockets: [`${first.socket},num-queues=1`], seconds: soak ? 1800 : 240 },
      `last=
while sleep 0.1; do
  now=$(awk '{ print $1 + $5 }' /sys/block/vda/stat)
  [[ $now == "$last" ]] || echo "$now done"
  last=$now
done &
while [[ ! -e stop ]]; do
  fio --name=v --filename=/dev/vda --direct=1 --ioengine=io_uring --rw=randrw --bsrange=512-128k \\
    --iodepth=32 --verify=crc32c --verify_fatal=1 --verify_backlog=64 --serialize_overlap=1 \\
    --fsync=64 --size=48M --loops=2 --randseed=${seed} --output-format=terse > fio.log 2>&1 ||
    { cat fio.log >&2; exit 1; }
done
${verdict}`,
    );
    const last = await killAndRestart(bed, first, guest, soak ? 200 : 20, /\d done\n/);
    writeFileSync(bed.path('stop'), '');
    await bed.guestEnd(guest);
    await bed.stop(last);
  },
  (soak ? 40 : 9) * minutes,
);
