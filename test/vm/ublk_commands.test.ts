/**
 * What `ubiblk ublk` shows and removes, held against the kernel's own word, and the life of a server:
 * signals, links, notices, threads.
 *
 * suite time limit: 1200 s
 */

import { expect, test } from 'bun:test';
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { client, tool } from '../e2e/processes.ts';
import { Bed, need, quote, type Settings, testWith } from '../e2e/support.ts';
import { runInGuest } from './ublk.ts';

const minutes = 60_000;
const DISK = '/dev/shm/disk.raw';

/** A server that isn't ours. */
function otherServer(bed: Bed): string {
  const program = bed.path('ublk-minimal');
  const made = spawnSync('gcc', [
    '-O2',
    '-o',
    program,
    tool('ublk-minimal.c'),
    '-luring',
    '-pthread',
  ]);
  if (made.status !== 0) throw new Error(`gcc: ${made.stderr}`);
  return program;
}

const settings: Settings = { path: DISK, num_queues: 2, queue_size: 32, ublk_mode: 'copy' };

/** Functions of the guests' scripts. */
const functions = `
list() { "$ubiblk" ublk list; }
info() { "$ubiblk" ublk info "$@"; }
del() { "$ubiblk" ublk del "$@"; }
# WORDS COMMAND...: it must fail, and say them.
refuses() {
  refused "\${@:2}" > /run/said 2>&1
  grep -qF -- "$1" /run/said || { cat /run/said; return 1; }
}
# The server must end by itself.
ends() { wait "$server"; }
# FILE WORDS: waits until they stand there.
says() {
  until grep -qF -- "$2" "$1"; do kill -0 "$server"; sleep 0.05; done
}
`;

/** What a guest's script has left in the test's folder. */
function left(bed: Bed, name: string): string {
  return readFileSync(bed.path(name), 'utf8');
}

