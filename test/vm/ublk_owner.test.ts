/**
 * Users without privileges have ublk devices of their own: with systemd and its udevd in their sandbox, as
 * on a host, and what packaging/ puts there.
 */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { root } from '../e2e/processes.ts';
import { Bed, need, quote, testWith } from '../e2e/support.ts';
import { runInGuest } from './ublk.ts';

const minutes = 60_000;
const packaging = join(root, 'packaging');

/** Functions of the guest's script. Users are numbers, and as many are their groups. */
const functions = `
alice=4001 bob=4002
user() { as=(setpriv --reuid "$1" --regid "$1" --clear-groups env "XDG_RUNTIME_DIR=/run/$1"); }
# USER: serves that user's disk as serve does.
serve_as() {
  user "$1"
  rm -f /run/served
  mkfifo /run/served
  "\${as[@]}" "$ubiblk" serve ublk --config "/run/$1/disk.yaml" --unprivileged \\
    > /run/served 2>> "$1.log" &
  server=$!
  read -r -t 60 device < /run/served
}
nodes() { stat -c '%u:%g %a' "/dev/ublkc$1" "/dev/ublkb$1" | tr '\\n' ' '; }
is_of() { [[ $(nodes 0) == "$1:$1 600 $1:$1 600 " ]]; }
# USER WORDS: that user can't serve, and is told so.
cannot_serve() {
  user "$1"
  refused "\${as[@]}" "$ubiblk" serve ublk --config "/run/$1/disk.yaml" --unprivileged 2> said.log
  grep -qF -- "$2" said.log
  [[ $(wc -l < said.log) == 1 ]]
}
refuses() { # WORDS COMMAND...
  refused "\${@:2}" > said.log 2>&1
  grep -qF -- "$1" said.log
}
# How often systemd has given a node to its owner.
runs() { journalctl -u "ubiblk-owner@$1" -o cat | grep -c ^Finished || true; }
await_runs() { # NODE NUMBER
  until (($(runs "$1") >= $2)); do sleep 0.1; done
}
none_is_left() {
  udevadm settle
  [[ $("$ubiblk" ublk list) == 'no ublk devices' ]]
}
`;

testWith(
  'a user without privileges has the devices that he makes, and no others',
  [
    !existsSync('/lib/systemd/systemd') && "'systemd' is not installed",
    !existsSync('/lib/systemd/systemd-udevd') && "'udev' is not installed",
    need.program('mkfs.ext4'),
  ],
  async () => {
    await using bed = new Bed();
    bed.config({ path: '/dev/shm/disk.raw', num_queues: 1 }, 'root.yaml');
    await runInGuest(
      bed,
      { seconds: 420, more: ['--systemd'] },
      `${functions}
for who in $alice $bob; do
  install -d -o $who -g $who "/run/$who"
  printf 'path: /run/%s/disk.raw\\nnum_queues: 1\\n' $who > "/run/$who/disk.yaml"
  user $who
  "\${as[@]}" truncate -s 16M "/run/$who/disk.raw"
done
truncate -s 16M /dev/shm/disk.raw
# A service sees nothing of /tmp, where this may be.
cp --remove-destination "$ubiblk" /usr/bin/ubiblk

step without the rule
[[ $(systemctl show systemd-udevd -p MemoryDenyWriteExecute) == *=yes ]]
cannot_serve $alice "'/dev/ublk-control' can't be opened (EACCES): run as root, or see docs/serve-ublk.md"
chmod 666 /dev/ublk-control
cannot_serve $alice "'/dev/ublkc0' can't be opened (EACCES): nobody has given it to this user in 10 s, as 60-ubiblk.rules and ubiblk-owner@.service do"
[[ $("$ubiblk" ublk owner 0) == "$alice $alice" ]]
"$ubiblk" ublk del 0
none_is_left

step a rule that forgets the block device
mkdir -p /run/udev/rules.d
cp ${quote(join(packaging, 'ubiblk-owner@.service'))} /run/systemd/system/
sed /ublkb/d ${quote(join(packaging, '60-ubiblk.rules'))} > /run/udev/rules.d/60-ubiblk.rules
udevadm control --reload
cannot_serve $alice "'/dev/ublkb0' can't be opened (EACCES): nobody has given it to this user in 10 s"
none_is_left

step the rule
chmod 600 /dev/ublk-control
cp ${quote(join(packaging, '60-ubiblk.rules'))} /run/udev/rules.d/
udevadm control --reload
udevadm trigger --settle --name-match=/dev/ublk-control
[[ $(stat -c %a /dev/ublk-control) == 666 ]]

step a device of a user
serve_as $alice
[[ $device == /dev/ublkb0 ]]
is_of $alice
user $alice
"\${as[@]}" mkfs.ext4 -q "$device"
"\${as[@]}" dd if=/dev/urandom of=/run/$alice/data bs=64k count=8 status=none
"\${as[@]}" dd if=/run/$alice/data of="$device" bs=64k oflag=direct seek=16 status=none
"\${as[@]}" dd if="$device" bs=64k iflag=direct skip=16 count=8 status=none | cmp - /run/$alice/data
[[ $("\${as[@]}" "$ubiblk" ublk list) == *"$device "*' live '*' off '*"/run/$alice/disk.raw"* ]]
[[ $("\${as[@]}" "$ubiblk" ublk info "$device") == *"owner: "*"$alice:$alice (unprivileged)"* ]]

step another user
user $bob
[[ $("\${as[@]}" "$ubiblk" ublk list) == 'no ublk devices' ]]
for what in del info owner; do
  refuses "ublk device 0 is another user's: run as that user, or as root" \\
    "\${as[@]}" "$ubiblk" ublk $what "$device"
done
# Nothing to do for who can't see it.
"\${as[@]}" "$ubiblk" ublk owner --apply "$device"
refused "\${as[@]}" dd if="$device" of=/dev/null bs=4k count=1 2> said.log
is_of $alice
[[ $("$ubiblk" ublk list) == *"$device "* ]]
udevadm trigger --settle "$device"
refused "\${as[@]}" dd if="$device" of=/dev/null bs=4k count=1 2> said.log
user $alice
"\${as[@]}" dd if="$device" of=/dev/null bs=4k count=1 status=none

step a device of root beside it
other=$server
serve root.yaml
[[ $device == /dev/ublkb1 ]]
await_runs ublkc1 1
await_runs ublkb1 1
udevadm settle
before=$(nodes 1)
# As udev's own rules have it.
[[ $before == "0:0 600 0:$(getent group disk | cut -d : -f 3) 660 " ]]
"$ubiblk" ublk owner --apply 1
[[ $(nodes 1) == "$before" ]]
refused "\${as[@]}" dd if="$device" of=/dev/null bs=4k count=1 2> said.log
stop

step its end
"\${as[@]}" "$ubiblk" ublk del 0
wait "$other"
none_is_left
"$ubiblk" ublk owner --apply 0

step one number, many owners
for round in 1 2 3; do
  for who in $alice $bob; do
    serve_as $who
    [[ $device == /dev/ublkb0 ]]
    is_of $who
    stop
  done
  serve root.yaml
  udevadm settle
  [[ $(nodes 0) == "$before" ]]
  stop
done
none_is_left
for round in {1..8}; do systemctl start ubiblk-owner@ublkc0; done
[[ -z $(systemctl list-units --failed --no-legend 'ubiblk-owner@*') ]]
`,
    );
  },
  8 * minutes,
);
