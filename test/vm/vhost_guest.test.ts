/** A QEMU guest with the disk: what its kernel sees, and what it finds again after a reset. */

import { expect } from 'bun:test';
import { existsSync } from 'node:fs';
import { Bed, need, seed, testWith } from '../e2e/support.ts';

// The guest's processor is emulated: everything in it takes ten times as long.
const minutes = 60_000;

for (const queues of [1, 2]) {
  testWith(
    `a guest finds its synced files after a reset: ${queues} queues`,
    [need.program('mkfs.ext4')],
    async () => {
      await using bed = new Bed();
      const server = await bed.serve(bed.disk({ sizeBytes: 128 << 20 }), { num_queues: queues });
      const sockets = [`${server.socket},num-queues=${queues}`];
      const writing = bed.guest(
        { sockets },
        `set -e
[[ $(ls /sys/block/vda/mq | wc -l) == ${queues} ]]
mkfs.ext4 -q /dev/vda
mount /dev/vda /mnt
for i in 1 2 3 4; do
  head -c 2M /dev/urandom > /mnt/$i
  (cd /mnt && sha256sum $i >> sums)
done
sync
head -c 1M /dev/urandom > /mnt/unsynced
touch ready
echo b > /proc/sysrq-trigger`,
      );
      // 125: the guest died, as it was told to.
      await bed.guestEnd(writing, 125);
      expect(existsSync(bed.path('ready'))).toBe(true);
      const reading = bed.guest(
        { sockets },
        `set -e
mount /dev/vda /mnt
cd /mnt
sha256sum -c sums
[[ $(wc -l < sums) == 4 ]]
fstrim -v /mnt
cd /
umount /mnt
fsck.ext4 -fn /dev/vda`,
      );
      await bed.guestEnd(reading);
      await bed.stop(server);
    },
    6 * minutes,
  );
}

/** `name=value` lines that a guest printed. */
function values(text: string): Record<string, string> {
  return Object.fromEntries(
    text
      .split('\n')
      .filter((line) => line.includes('='))
      .map((line) => [line.slice(0, line.indexOf('=')), line.slice(line.indexOf('=') + 1)]),
  );
}

const show = `show() { for f; do echo "\${f//\\//_}=$(cat /sys/block/$disk/$f)"; done; }
all() { show size ro serial cache_type queue/logical_block_size queue/physical_block_size \\
  queue/discard_max_bytes queue/discard_granularity queue/write_zeroes_max_bytes queue/write_cache; }`;

testWith(
  'a guest’s kernel sees the disk as the configuration says',
  [need.loop()],
  async () => {
    await using bed = new Bed();
    const plain = await bed.serve(bed.disk({ sizeBytes: (64 << 20) + 512 }), {
      device_id: 'disk-of-twenty-bytes',
      num_queues: 2,
    });
    const through = await bed.serve(bed.disk({ kind: 'loop4096' }), { write_through: true });
    const fixed = await bed.serve(bed.disk({ kind: 'loop512', readOnly: true }));
    const guest = bed.guest(
      { sockets: [`${plain.socket},num-queues=2`, through.socket, fixed.socket].map(oneQueue) },
      `${show}
set -e
disk=vda; all; echo ---
disk=vdb; all; echo ---
disk=vdc; all; echo ---
if dd if=/dev/zero of=/dev/vdc bs=4k count=1 oflag=direct 2> /dev/null; then exit 1; fi
disk=vda
echo 'write through' > /sys/block/vda/cache_type
show cache_type queue/write_cache
dd if=/dev/urandom of=/dev/vda bs=64k count=16 oflag=direct status=none
echo 'write back' > /sys/block/vda/cache_type
dd if=/dev/urandom of=/dev/vda bs=64k count=16 oflag=direct conv=fsync status=none
echo "back=$(cat /sys/block/vda/cache_type)"`,
    );
    await bed.guestEnd(guest);
    const [vda, vdb, vdc, changed] = guest.stdout.text.split('---').map(values);
    expect(vda).toMatchObject({
      size: String((64 << 11) + 1),
      ro: '0',
      serial: 'disk-of-twenty-bytes',
      cache_type: 'write back',
      queue_logical_block_size: '512',
      queue_write_cache: 'write back',
    });
    expect(Number(vda.queue_discard_max_bytes)).toBeGreaterThan(0);
    expect(Number(vda.queue_write_zeroes_max_bytes)).toBeGreaterThan(0);
    expect(vdb).toMatchObject({
      size: String(64 << 11),
      ro: '0',
      serial: 'ubiblk',
      cache_type: 'write through',
      queue_logical_block_size: '4096',
    });
    expect(vdc).toMatchObject({ ro: '1', queue_logical_block_size: '512' });
    expect(changed).toMatchObject({ cache_type: 'write through', back: 'write back' });
    for (const server of [plain, through, fixed]) await bed.stop(server);
  },
  3 * minutes,
);

function oneQueue(socket: string): string {
  return socket.includes(',') ? socket : `${socket},num-queues=1`;
}

testWith(
  'fio in a guest verifies what it wrote, on two queues at once',
  [need.program('fio')],
  async () => {
    await using bed = new Bed();
    const server = await bed.serve(bed.disk(), { num_queues: 2 });
    const guest = bed.guest(
      { sockets: [`${server.socket},num-queues=2`], seconds: 240 },
      `fio --filename=/dev/vda --direct=1 --ioengine=io_uring --rw=randrw --bsrange=512-256k \\
  --iodepth=32 --verify=crc32c --verify_fatal=1 --verify_backlog=64 --serialize_overlap=1 \\
  --size=16M --randseed=${seed} --output-format=terse \\
  --name=a --cpus_allowed=0 --offset=0 --name=b --cpus_allowed=1 --offset=32M`,
    );
    await bed.guestEnd(guest);
    await bed.stop(server);
  },
  5 * minutes,
);