test(
  'what is shown is what the kernel says, and what is removed is ours alone',
  async () => {
    await using bed = new Bed();
    const minimal = otherServer(bed);
    const config = bed.config({ ...settings, device_id: 'shown' }, 'disk.yaml');
    const through = bed.config({ ...settings, write_through: true, num_queues: 1 }, 'through.yaml');
    for (let i = 0; i < 10; i++) {
      bed.config({ path: `/dev/shm/${i}.raw`, queue_size: 16, num_queues: 1 }, `many${i}.yaml`);
    }
    const check = `${client('vhost-check')} "$disk" driver=io_uring direct=1 zero=1 depth=8 ops=150 max=65536 span=$((4 << 20))`;
    await runInGuest(
      bed,
      { seconds: 400, more: ['--mem', '2G'] },
      `${functions}
step no devices
[[ $(list) == 'no ublk devices' ]]
[[ $("$ubiblk" ublk list --json) == '[]' ]]
refuses "there is no ublk device 7; 'ubiblk ublk list' shows them all" info 7
refuses 'there is no ublk device 7' del 7
del --all

step one device
truncate -s $((12345 * 4096)) ${DISK}
serve ${quote(config)}
[[ $device == /dev/ublkb0 ]]
"$ubiblk" ublk list --json > list.json
info 0 --json > info.json
info /dev/ublkb0 > info.txt
info ublkb0 | cmp - info.txt
"$ubiblk" ublk features --json > features.json
"$ubiblk" ublk features > features.txt
list > list.txt
lsblk -bdJO "$device" > lsblk.json
{
  blockdev --getsize64 --getss --getpbsz --getiomin --getioopt --getro "$device"
  find /sys/block/ublkb0/mq -mindepth 1 -maxdepth 1 | wc -l
  cat /sys/block/ublkb0/mq/0/nr_tags
  cat /sys/block/ublkb0/queue/write_cache
  cat /sys/block/ublkb0/queue/max_hw_sectors_kb
  find /sys/class/ublk-char -name 'ublkc*' | wc -l
  echo "$server"
} > kernel.txt

step another server
${quote(minimal)} 8 > /run/minimal & minimal=$!
until [[ -s /run/minimal ]]; do kill -0 "$minimal"; sleep 0.1; done
[[ $(< /run/minimal) == /dev/ublkb1 ]]
[[ $(list | grep ublkb1) == *' 8M '*' live '*" $minimal (ublk-minimal)  not of ubiblk" ]]
[[ $(info 1) == *'made by: '*'another server'* ]]

step what is used is not removed
mkfs.ext4 -q "$device"
mount "$device" /mnt
refuses "'/dev/ublkb0' is in use: mounted on '/mnt'; end that, or give --force" del 0
refuses "mounted on '/mnt'" del --all
[[ $(info 0) == *"used by: "*"mounted on '/mnt'"* ]]
umount /mnt
exec 5< "$device"
refuses "'/dev/ublkb0' is in use: process $$ (bash)" del 0
exec 5<&-
unshare -m bash -c "mount $device /mnt; exec 6> /run/mounted; echo > /run/mounted; sleep 1000" & holder=$!
until [[ -s /run/mounted ]]; do sleep 0.1; done
refuses "in use: mounted on '/mnt'" del 0
kill "$holder"
wait "$holder" || true
until [[ $(info 0) == *'used by: '*nobody* ]]; do sleep 0.1; done

step what is ours is removed, and its server ends
[[ -e /run/ubiblk/ublk-0.json ]]
del --all > /run/removed
[[ $(< /run/removed) == 'removed /dev/ublkb0' ]]
ends
[[ ! -e /run/ubiblk/ublk-0.json && ! -e /dev/ublkb0 && ! -e /dev/ublkc0 ]]
grep -q "'/dev/ublkb0' was removed by somebody else" ${quote(config)}.log
dd if=/dev/ublkb1 of=/dev/null bs=1M count=8 status=none
kill "$minimal"
wait "$minimal"
[[ $(list) == 'no ublk devices' ]]

step removed by force under a file system
serve ${quote(config)}
mount "$device" /mnt
del --force "$device"
ends
[[ ! -e $device ]]
umount /mnt

step devices without servers
serve ${quote(config)} --device-symlink /run/links/disk
kill -9 "$server"
wait "$server" || true
[[ $(readlink /run/links/disk) == "$device" ]]
# The kernel takes a moment to see it.
until [[ $(list) == *' quiesced '* ]]; do sleep 0.1; done
[[ $(list | grep '^/dev/ublkb0  ') == *' quiesced '*' -  '*${DISK} ]]
advice="/dev/ublkb0 has no server; serve it again with 'ubiblk serve ublk --config $(realpath ${quote(config)})' or remove it with 'ubiblk ublk del 0'"
[[ $(list | tail -n 1) == "$advice" ]]
[[ $(info 0 | tail -n 1) == "$advice" ]]
[[ $(info 0) == *'server: '*none* ]]
del 0
[[ ! -L /run/links/disk && ! -e $device ]]

step a device of a disk of nothing
"$ubiblk" serve ublk --null 1T > /run/null 2> null.log & server=$!
until [[ -s /run/null ]]; do kill -0 "$server"; sleep 0.1; done
[[ $(blockdev --getsize64 "$(< /run/null)") == $((1 << 40)) ]]
[[ $(list | grep ublkb0) == *' 1T '* ]]
stop
serve ${quote(through)}
[[ $(cat /sys/block/ublkb0/queue/write_cache) == 'write through' ]]
stop

step nowhere to say it
refuses 'cannot write to standard output: ENOSPC' bash -c '"$0" ublk list > /dev/full' "$ubiblk"
"$ubiblk" serve ublk --config ${quote(config)} > /dev/full 2> full.log & server=$!
until grep -qF 'cannot write to standard output: ENOSPC' full.log; do kill -0 "$server"; sleep 0.1; done
dd if=/dev/ublkb0 of=/dev/null bs=64k count=4 iflag=direct status=none
stop

step ten devices at once
for i in {0..9}; do
  truncate -s $(((8 << 20) + i * 4096)) /dev/shm/$i.raw
  "$ubiblk" serve ublk --config "many$i.yaml" > "/run/many$i" 2>> "many$i.yaml.log" &
  servers[i]=$!
done
for i in {0..9}; do
  until [[ -s /run/many$i ]]; do kill -0 "\${servers[i]}"; sleep 0.1; done
done
[[ $(cat /run/many* | sort -u | wc -l) == 10 ]]
list > ten.txt
for i in {0..9}; do
  disk=$(< "/run/many$i")
  # Each is the disk of its own configuration.
  [[ $(blockdev --getsize64 "$disk") == $(((8 << 20) + i * 4096)) ]]
  grep -q "^$disk .* \${servers[i]} (ubiblk)  /dev/shm/$i.raw$" ten.txt
  ${check} seed=$i > "/run/check$i" &
  checks[i]=$!
done
for i in {0..9}; do
  wait "\${checks[i]}" || { cat "/run/check$i"; false; }
done
kill "\${servers[@]}"
for i in {0..9}; do wait "\${servers[i]}"; done
[[ $(list) == 'no ublk devices' ]]
[[ -z $(ls /run/ubiblk) ]]
`,
    );
    expectKernelsWord(bed, config);
  },
  8 * minutes,
);

