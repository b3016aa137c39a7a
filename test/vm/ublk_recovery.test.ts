/**
 * Servers of ublk devices that are killed, or give their device to another one, under a load that
 * compares every byte: what becomes of requests is what `ublk_recovery` says, no write that was answered
 * is lost, and the device stays the same.
 *
 * suite time limit: 1200 s
 */

import { test } from 'bun:test';
import { client } from '../e2e/processes.ts';
import {
  Bed,
  matrix,
  need,
  quote,
  type Settings,
  seed,
  soak,
  testKeys,
  testWith,
} from '../e2e/support.ts';
import { runInGuest } from './ublk.ts';

const minutes = 60_000;
/** MiB of the disks, and of the images of lazy ones. */
const DISK_MIB = 8;
const IMAGE_MIB = 5;
const DEPTH = 32;

/**
 * Functions of the guests' scripts. A load runs beside its server until it is told to end; how many
 * answers it has had so far comes through descriptor 3.
 */
const functions = `
span=$((${DISK_MIB} << 20))
check() { ${quote(client('vhost-check'))} "$1" driver=io_uring direct=1 zero=1 span=$span timeout=120 "\${@:2}"; }

# STATE [OPTION...]
begin_load() {
  rm -f /run/stop /run/load
  mkfifo /run/load
  check "$device" depth=${DEPTH} max=131072 ops=1000000000 mix=rrrwwwwzdfu seed=${seed} state="$1" \\
    until=/run/stop progress=1 "\${@:2}" > /run/load &
  load=$!
  exec 3< /run/load
}

# Waits for an answer to a request of the load that had none yet.
progressed() {
  local line first
  while read -r -t 0 -u 3; do
    read -r -u 3 line || { wait "$load"; return 1; }
  done
  read -r -t 120 -u 3 first
  line=$first
  while [[ $line == "$first" ]]; do
    read -r -t 120 -u 3 line
  done
}

end_load() {
  touch /run/stop
  summary=$(tail -n 1 <&3)
  exec 3<&-
  echo "$summary"
  wait "$load"
}

# Answers come in bursts: right after one of them nothing may be in work.
busy() {
  local reads=0 writes=0
  until ((reads + writes >= 4)); do
    kill -0 "$load"
    read -r reads writes < "/sys/block/\${device#/dev/}/inflight"
  done
}

# The server ends as in a crash.
crash() {
  kill -9 "$server"
  wait "$server" 2> /dev/null || [[ $? == 137 ]]
}

read_some() { dd if="$device" of=/dev/null bs=64k count=4 iflag=direct status=none; }

no_errors() {
  if dmesg | grep -E 'I/O error|blk_update_request'; then return 1; fi
}
`;

type Kind = 'plain' | 'encrypted' | 'lazy';

interface Row {
  recovery: 'reissue' | 'requeue' | 'fail';
  mode: 'zero_copy' | 'copy' | 'user_copy' | 'need_get_data';
  kind: Kind;
  queues: 1 | 2;
}

const DISK = '/dev/shm/disk.raw';
const IMAGE = '/dev/shm/image.raw';

/** With it something is always in work. */
const SLOW = '/dev/mapper/slow';

function settingsOf({ recovery, mode, kind, queues }: Row): Settings {
  const path = recovery === 'requeue' ? SLOW : DISK;
  const keys: Settings = kind === 'encrypted' ? { encryption_key: testKeys } : {};
  const image: Settings =
    kind === 'lazy' ? { metadata_path: '/dev/shm/disk.meta', image_path: IMAGE } : {};
  const ublk = { ublk_recovery: recovery, ublk_mode: mode };
  return { path, num_queues: queues, queue_size: DEPTH, ...ublk, ...keys, ...image };
}

/** Makes a disk that reads as zeroes, or as its image. */
function makeDisk({ kind, recovery }: Pick<Row, 'kind' | 'recovery'>, config: string): string {
  const lines = [`rm -f /dev/shm/*; truncate -s $span ${DISK}`];
  if (recovery === 'requeue') {
    lines.push(
      `loop=$(losetup -f --show ${DISK})`,
      'dmsetup create slow --table "0 $((span / 512)) delay $loop 0 100"',
    );
  }
  if (kind === 'lazy') {
    lines.push(
      `head -c $((${IMAGE_MIB} << 20)) /dev/urandom > ${IMAGE}`,
      `"$ubiblk" metadata init --config ${config} -s 8`,
    );
  }
  return lines.join('\n');
}

