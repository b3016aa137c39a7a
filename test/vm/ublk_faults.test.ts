/**
 * Disks that fail under a ublk device: errors reach whoever asked, and nobody else, and end when the disk
 * works again. What was flushed is durable, in the order in which the kernel was told so.
 *
 * suite time limit: 1700 s
 */

import { expect } from 'bun:test';
import { readFileSync } from 'node:fs';
import { client } from '../e2e/processes.ts';
import { Bed, matrix, need, quote, Random, seed, testWith } from '../e2e/support.ts';
import { replay } from './log_writes.ts';
import { type Kernel, runInGuest } from './ublk.ts';

const minutes = 60_000;
const mebibyte = 1 << 20;

const failing = matrix(
  {
    kernel: ['trixie', 'sid'],
    ublk_mode: ['copy', 'user_copy', 'need_get_data', 'zero_copy'],
    io_engine: ['io_uring', 'sync'],
    direct_io: [true, false],
  } as const,
  // The kernel's part in it is the same for all that copies.
  ({ kernel, ublk_mode, io_engine }) =>
    (kernel === 'sid') === (ublk_mode === 'zero_copy' || ublk_mode === 'need_get_data') &&
    (ublk_mode !== 'zero_copy' || io_engine === 'io_uring'),
);

const check = `${client('vhost-check')} "$device" driver=io_uring direct=1`;

/** The second of three parts of 8 MiB fails, or everything does for a second, and again. */
const functions = `
modprobe -a loop dm-flakey
truncate -s 24M /dev/shm/disk.raw
loop=$(losetup -f --show /dev/shm/disk.raw)
head -c 1M /dev/urandom > /run/random
whole="0 49152 linear $loop 0"
holed="0 16384 linear $loop 0
16384 16384 error
32768 16384 linear $loop 32768"
flaky="0 49152 flakey $loop 0 1 1"
load() {
  dmsetup load disk <<< "$1"
  dmsetup resume --nolockfs disk
}
write() { dd if=/run/random of="$device" bs=$1 seek=$2 count=1 oflag=seek_bytes,direct status=none; }
read_back() { dd if="$device" bs=$1 skip=$2 count=1 iflag=skip_bytes,direct status=none; }
# A command that must fail with an I/O error.
eio() {
  refused "$@" > /dev/null 2> eio.log
  grep -q 'Input/output error' eio.log
}
# fio gets errors, and goes on.
suffers() { # LOG ARG...
  local log=$1
  shift
  ! fio --name=suffers --filename="$device" --direct=1 --ioengine=libaio --iodepth=16 --rw=randrw \\
    --bsrange=512-128k --continue_on_error=all --output-format=json "$@" > "$log" 2> /dev/null
  grep -q '"error" : 5,' "$log"
}
`;

function failingScript(name: string, row: (typeof failing)[number]): string {
  // What only the page cache has seen fails when it is written out, which only a flush waits for.
  const direct = `
eio write 65536 $((12 << 20))
eio read_back 4096 $((15 << 20))
eio write 1048576 $(((8 << 20) - 4096))
write 1048576 $((4 << 20))
read_back 1048576 $((4 << 20)) | cmp - /run/random
suffers ${name}.fio.log --offset=8M --size=8M --number_ios=300 &
suffering=$!
${check} depth=32 max=262144 mix=rrrwwwzfu ops=150 span=$((8 << 20)) seed=${seed}
wait $suffering`;
  const cached = `
eio dd if=/run/random of="$device" bs=65536 seek=128 count=4 conv=fsync
${check} depth=32 max=262144 mix=rrrwwwz ops=150 span=$((8 << 20)) seed=${seed}`;
  return `
step ${quote(`${name} ${Object.values(row).join(', ')}`)}
dmsetup create disk --table "$whole"
serve ${name}.yaml
write 1048576 $((20 << 20))
load "$holed"
${row.direct_io ? direct : cached}
read_back 1048576 $((20 << 20)) | cmp - /run/random
load "$flaky"
suffers ${name}.fio.log --size=24M --time_based --runtime=2 ${row.direct_io ? '' : '--fsync=8'}
load "$whole"
# The first flush may still tell of what was lost before.
sync "$device" 2> /dev/null || true
${check} depth=32 max=262144 mix=rrrwwwzfu ops=150 span=$((24 << 20)) seed=${seed} queues=2
grep -q '${row.direct_io ? 'write' : 'flush'} failed with EIO offset=${row.direct_io ? '' : '0 length=0'}' ${name}.yaml.log
stop
dmsetup remove disk`;
}