/** Holds what the first guest was shown of its one device against what the kernel says of it. */
function expectKernelsWord(bed: Bed, config: string): void {
  const kernel = left(bed, 'kernel.txt').trim().split('\n');
  const [size, sector, physical, minimum, optimal, readOnly, queues, depth, cache, kib, chars] =
    kernel;
  const [server] = kernel.slice(-1);
  const info = JSON.parse(left(bed, 'info.json'));
  expect(Number(size)).toBe(12345 * 4096);
  expect(info).toMatchObject({
    id: 0,
    device: '/dev/ublkb0',
    state: 'live',
    ours: true,
    sizeBytes: Number(size),
    queues: Number(queues),
    depth: Number(depth),
    maxIoBytes: Number(kib) * 1024,
    mode: 'copy',
    recovery: 'reissue',
    readOnly: readOnly === '1',
    unprivileged: false,
    owner: { uid: 0, gid: 0 },
    server: { pid: Number(server), name: 'ubiblk' },
    disk: DISK,
    config,
    symlink: null,
    usedBy: '',
  });
  expect([queues, depth, cache, chars]).toEqual(['2', '32', 'write back', '1']);
  const { usedBy: _, ...listed } = info;
  expect(JSON.parse(left(bed, 'list.json'))).toEqual([expect.objectContaining(listed)]);
  const [block] = JSON.parse(left(bed, 'lsblk.json')).blockdevices;
  expect(block).toMatchObject({
    size: Number(size),
    'log-sec': Number(sector),
    'phy-sec': Number(physical),
    'min-io': Number(minimum),
    'opt-io': Number(optimal),
    ro: false,
    rota: false,
  });
  expect(block['disc-max']).toBe(1 << 30);
  const text = left(bed, 'list.txt').split('\n');
  expect(text[0].split(/ {2,}/)).toEqual([
    'DEVICE',
    'SIZE',
    'STATE',
    'QUEUES',
    'MODE',
    'RECOVERY',
    'SERVER',
    'DISK',
  ]);
  expect(text[1]).toMatch(
    new RegExp(`^/dev/ublkb0 +\\S+ +live +2x32 +copy +reissue +${server} \\(ubiblk\\) +${DISK}$`),
  );
  expect(left(bed, 'info.txt')).toMatch(/^size: +50565120 bytes$/m);
  const features = JSON.parse(left(bed, 'features.json'));
  expect(features.kernel).toStartWith('6.12.');
  expect(features.modes).toEqual(['copy', 'user_copy', 'need_get_data']);
  expect(features.recoveries).toEqual(['reissue', 'requeue', 'off']);
  expect(features.features).toContain('user_recovery_reissue');
  expect(left(bed, 'features.txt')).toContain(`features:   ${features.features.join(' ')}\n`);
  expect(left(bed, 'features.txt')).toMatch(/^missing: .*auto_buf_reg.* quiesce/m);
}

