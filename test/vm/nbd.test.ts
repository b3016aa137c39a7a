/** NBD with real kernels on the other side: a guest that boots from an export, ublk devices, the kernel's own client. */
import { expect } from 'bun:test';
import { existsSync } from 'node:fs';
import { nbdPrograms } from '../e2e/nbd.ts';
import { binary } from '../e2e/processes.ts';
import { Bed, need, quote, testWith } from '../e2e/support.ts';
import { runInGuest } from './ublk.ts';

const needs = nbdPrograms.map((name) => need.program(name));
const minutes = 60_000;

testWith(
  "a guest's file system comes from a compressed image on a web server",
  [...needs, need.program('xz'), need.program('mkfs.ext4')],
  async () => {
    await using bed = new Bed();
    const image = bed.path('image.raw');
    const folder = bed.path('files');
    await bed.run([
      ...['bash', '-ec'],
      `mkdir ${quote(folder)}; head -c 8M /dev/urandom > ${quote(folder)}/big; (cd ${quote(folder)} && sha256sum big > sums)
truncate -s 64M ${quote(image)}; mkfs.ext4 -q -d ${quote(folder)} ${quote(image)}
xz -1 --block-size=1048576 -k ${quote(image)}`,
    ]);
    using web = Bun.serve({
      port: 0,
      hostname: '127.0.0.1',
      // nbdkit-curl-plugin asks for ranges.
      fetch: () => new Response(Bun.file(`${image}.xz`), { headers: { 'Accept-Ranges': 'bytes' } }),
    });
    const url = `http://127.0.0.1:${web.port}/image.raw.xz`;
    const command = ['nbdkit', '-f', '--filter=xz', 'curl', url];
    const settings = {
      metadata_path: bed.path('disk.meta'),
      copy_on_read: true,
      stripe_source: { source: 'nbd', command } as unknown as string,
    };
    const disk = bed.disk({ sizeBytes: 64 << 20 });
    const config = bed.config({ path: disk, ...settings });
    await bed.run([binary, 'metadata', 'init', '--config', config]);
    const server = await bed.serve(disk, settings);
    const guest = bed.guest(
      { sockets: [`${server.socket},num-queues=1`] },
      `set -e
mount /dev/vda /mnt
(cd /mnt && sha256sum -c sums && cp big copy && sync && cmp big copy)
umount /mnt
fsck.ext4 -fn /dev/vda
touch ready`,
    );
    await bed.guestEnd(guest);
    expect(existsSync(bed.path('ready'))).toBe(true);
    await bed.stop(server);
  },
  6 * minutes,
);

testWith(
  'an export is a block device, as nbdublk makes one',
  [...needs, need.program('mkfs.ext4')],
  async () => {
    await using bed = new Bed();
    await runInGuest(
      bed,
      { seconds: 300 },
      `
truncate -s 128M /dev/shm/export.raw
nbdkit -U /run/nbdkit.sock -P /run/nbdkit.pid file /dev/shm/export.raw
mkfifo /run/served
"$ubiblk" serve ublk --nbd 'nbd+unix:///?socket=/run/nbdkit.sock' > /run/served 2>> nbd.log &
server=$!
read -r -t 60 device < /run/served
step write and read
mkfs.ext4 -q "$device"
mount "$device" /mnt
head -c 20M /dev/urandom > /mnt/file
sync
sha256sum /mnt/file > /run/sum
step the server of the export is started anew
kill -9 "$(cat /run/nbdkit.pid)"
rm -f /run/nbdkit.sock /run/nbdkit.pid
(head -c 4M /dev/urandom > /mnt/more; sync) & writing=$!
sleep 1
nbdkit -U /run/nbdkit.sock -P /run/nbdkit.pid file /dev/shm/export.raw
wait "$writing"
echo 3 > /proc/sys/vm/drop_caches
sha256sum -c /run/sum
fstrim /mnt
umount /mnt
kill -TERM "$server"
wait "$server"
step it is in the export
fsck.ext4 -fn /dev/shm/export.raw
`,
    );
  },
  6 * minutes,
);

testWith(
  "the kernel's own NBD client uses a disk",
  [...needs, need.program('nbd-client')],
  async () => {
    await using bed = new Bed();
    const config = bed.config({ path: '/dev/shm/disk.raw', num_queues: 2 });
    await runInGuest(
      bed,
      { seconds: 300 },
      `
truncate -s 64M /dev/shm/disk.raw
"$ubiblk" serve nbd --config ${quote(config)} --listen unix:/run/nbd.sock 2>> nbd.log &
server=$!
until grep -q listening nbd.log; do kill -0 "$server"; sleep 0.1; done
modprobe nbd
nbd-client -unix /run/nbd.sock /dev/nbd0 -C 2
step write and read
mkfs.ext4 -q /dev/nbd0
mount /dev/nbd0 /mnt
head -c 10M /dev/urandom > /mnt/file
sync
fstrim /mnt
umount /mnt
fsck.ext4 -fn /dev/nbd0
nbd-client -d /dev/nbd0
step the end
stop
fsck.ext4 -fn /dev/shm/disk.raw
`,
    );
  },
  6 * minutes,
);