/** A file system without room for the whole data file, and with it. */
const fullScript = `
step a disk without room
mkdir /run/small
mount -t tmpfs -o size=6M small /run/small
truncate -s 16M /run/small/disk.raw
serve full.yaml
write 1048576 0
refused dd if=/dev/zero of="$device" bs=1M oflag=direct 2> full.log
grep -q 'No space left on device' full.log
refused dd if=/dev/zero of="$device" bs=1M conv=fsync 2> full.log
grep -q 'No space left on device' full.log
write 1048576 $((1 << 20))
read_back 1048576 $((1 << 20)) | cmp - /run/random
read_back 1048576 $((15 << 20)) | cmp -n 1048576 - /dev/zero
blkdiscard -f "$device" 2> /dev/null
write 1048576 $((15 << 20))
mount -o remount,size=20M /run/small
${check} depth=32 max=262144 mix=rrwwzfu ops=150 span=$((16 << 20)) seed=${seed}
stop`;

async function failuresOn(kernel: Kernel): Promise<void> {
  await using bed = new Bed();
  const scripts = failing
    .filter((row) => row.kernel === kernel)
    .map((row, i) => {
      const { kernel: _, ...settings } = row;
      bed.config({ path: '/dev/mapper/disk', num_queues: 2, ...settings }, `row${i}.yaml`);
      return failingScript(`row${i}`, row);
    });
  bed.config({ path: '/run/small/disk.raw', num_queues: 2 }, 'full.yaml');
  await runInGuest(bed, { kernel, seconds: 800 }, [functions, ...scripts, fullScript].join('\n'));
}

for (const kernel of ['trixie', 'sid'] as const) {
  testWith(
    `errors of the data file reach those who asked, and end with it: kernel of ${kernel}`,
    ['fio', 'dmsetup'].map(need.program),
    () => failuresOn(kernel),
    15 * minutes,
  );
}

const logged = matrix(
  {
    ublk_mode: ['copy', 'user_copy', 'zero_copy'],
    io_engine: ['io_uring', 'sync'],
    direct_io: [true, false],
    write_through: [true, false],
  } as const,
  ({ ublk_mode, io_engine }) => ublk_mode !== 'zero_copy' || io_engine === 'io_uring',
);
const LOGGED_BYTES = 64 * mebibyte;
const DATA_BYTES = 4 * mebibyte;
const ROUNDS = 3;
const RECORDS = 4;
const RECORD_BYTES = 1 << 16;

/** Everything is marked in the log right after it was made durable. */
function loggedScript(name: string, row: (typeof logged)[number], log: string): string {
  return `
step ${quote(`${name} ${Object.values(row).join(', ')}`)}
truncate -s ${LOGGED_BYTES} /dev/shm/disk.raw
loop=$(losetup -f --show /dev/shm/disk.raw)
dmsetup create disk --table "0 ${LOGGED_BYTES / 512} log-writes $loop ${log}"
serve ${name}.yaml
# The log has what was written with FUA before what was written to the same place and not flushed yet,
# whatever came first: rounds are of one kind alone, and begin with nothing that is not flushed.
kinds=(rwwwwzf ruuuuf rwwwwzf)
for i in $(seq ${ROUNDS}); do
  sync "$device"
  ${check} depth=16 max=65536 mix=\${kinds[i - 1]} ops=80 span=${DATA_BYTES} cache=1 zero=1 state=/run/state \\
    seed=$((${seed} + i))
  cp /run/state ${name}.state$i
  mark data$i
done
rm /run/state
mkfs.ext4 -q "$device"
mount "$device" /mnt
mark made
for i in $(seq ${RECORDS}); do
  dd if=/run/random of=/mnt/noise$i bs=128k count=4 status=none
  dd if=/run/random of=/mnt/record$i bs=${RECORD_BYTES} skip=$i count=1 conv=fsync status=none
  mark record$i
done
umount /mnt
mark unmounted
stop
dmsetup remove disk
losetup -d "$loop"
rm /dev/shm/disk.raw`;
}