/** Takes what is told to a service manager, one line for each datagram. */
const manager = `
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind(sys.argv[1])
while True:
    print(s.recv(4096).decode(), flush=True)
`;

testWith(
  "a server's life: signals, links, notices, questions, and what it needs of the kernel",
  [need.program('python3'), need.program('mkfs.ext4'), need.program('dmsetup')],
  async () => {
    await using bed = new Bed();
    const config = bed.config({ ...settings, rpc_socket_path: '/run/rpc.sock' }, 'disk.yaml');
    const heldBy = { path: '/dev/mapper/held', rpc_socket_path: '/run/held.sock' };
    const held = bed.config({ ...settings, ...heldBy, num_queues: 1 }, 'held.yaml');
    const log = quote(bed.path('disk.yaml.log'));
    await runInGuest(
      bed,
      { seconds: 400 },
      `${functions}
truncate -s 32M ${DISK}

step a link, a service manager, and what a server is
python3 -c ${quote(manager)} /run/notify > /run/notices & manager=$!
until [[ -S /run/notify ]]; do sleep 0.1; done
export NOTIFY_SOCKET=/run/notify
mkdir -p /run/links
ln -s /dev/null /run/links/disk
cd /run
serve ${quote(config)} --device-symlink links/disk
cd "$OLDPWD"
[[ $(readlink /run/links/disk) == "$device" ]]
[[ $(ls -A /run/links) == disk ]]
until grep -qx READY=1 /run/notices; do sleep 0.05; done
[[ $(readlink "/proc/$server/cwd") == / ]]
for task in /proc/$server/task/*; do
  # Flags come seventh after the name, which may have blanks.
  read -r _ _ _ _ _ _ flags _ <<< "$(sed 's/.*) //' "$task/stat" || true)"
  [[ -z $flags ]] || echo "$(((flags & 0x180000) == 0x180000)) $(< "$task/comm")"
done > threads.txt

step what it answers
[[ $("$ubiblk" rpc /run/rpc.sock version --json) == '{"version":'* ]]
[[ $("$ubiblk" rpc /run/rpc.sock status --json) == '{"device":{'*'"frontend":"ublk"'*'"status":null}' ]]
[[ $("$ubiblk" rpc /run/rpc.sock queues --json) == '{"queues":[[],[]]}' ]]

step a request that waits for its disk
modprobe loop
truncate -s 32M /dev/shm/held.raw
dmsetup create held --table "0 65536 linear $(losetup -f --show /dev/shm/held.raw) 0"
shown=$device served=$server
serve ${quote(held)}
dmsetup suspend held
dd if=/dev/zero of="$device" bs=4k count=1 seek=5 oflag=direct status=none & writer=$!
until [[ $("$ubiblk" rpc /run/held.sock queues --json) == '{"queues":[[["write",40,8]]]}' ]]; do
  kill -0 "$writer"
done
dmsetup resume held
wait "$writer"
[[ $("$ubiblk" rpc /run/held.sock queues --json) == '{"queues":[[]]}' ]]
stop
[[ ! -e /run/held.sock ]]

step told to end while it is being unmounted
serve ${quote(held)}
mkfs.ext4 -q "$device"
mount "$device" /mnt
head -c 4M /dev/urandom > /run/noise
cp /run/noise /mnt/noise
dmsetup suspend held
umount /mnt & unmounting=$!
# It is nowhere to be seen any more, and has not been written yet.
while grep -q ' /mnt ' /proc/mounts; do kill -0 "$unmounting"; sleep 0.05; done
refuses 'in use: the kernel, which has not finished to unmount it' del "$device"
kill "$server"
says ${quote(bed.path('held.yaml.log'))} 'in use: the kernel, which has not finished to unmount it'
dmsetup resume held
wait "$unmounting"
ends
serve ${quote(held)}
mount "$device" /mnt
cmp /run/noise /mnt/noise
umount /mnt
stop
device=$shown server=$served

step told to end while it is mounted
mkfs.ext4 -q "$device"
mount "$device" /mnt
echo kept > /mnt/file
kill "$server"
says ${log} "'$device' is in use: mounted on '/mnt'; it is removed in "
# Too late for that.
kill -USR2 "$server"
kill -0 "$server"
umount /mnt
ends
[[ ! -e $device && ! -L /run/links/disk ]]
refused grep -qF 'leaving the device' ${log}
until grep -qx STOPPING=1 /run/notices; do sleep 0.05; done
[[ $(sort -u /run/notices | tr '\n' ' ') == 'READY=1 STOPPING=1 ' ]]
kill "$manager"
unset NOTIFY_SOCKET

step told twice
: > ${log}
serve ${quote(config)} --device-symlink /run/new/folder/disk --stop-timeout 3600
[[ $(readlink /run/new/folder/disk) == "$device" ]]
# Somebody else's now.
ln -sfn /dev/zero /run/new/folder/disk
mount "$device" /mnt
[[ $(< /mnt/file) == kept ]]
echo synced > /mnt/other
kill "$server"
says ${log} "is in use: mounted on '/mnt'"
kill -INT "$server"
ends
grep -qF "'$device' is removed although it is in use: mounted on '/mnt'" ${log}
[[ $(readlink /run/new/folder/disk) == /dev/zero ]]
umount /mnt

step not to wait at all
: > ${log}
serve ${quote(config)} --stop-timeout 0
mount -o ro "$device" /mnt
[[ $(< /mnt/other) == synced ]]
umount /mnt
exec 5< "$device"
kill "$server"
ends
grep -qF "is removed although it is in use: process $$ (bash)" ${log}
exec 5<&-

step to wait no longer than that
: > ${log}
serve ${quote(config)} --stop-timeout 1
exec 5< "$device"
kill -INT "$server"
ends
grep -qF "is removed although it is in use: process $$ (bash)" ${log}
exec 5<&-
[[ $(list) == 'no ublk devices' ]]

step SIGHUP, a link that cannot be made, and another program that removes the device
: > ${log}
serve ${quote(config)} --device-symlink /proc/none/disk
grep -qF "the link '/proc/none/disk' can't be made: " ${log}
kill -HUP "$server"
for round in 1 2 3; do
  dd if="$device" of=/dev/null bs=64k count=4 iflag=direct status=none
done
del 0
ends

step the opcodes of before Linux 6.4
export UBIBLK_UBLK_OPCODES=legacy
serve ${quote(config)}
dd if=/dev/urandom of="$device" bs=64k count=16 oflag=direct status=none
cmp -n $((1 << 20)) "$device" ${DISK}
# Of a driver that can't be asked no more than this is taken for granted.
[[ $(list) == *' live '*' off '* ]]
[[ $("$ubiblk" ublk features) == *'the driver is older than Linux 6.5 and cannot say what it can do'* ]]
stop
unset UBIBLK_UBLK_OPCODES

step what the kernel lacks
printf 'path: ${DISK}\nublk_mode: zero_copy\n' > /run/zero.yaml
refuses "lacks support_zero_copy, auto_buf_reg, which 'ublk_mode: zero_copy' asks for (Linux 6.16 or later)" \
  "$ubiblk" serve ublk --config /run/zero.yaml
printf 'path: ${DISK}\nublk_recovery: fail\n' > /run/fail.yaml
refuses "lacks user_recovery_fail_io, which 'ublk_recovery: fail' asks for (Linux 6.13 or later)" \
  "$ubiblk" serve ublk --config /run/fail.yaml
[[ $(list) == 'no ublk devices' ]]

step another user, who may not
cp ${quote(config)} /run/user.yaml
chmod 644 /run/user.yaml
chmod 666 ${DISK}
as_user() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
refuses "'/dev/ublk-control' can't be opened (EACCES): run as root, or see docs/serve-ublk.md" \
  as_user "$ubiblk" ublk list
chmod 666 /dev/ublk-control
sed -i /rpc_socket_path/d /run/user.yaml
refuses 'only root may make ublk devices of this kind: run as root, or give --unprivileged' \
  as_user "$ubiblk" serve ublk --config /run/user.yaml
[[ $(wc -l < /run/said) == 1 ]]
chmod 600 /dev/ublk-control

step no driver
rmmod ublk_drv
[[ ! -e /dev/ublk-control ]]
for command in 'ublk list' 'ublk features' 'ublk del --all' 'serve ublk --null 1M'; do
  # shellcheck disable=SC2086  # several words
  refuses "'/dev/ublk-control' is missing: load the kernel's ublk driver with 'modprobe ublk_drv'" \
    "$ubiblk" $command
  [[ $(wc -l < /run/said) == 1 ]]
done
`,
    );
    const threads = left(bed, 'threads.txt').trim().split('\n');
    const lacking = threads.filter((line) => line.startsWith('0 ')).map((line) => line.slice(2));
    const having = threads.filter((line) => line.startsWith('1 ')).map((line) => line.slice(2));
    for (const name of ['ubiblk', 'ublk control', 'queue 0', 'queue 1']) {
      expect(having).toContain(name);
    }
    console.log(`threads without PR_SET_IO_FLUSHER: ${lacking.join(', ')}`);
    expect(lacking.filter((name) => /ublk|queue|iou|ubiblk/.test(name))).toEqual([]);
  },
  8 * minutes,
);