/** What a row's requests do while there is no server, besides those of the load. */
const meanwhile: Record<Row['recovery'], string> = {
  reissue: 'read_some & others=$!',
  requeue: 'read_some & others=$!',
  fail: 'refused read_some 2> /dev/null; others=',
};

/** What a load may have seen of `kills` kills. */
const allowed: Record<Row['recovery'], (kills: number) => string> = {
  reissue: () => '[[ $errors == 0 ]]; no_errors',
  // Only what the server had in work: at most as many as the load has in flight.
  requeue: (kills) => `((errors > 0 && errors <= ${kills * DEPTH}))`,
  fail: () => '((errors > 0))',
};

function rowScript(row: Row, config: string, kills: number): string {
  const { recovery, kind } = row;
  const options = [
    ...(recovery === 'reissue' ? [] : ['errors=1']),
    ...(kind === 'lazy' ? [`image=${IMAGE}`] : []),
  ].join(' ');
  return `
step ${Object.values(row).join(' ')}
dmesg --clear
${makeDisk(row, config)}
serve ${config}
first=$device
${kind === 'encrypted' ? 'dd if=/dev/zero of="$device" bs=1M count=$((span >> 20)) oflag=direct status=none' : ''}
begin_load /dev/shm/state ${options}
for ((kill = 0; kill < ${kills}; kill++)); do
  progressed
  ${recovery === 'requeue' ? 'busy' : ''}
  crash
  ${meanwhile[recovery]}
  serve ${config}
  [[ $device == "$first" ]]
  [[ -z $others ]] || wait "$others"
done
progressed
end_load
errors=$(sed 's/.* \\([0-9]*\\) errors.*/\\1/' <<< "$summary")
${allowed[recovery](kills)}
check "$device" ops=0 state=/dev/shm/state cache=1 ${kind === 'lazy' ? `image=${IMAGE}` : ''} > /dev/null
stop
${recovery === 'requeue' ? 'dmsetup remove slow; losetup -d "$loop"' : ''}
${kind === 'plain' ? `check ${DISK} ops=0 state=/dev/shm/state cache=1 > /dev/null` : ''}
[[ ! -e $device ]]
`;
}

const rows: Row[] = [
  ...matrix({
    recovery: ['reissue', 'requeue', 'fail'],
    mode: ['copy', 'user_copy', 'need_get_data'],
    kind: ['plain', 'encrypted', 'lazy'],
    queues: [1, 2],
  } as const),
  ...matrix({
    recovery: ['reissue', 'requeue', 'fail'],
    mode: ['zero_copy'],
    kind: ['plain'],
    queues: [2],
  } as const),
];

testWith(
  `what becomes of requests when their server is killed: ${rows.length} disks on Linux 7`,
  [need.program('dmsetup')],
  async () => {
    await using bed = new Bed();
    const script = rows.map((row, i) => {
      const config = bed.config(settingsOf(row), `row${i}.yaml`);
      return rowScript(row, quote(config), soak ? 20 : 1);
    });
    await runInGuest(
      bed,
      { kernel: 'sid', seconds: soak ? 3000 : 580 },
      `${functions}
modprobe -a loop dm-delay
${script.join('')}`,
    );
  },
  (soak ? 55 : 11) * minutes,
);

