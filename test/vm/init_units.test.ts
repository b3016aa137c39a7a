/** The services of folders that `ubiblk init` has made, under systemd: ready, hardened, and back after a crash. */

import { existsSync, writeFileSync } from 'node:fs';
import { Bed, need, quote, seed, testWith } from '../e2e/support.ts';
import { runInGuest } from './ublk.ts';

const MIB = 1 << 20;
/** All that means something in a unit, or to a shell. */
const ODD = '/run/odd $name %n; 50%/vm #7';

testWith(
  'units of init serve, with their KEK as a credential, and may write nothing else',
  [
    !existsSync('/lib/systemd/systemd') && "'systemd' is not installed",
    need.program('systemd-analyze'),
    need.program('nbdcopy'),
  ],
  async () => {
    await using bed = new Bed();
    const image = bed.path('image.raw');
    writeFileSync(image, '');
    bed.fill(image, 3 * MIB + 512, seed);
    await runInGuest(
      bed,
      { seconds: 240, more: ['--systemd'] },
      `
# As systemd has it on a host; credentials come to services this way.
mount --make-rshared /
# Where services may have a /tmp of their own.
if [[ $ubiblk == /tmp/* ]]; then
  cp "$ubiblk" /usr/local/bin/ubiblk
  ubiblk=/usr/local/bin/ubiblk
fi
# UNIT FILE: prints where a service's process has a file of /proc.
of_service() { echo "/proc/$(systemctl show -P MainPID "$1")/$2"; }

step an encrypted disk for virtual machines, in an odd folder
folder=${quote(ODD)}
"$ubiblk" init "$folder" --size 8M --encrypt > made.log
unit=ubiblk-vm__7.service
# It is printed for a shell.
start() {
  eval "$(grep systemctl made.log)" || { journalctl -u "$1" -o cat > journal.log && false; }
}
start $unit
"$ubiblk" probe -s "$folder/vhost.sock" --write --stage check > probe.log
grep -q 'every byte the same' probe.log
# Not in a pipe, whose writer would be ended by SIGPIPE now and then.
grep -q ' /tmp ' "$(of_service $unit mountinfo)"
grep -q ' / / ro,' "$(of_service $unit mountinfo)"

step a crash
before=$(systemctl show -P MainPID $unit)
kill -9 "$before"
is_back() {
  local now
  now=$(systemctl show -P MainPID $unit)
  [[ $now != 0 && $now != "$before" && $(systemctl is-active $unit) == active ]]
}
until is_back; do sleep 0.1; done
"$ubiblk" probe -s "$folder/vhost.sock" --stage check > probe.log
systemctl disable --now $unit
[[ $(systemctl show -P Result $unit) == success && ! -e "$folder/vhost.sock" ]]

step a ublk device that starts from an image
"$ubiblk" init /run/disks/ub --size 8M --frontend ublk --base ${image} --encrypt --kek '/run/100% kek' > made.log
start ubiblk-ub.service
cmp -n $(stat -c %s ${image}) ${image} /dev/ublkb0
[[ $("$ubiblk" ublk list) == */run/disks/ub/disk.raw* ]]
# Not what is beside its folder.
grep -q ' /run/disks/ub rw,' "$(of_service ubiblk-ub.service mountinfo)"
refused grep -q ' /run/disks rw,' "$(of_service ubiblk-ub.service mountinfo)"

step another one goes on, and is still known, when the first one is stopped
"$ubiblk" init /run/disks/other --size 8M --frontend ublk > made.log
# What a unit of another user has there.
install -d -o nobody -m 750 /run/ubiblk/vm7
start ubiblk-other.service
systemctl stop ubiblk-ub
[[ ! -e /dev/ublkb0 && ! -e /run/ubiblk/ublk-0.json ]]
[[ $("$ubiblk" ublk list) == *" live "*/run/disks/other/disk.raw* ]]
systemctl stop ubiblk-other
[[ $("$ubiblk" ublk list) == 'no ublk devices' ]]
[[ $(stat -c '%U %a' /run/ubiblk /run/ubiblk/vm7 | tr '\\n' ' ') == 'root 755 nobody 750 ' ]]

step a disk for NBD clients
"$ubiblk" init /run/net --size 8M --frontend nbd --socket '/run/$my %nbd.sock' --base ${image} > made.log
start ubiblk-net.service
nbdcopy 'nbd+unix:///?socket=/run/$my%20%25nbd.sock' copy.raw
cmp -n $(stat -c %s ${image}) ${image} copy.raw
systemctl disable --now ubiblk-net
[[ $(systemctl show -P Result ubiblk-net) == success && ! -e '/run/$my %nbd.sock' ]]
`,
    );
  },
  5 * 60_000,
);