testWith(
  'at depth 32 two requests and more share one system call',
  [need.program('fio'), need.program('mkfs.ext4')],
  async () => {
    await using bed = new Bed();
    const image = bed.disk({ sizeBytes: 64 << 20 });
    const config = bed.config({ path: '/run/disk/file.raw', queue_size: 64 }, 'file.yaml');
    await runInGuest(
      bed,
      { seconds: 300, disks: [image] },
      `
mkfs.ext4 -q /dev/vda
mkdir /run/disk
mount /dev/vda /run/disk
head -c 32M /dev/zero > /run/disk/file.raw
sync
events=/sys/kernel/tracing/events/raw_syscalls/sys_enter
load() {
  fio --name=load --filename="$device" --direct=1 --ioengine=io_uring --rw=randread --bs=4k \
    --iodepth=32 --size=32M --io_size="$1" --output-format=json --output=fio.json
}
# System calls of the server's threads, by the kernel's own count.
count() {
  load 1M
  echo 'hist:keys=common_pid:size=4096' > $events/trigger
  load 32M
  local calls=0 task
  for task in /proc/$server/task/*; do
    calls=$((calls + $(sed -n "s/.*common_pid: *\${task##*/} .*hitcount: *\\([0-9]*\\).*/\\1/p" $events/hist | head -n 1) + 0))
  done
  echo '!hist:keys=common_pid:size=4096' > $events/trigger
  echo "$calls" > calls.txt
}
serve ${quote(config)}
count
stop
`,
    );
    const calls = Number(left(bed, 'calls.txt'));
    const requests = (32 << 20) / 4096;
    console.log(`${calls} system calls for ${requests} requests`);
    expect(calls).toBeGreaterThan(0);
    expect(calls / requests).toBeLessThan(0.5);
  },
  6 * minutes,
);
