/**
 * File systems on ublk devices keep what is written to them, give freed space back to the data file, and
 * are whole at the end; partitions are found when the device is made.
 *
 * suite time limit: 1700 s
 */

import { root } from '../e2e/processes.ts';
import {
  Bed,
  matrix,
  need,
  Random,
  type Settings,
  seed,
  testKeys,
  testWith,
} from '../e2e/support.ts';
import { type Kernel, runInGuest } from './ublk.ts';

const minutes = 60_000;
const OPERATIONS = 250;

const rows = matrix({
  kernel: ['trixie', 'sid'],
  fs: ['ext4', 'xfs'],
  kind: ['plain', 'encrypted'],
} as const);
type Row = (typeof rows)[number];

const MKFS = { ext4: 'mkfs.ext4 -q', xfs: 'mkfs.xfs -q' };
const FSCK = { ext4: 'fsck.ext4 -fn', xfs: 'xfs_repair -n' };

const functions = `
# Blocks of 512 bytes that a file has.
blocks() {
  sync "$1"
  stat -c %b "$1"
}
# Several files at a time, and fio's jobs beside them.
stress() {
  local i pids=()
  for i in 1 2 3; do
    ./file-check run /mnt/checked$i ${OPERATIONS} $((${seed} + i)) &
    pids+=($!)
  done
  fio --directory=/mnt --size=2M --verify=crc32c --verify_fatal=1 --randseed=${seed} \\
    --rw=randwrite --bsrange=4k-256k \\
    --name=mapped --ioengine=mmap --name=direct --ioengine=libaio --direct=1 --iodepth=16 \\
    --name=synced --ioengine=psync --fdatasync=4 > /dev/null 2> fio.log
  for i in "\${pids[@]}"; do wait "$i"; done
}
compare() {
  local i
  for i in 1 2 3; do ./file-check compare /mnt/checked$i ${OPERATIONS} $((${seed} + i)); done
}
`;

/** What is freed is given back where the disk may have holes, and not said to be where it may not. */
const trims = {
  plain: `
full=$(blocks "$file")
rm -r /mnt/*
fstrim /mnt
trimmed=$(blocks "$file")
umount /mnt
echo "of $full blocks $trimmed are left after fstrim"
((full - trimmed > 2048 * 6))
blkdiscard -f "$device" 2> discard.log
(($(blocks "$file") == 0))
# Zeroed ranges keep their space, if it isn't given back on purpose.
blkdiscard -f -z -l 1M "$device" 2> discard.log
(($(blocks "$file") == 2048))
fallocate -p -l 1M "$device"
(($(blocks "$file") == 0))`,
  encrypted: `
refused fstrim /mnt 2> trim.log
refused blkdiscard -f "$device" 2> discard.log
umount /mnt`,
};

function rowScript(name: string, { fs, kind }: Row): string {
  return `
step '${name}: ${fs} on a disk that is ${kind}'
file=/dev/shm/disk.raw
truncate -s 320M "$file"
serve ${name}.yaml
${MKFS[fs]} "$device"
mount "$device" /mnt
stress
umount /mnt
${FSCK[fs]} "$device" > fsck.log 2>&1
mount "$device" /mnt
compare
${trims[kind]}
stop
rm "$file"`;
}

const partitions = `
step partitions
truncate -s 64M /dev/shm/disk.raw
serve partitions.yaml
printf 'label: gpt\\n,16M\\n,\\n' | sfdisk -q "$device"
mkfs.ext4 -q "$device"p2
mount "$device"p2 /mnt
./file-check run /mnt/checked 100 ${seed}
umount /mnt
stop
serve partitions.yaml
[[ $(blockdev --getsize64 "$device"p1) == $((16 << 20)) ]]
fsck.ext4 -fn "$device"p2 > fsck.log 2>&1
mount -o ro "$device"p2 /mnt
./file-check compare /mnt/checked 100 ${seed}
umount /mnt
stop`;

async function fileSystemsOn(kernel: Kernel): Promise<void> {
  await using bed = new Bed();
  await bed.run(['cc', '-O2', '-o', 'file-check', `${root}/test/tools/file-check.c`]);
  const random = new Random(seed);
  const scripts = rows
    .filter((row) => row.kernel === kernel)
    .map((row, i) => {
      const keys: Settings = row.kind === 'encrypted' ? { encryption_key: testKeys } : {};
      const direct_io = random.below(2) === 1;
      bed.config({ path: '/dev/shm/disk.raw', num_queues: 2, direct_io, ...keys }, `row${i}.yaml`);
      return rowScript(`row${i}`, row);
    });
  bed.config({ path: '/dev/shm/disk.raw' }, 'partitions.yaml');
  const all = [functions, ...scripts, partitions];
  await runInGuest(bed, { kernel, seconds: 800 }, all.join('\n'));
}

for (const kernel of ['trixie', 'sid'] as const) {
  testWith(
    `file systems and partitions hold what was written: kernel of ${kernel}`,
    ['cc', 'fio', 'mkfs.ext4', 'mkfs.xfs', 'sfdisk'].map(need.program),
    () => fileSystemsOn(kernel),
    15 * minutes,
  );
}