testWith(
  'a server that is killed again and again, a mounted file system, and upgrades: Linux 6.12',
  ['mkfs.ext4', 'dmsetup', 'strace'].map(need.program),
  async () => {
    await using bed = new Bed();
    const times = soak ? 100 : 6;
    const row: Row = { recovery: 'reissue', mode: 'copy', kind: 'plain', queues: 2 };
    const reissue = quote(bed.config(settingsOf(row), 'reissue.yaml'));
    const tight = quote(
      bed.config({ ...settingsOf({ ...row, queues: 1 }), queue_size: 2 }, 'tight.yaml'),
    );
    const [requeue, off] = ['requeue', 'off'].map((ublk_recovery) =>
      quote(bed.config({ ...settingsOf(row), ublk_recovery }, `${ublk_recovery}.yaml`)),
    );
    const onHeld = { path: '/dev/mapper/held', rpc_socket_path: '/run/held.sock' };
    const held = quote(
      bed.config({ ...settingsOf(row), ublk_recovery: 'requeue', ...onHeld }, 'held.yaml'),
    );
    await runInGuest(
      bed,
      { seconds: soak ? 1500 : 560 },
      `${functions}
${rowScript(row, reissue, times)}

step all tags are in work when the server dies
${makeDisk(row, tight)}
serve ${tight}
# Only a request that times out shows it on this kernel.
[[ $(cat "/sys/block/\${device#/dev/}/queue/io_timeout") == 2000 ]]
begin_load /dev/shm/state
for kill in 1 2; do
  progressed
  crash
  serve ${tight}
done
end_load
no_errors
stop

step a mounted file system
${makeDisk(row, reissue)}
serve ${reissue}
mkfs.ext4 -q "$device"
mount "$device" /mnt
rm -f /run/stop
mkfifo /run/rounds
exec 3<> /run/rounds
(
  set -e
  for ((round = 0; ; round++)); do
    head -c 200K /dev/urandom | tee /mnt/file > /dev/shm/copy
    sync /mnt/file
    echo 1 > /proc/sys/vm/drop_caches
    cmp /mnt/file /dev/shm/copy
    mv /mnt/file "/mnt/$((round % 10))"
    echo "$round" >&3
    [[ ! -e /run/stop ]] || exit 0
  done
) &
writer=$!
for ((kill = 0; kill < 2; kill++)); do
  # One round may have been done before the server came back, the one after it is not.
  read -r -t 120 -u 3 round
  read -r -t 120 -u 3 round
  crash
  serve ${reissue}
done
read -r -t 120 -u 3 round
touch /run/stop
wait "$writer"
exec 3<&-
umount /mnt
fsck.ext4 -fn "$device"
no_errors

step a thread that fails
stop
${makeDisk(row, reissue)}
serve ${reissue}
begin_load /dev/shm/state
progressed
task=$(grep -lx 'queue 1' /proc/$server/task/*/comm)
strace -qq -o /run/strace -p "$(basename "\${task%/comm}")" -e inject=io_uring_enter:error=ENXIO & tracer=$!
status=0
wait "$server" || status=$?
[[ $status == 1 ]]
wait "$tracer" || true
grep -q '[ERROR serve-ublk] .*ENXIO' ${reissue}.log
serve ${reissue}
progressed
end_load
no_errors
stop
check ${DISK} ops=0 state=/dev/shm/state cache=1 > /dev/null

step upgrades
${makeDisk(row, reissue)}
serve ${reissue}
begin_load /dev/shm/state
for way in USR2 keep overlap; do
  progressed
  case $way in
    USR2)
      kill -USR2 "$server"
      wait "$server"
      serve ${reissue} --keep-device
      ;;
    keep)
      kill -TERM "$server"
      wait "$server"
      serve ${reissue}
      ;;
    overlap)
      # The new one waits for the disk of the old one.
      old=$server
      kill -USR2 "$old" &
      serve ${reissue}
      wait "$old"
      ;;
  esac
  [[ $device == "$first" ]]
done
progressed
end_load
no_errors
stop
check ${DISK} ops=0 state=/dev/shm/state cache=1 > /dev/null

step upgrades where what is in work would fail
${makeDisk(row, requeue)}
serve ${requeue}
begin_load /dev/shm/state errors=1
for upgrade in 1 2; do
  progressed
  kill -USR2 "$server"
  wait "$server"
  serve ${requeue}
  [[ $device == "$first" ]]
done
progressed
end_load
# This load never pauses.
errors=$(sed 's/.* \\([0-9]*\\) errors.*/\\1/' <<< "$summary")
((errors <= 2 * ${DEPTH}))
check "$device" ops=0 state=/dev/shm/state cache=1 > /dev/null
stop

step an upgrade that waits for what is in work
${makeDisk(row, held)}
modprobe loop
dmesg --clear
dmsetup create held --table "0 $((span / 512)) linear $(losetup -f --show ${DISK}) 0"
serve ${held}
dmsetup suspend held
dd if="$device" of=/dev/null bs=64k count=1 iflag=direct status=none & reader=$!
until [[ $("$ubiblk" rpc /run/held.sock queues --json) == *'"read"'* ]]; do kill -0 "$reader"; done
kill -USR2 "$server"
until grep -qF 'SIGUSR2: leaving the device to a successor' ${held}.log; do kill -0 "$reader"; sleep 0.1; done
dmsetup resume held
wait "$server"
serve ${held}
wait "$reader"
no_errors
stop
dmsetup remove held

step no upgrade
${makeDisk(row, off)}
serve ${off}
begin_load /dev/shm/state
progressed
kill -USR2 "$server"
until grep -qF "SIGUSR2 is ignored: a device without recovery can't be kept" ${off}.log; do sleep 0.1; done
progressed
end_load
no_errors
stop
`,
    );
  },
  (soak ? 30 : 11) * minutes,
);