/** What a power cut would have left at each mark, and at flushes between them, is whole. */
async function checkLog(bed: Bed, name: string, log: string): Promise<void> {
  const image = bed.disk({ sizeBytes: LOGGED_BYTES });
  const random = new Random(seed);
  const written = readFileSync(bed.path('random'));
  const marks: string[] = [];
  let records = -1;
  await replay(log, image, async ({ mark = '' }) => {
    if (mark) marks.push(mark);
    const round = mark.match(/^data(\d)/)?.[1];
    if (round) await checkRound(bed, image, bed.path(`${name}.state${round}`));
    if (mark === 'made' || mark.startsWith('record')) records++;
    if (records >= 0 && (mark || random.below(8) === 0)) {
      await checkFileSystem(bed, image, records, written);
    }
  });
  const list = (what: string, count: number) =>
    Array.from({ length: count }, (_, i) => `${what}${i + 1}`);
  const end = ['unmounted', 'dm-log-writes-end'];
  expect(marks).toEqual([...list('data', ROUNDS), 'made', ...list('record', RECORDS), ...end]);
}

async function checkRound(bed: Bed, image: string, state: string): Promise<void> {
  await bed.check(image, {
    driver: 'io_uring',
    ops: 0,
    zero: 1,
    cache: 1,
    span: DATA_BYTES,
    state,
  });
}

/** A file system that was not unmounted is whole when its journal was replayed, with all records. */
async function checkFileSystem(
  bed: Bed,
  image: string,
  records: number,
  written: Buffer,
): Promise<void> {
  const copy = bed.path('crashed.raw');
  await bed.run(['cp', '--sparse=always', image, copy]);
  // 1: something was done.
  await bed.run(['bash', '-c', 'e2fsck -y -E journal_only "$1" || (($? == 1))', 'replay', copy]);
  await bed.run(['e2fsck', '-fn', copy]);
  for (let i = 1; i <= records; i++) {
    const record = bed.path('record');
    await bed.run(['debugfs', '-R', `dump /record${i} ${record}`, copy]);
    const expected = written.subarray(i * RECORD_BYTES, (i + 1) * RECORD_BYTES);
    if (!readFileSync(record).equals(expected)) throw new Error(`record ${i} is not as it was`);
  }
}

testWith(
  'what was flushed is durable, in this order: replays of all that reached the disk',
  ['dmsetup', 'mkfs.ext4', 'debugfs'].map(need.program),
  async () => {
    await using bed = new Bed();
    const logs = logged.map(() => bed.disk({ sizeBytes: 256 * mebibyte }));
    const scripts = logged.map((row, i) => {
      bed.config({ path: '/dev/mapper/disk', num_queues: 2, ...row }, `row${i}.yaml`);
      return loggedScript(`row${i}`, row, `/dev/vd${'abcdefgh'[i]}`);
    });
    const start = `
modprobe -a loop dm-log-writes
head -c 1M /dev/urandom > /run/random
cp /run/random random
mark() { dmsetup message disk 0 mark "$1"; }`;
    const options = { kernel: 'sid', seconds: 800, disks: logs } as const;
    await runInGuest(bed, options, [start, ...scripts].join('\n'));
    for (const i of logged.keys()) await checkLog(bed, `row${i}`, logs[i]);
  },
  15 * minutes,
);