test(
  'a device that was left is taken over by its own disk alone, by one server, as it is',
  async () => {
    await using bed = new Bed();
    const settings = { path: '/dev/loop7', num_queues: 8, queue_size: 16, ublk_mode: 'copy' };
    const config = quote(bed.config(settings, 'disk.yaml'));
    const through = quote(bed.config({ ...settings, write_through: true }, 'through.yaml'));
    const other = quote(bed.config({ ...settings, device_id: 'other' }, 'other.yaml'));
    const fixed = quote(bed.config({ path: '/run/fixed.raw', queue_size: 16 }, 'fixed.yaml'));
    const shared = quote(
      bed.config({ path: '/run/fixed.raw', queue_size: 16, device_id: 'other' }, 'shared.yaml'),
    );
    await runInGuest(
      bed,
      { seconds: 300 },
      `${functions}
modprobe loop
truncate -s 8M ${DISK} /dev/shm/larger.raw
truncate -s 9M /dev/shm/larger.raw

step more queues than processors
losetup /dev/loop7 ${DISK}
serve ${config}
[[ $("$ubiblk" ublk list) == *" 2x16 "* ]]
[[ $(find /sys/block/\${device#/dev/}/mq -mindepth 1 -maxdepth 1 | wc -l) == 2 ]]

step a second server
# Another device_id is another device, but the disk is the same.
"$ubiblk" serve ublk --config ${config} 2> /run/second & second=$!
"$ubiblk" serve ublk --config ${other} 2> /run/other & third=$!
refused wait $second
refused wait $third
cat /run/second /run/other
grep -qF "[ERROR serve-ublk] '/dev/loop7' is mounted or in use by another program" /run/second
grep -qF "[ERROR serve-ublk] '/dev/loop7' is mounted or in use by another program" /run/other
read_some

step a disk that has changed meanwhile
crash
read_some & others=$!
changed() {
  refused "$ubiblk" serve ublk --config "$1" 2> /run/said
  cat /run/said
  grep -qF "'$device', which this disk had before, $2; remove it with 'ubiblk ublk del 0'" /run/said
  [[ $(grep -c . /run/said) == 1 ]]
}
losetup -d /dev/loop7
losetup /dev/loop7 /dev/shm/larger.raw
changed ${config} "has a size of 8388608 bytes and can't be given 9437184"
losetup -d /dev/loop7
losetup -b 4096 /dev/loop7 ${DISK}
changed ${config} "has blocks of 512 bytes and can't be given 4096"
losetup -d /dev/loop7
losetup -r /dev/loop7 ${DISK}
changed ${config} "has been made for writing and can't be given reading alone"
losetup -d /dev/loop7
losetup /dev/loop7 ${DISK}
changed ${through} "has been made with 'write_through: false' and can't be given 'true'"
# Whoever waited still does, and the disk as it was goes on.
kill -0 "$others"
[[ $("$ubiblk" ublk list) == *quiesced* ]]
serve ${config}
[[ $device == /dev/ublkb0 ]]
wait "$others"
no_errors
stop
serve ${through}
crash
changed ${config} "has been made with 'write_through: true' and can't be given 'false'"
serve ${through}
stop

step two read-only servers of one disk
head -c 1M /dev/urandom > /run/fixed.raw
chmod a-w /run/fixed.raw
serve ${fixed}
one=$device served=$server
refused "$ubiblk" serve ublk --config ${fixed} 2> /run/said
cat /run/said
grep -qF "ublk device 0 of this disk is served by process $served; stop that one first, or remove the device with 'ubiblk ublk del 0'" /run/said
serve ${shared}
[[ $device != "$one" ]]
cmp "$one" /run/fixed.raw
cmp "$device" /run/fixed.raw
stop
cmp "$one" /run/fixed.raw
server=$served
stop

step a server that dies while it makes its device
for attempt in {1..10}; do
  "$ubiblk" serve ublk --config ${config} > /dev/null 2>> ${config}.log &
  server=$!
  until [[ -e /dev/ublkc0 ]]; do :; done
  crash
  [[ -e /dev/ublkb0 ]] || break
  "$ubiblk" ublk del 0
done
[[ $("$ubiblk" ublk list) == *" dead "*"/dev/ublkb0 has no server; remove it with 'ubiblk ublk del 0'" ]]
serve ${config}
[[ $("$ubiblk" ublk list --json | grep -o '"id"' | wc -l) == 1 ]]
read_some
stop
[[ -z $(compgen -G '/dev/ublk[bc]*') ]]
`,
    );
  },
  6 * minutes,
);
