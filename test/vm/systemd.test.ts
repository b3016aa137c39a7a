/**
 * The units in packaging/ under a real systemd: readiness, credentials, the watchdog, and that what they
 * forbid is not what servers need.
 */

import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { root } from '../e2e/processes.ts';
import { Bed, need, quote, testWith } from '../e2e/support.ts';
import { runInGuest } from './ublk.ts';

const packaging = join(root, 'packaging');

const functions = `
trap 'failed_unit=$?; journalctl -o cat -n 40 -u "ubiblk-*" >&2; failed $failed_unit "$BASH_COMMAND"' ERR
shown() { systemctl show -P "$2" "$1"; }
# UNIT: it runs, and was started so often again.
runs() { [[ $(systemctl is-active "$1") == active && $(shown "$1" NRestarts) == "$2" ]]; }
comes_back() { until runs "$1" "$2"; do sleep 0.2; done; }
# UNIT: systemd hears of it two more times.
lives() {
  local last now count=0
  last=$(shown "$1" WatchdogTimestampMonotonic)
  until ((count == 2)); do
    now=$(shown "$1" WatchdogTimestampMonotonic)
    [[ $now == "$last" ]] || count=$((count + 1))
    last=$now
    sleep 0.1
  done
}
# UNIT LINE...: adds them to the unit.
changed() {
  mkdir -p "/run/systemd/system/$1.service.d"
  printf '[Service]\\n%s\\n' "\${@:2}" > "/run/systemd/system/$1.service.d/test.conf"
  systemctl daemon-reload
}
# SOCKET COMMAND...: looks at a disk, as whom the command says.
probed() { "\${@:2}" ubiblk probe --socket "$1" --write --size 1M --seconds 0.2 --timeout 60 > probe.log; }
said() { journalctl -o cat -u "$1" | grep -qF -- "$2"; }
cd /run
`;

testWith(
  'units of disks for guests, for this host, for NBD clients and for other hosts',
  [
    !existsSync('/lib/systemd/systemd') && "'systemd' is not installed",
    need.program('mkfs.ext4'),
    need.program('nbdcopy'),
  ],
  async () => {
    await using bed = new Bed();
    await runInGuest(
      bed,
      { seconds: 400, more: ['--systemd'] },
      `${functions}
step what the package installs
cp "$ubiblk" /usr/bin/ubiblk
cp ${quote(packaging)}/*.{service,socket} /run/systemd/system/
cp ${quote(packaging)}/ubiblk.sysusers /usr/lib/sysusers.d/ubiblk.conf
cp ${quote(packaging)}/ubiblk.tmpfiles /usr/lib/tmpfiles.d/ubiblk.conf
systemd-sysusers ubiblk.conf
systemd-tmpfiles --create ubiblk.conf
systemctl daemon-reload
[[ $(stat -c '%U:%G %a' /etc/ubiblk /var/lib/ubiblk | tr '\\n' ' ') == 'root:ubiblk 750 ubiblk:ubiblk 750 ' ]]

step a disk for a guest, with a KEK
vm=ubiblk-vhost@vm7
install -d -m 700 /etc/credstore
ubiblk keys kek --output /etc/credstore/ubiblk-vm7.kek
cat > /etc/ubiblk/vm7.yaml << END
path: /var/lib/ubiblk/vm7.raw
socket: /run/ubiblk/vm7/vhost.sock
rpc_socket_path: /run/ubiblk/vm7/rpc.sock
num_queues: 2
END
ubiblk keys generate --kek /etc/credstore/ubiblk-vm7.kek >> /etc/ubiblk/vm7.yaml
chmod 600 /etc/ubiblk/vm7.yaml
chown ubiblk: /etc/ubiblk/vm7.yaml
user=(setpriv --reuid ubiblk --regid ubiblk --clear-groups)
"\${user[@]}" truncate -s 16M /var/lib/ubiblk/vm7.raw
refused "\${user[@]}" cat /etc/credstore/ubiblk-vm7.kek 2> /dev/null
systemctl start $vm
runs $vm 0
server=$(shown $vm MainPID)
grep -qx 'NoNewPrivs:.1' /proc/$server/status
grep -qx 'CapBnd:.0*' /proc/$server/status
grep -q "^Uid:.$(id -u ubiblk)\\b" /proc/$server/status
[[ $(stat -c '%U:%G %a' /run/ubiblk/vm7/vhost.sock) == 'ubiblk:ubiblk 660' ]]
probed /run/ubiblk/vm7/vhost.sock
probed /run/ubiblk/vm7/vhost.sock setpriv --reuid 4001 --regid 4001 --groups "$(getent group ubiblk | cut -d : -f 3)"
[[ $(ubiblk rpc /run/ubiblk/vm7/rpc.sock status) == *encrypted* ]]

step no KEK, no disk
systemctl stop $vm
mv /etc/credstore/ubiblk-vm7.kek /run/
changed $vm Restart=no
refused systemctl start $vm 2> /dev/null
said $vm 'encryption_key'
mv /run/ubiblk-vm7.kek /etc/credstore/
systemctl reset-failed $vm

step the watchdog
changed $vm WatchdogSec=4
systemctl start $vm
lives $vm
runs $vm 0
kill -STOP "$(shown $vm MainPID)"
comes_back $vm 1
said $vm 'Watchdog timeout'
probed /run/ubiblk/vm7/vhost.sock
systemctl stop $vm
[[ $(shown $vm Result) == success && ! -e /run/ubiblk/vm7 ]]

step a block device, and no network
modprobe loop
loop=$(losetup -f --show /var/lib/ubiblk/vm7.raw)
chgrp disk "$loop"
chmod 660 "$loop"
printf 'path: %s\\nsocket: /run/ubiblk/lv/vhost.sock\\n' "$loop" > /etc/ubiblk/lv.yaml
chgrp ubiblk /etc/ubiblk/lv.yaml
changed ubiblk-vhost@lv SupplementaryGroups=disk PrivateNetwork=yes
systemctl start ubiblk-vhost@lv
probed /run/ubiblk/lv/vhost.sock
systemctl stop ubiblk-vhost@lv
losetup -d "$loop"

step a disk for this host
data=ubiblk-ublk@data
printf 'path: /var/lib/ubiblk/data.raw\\nnum_queues: 2\\n' > /etc/ubiblk/data.yaml
truncate -s 64M /var/lib/ubiblk/data.raw
changed $data WatchdogSec=4
systemctl start $data
link=/dev/disk/by-ubiblk/data
[[ $(readlink $link) == /dev/ublkb0 ]]
mkfs.ext4 -q $link
mount $link /mnt
echo kept > /mnt/file
lives $data
runs $data 0
kill -KILL "$(shown $data MainPID)"
comes_back $data 1
[[ $(readlink $link) == /dev/ublkb0 ]]
echo more > /mnt/more
sync -f /mnt
umount /mnt
mount $link /mnt
[[ $(cat /mnt/file /mnt/more | tr '\\n' ' ') == 'kept more ' ]]
umount /mnt
[[ $(ubiblk ublk list) == *" live "*"/var/lib/ubiblk/data.raw"* ]]
systemctl stop $data
[[ $(shown $data Result) == success && ! -L $link ]]
[[ $(ubiblk ublk list) == 'no ublk devices' ]]

step a disk for NBD clients, whose first one starts the server
nbd=ubiblk-nbd@data
chown ubiblk: /var/lib/ubiblk/data.raw
chgrp ubiblk /etc/ubiblk/data.yaml
systemctl start $nbd.socket
socket=/run/ubiblk/data-nbd.sock
[[ $(stat -c '%U:%G %a' $socket) == 'ubiblk:ubiblk 660' && $(systemctl is-active $nbd) == inactive ]]
head -c 1M /dev/urandom > some.raw
nbdcopy some.raw "nbd+unix:///?socket=$socket"
cmp -n 1048576 some.raw /var/lib/ubiblk/data.raw
runs $nbd 0
grep -q "^Uid:.$(id -u ubiblk)\\b" "/proc/$(shown $nbd MainPID)/status"
kill -KILL "$(shown $nbd MainPID)"
comes_back $nbd 1
[[ $(nbdinfo --size "nbd+unix:///?socket=$socket") == 67108864 ]]
systemctl stop $nbd.service $nbd.socket
[[ $(shown $nbd Result) == success && ! -e $socket ]]

step stripes for other hosts
golden=ubiblk-stripes@golden
printf 'path: /var/lib/ubiblk/vm7.raw\\n' > /etc/ubiblk/golden.yaml
printf 'address: 127.0.0.1:4555\\n' > /etc/ubiblk/golden.listen.yaml
chgrp ubiblk /etc/ubiblk/golden*
systemctl start $golden
printf 'address: 127.0.0.1:4555\\n' > server.yaml
[[ $(echo 'stripe_header 0' | ubiblk shell --server-config server.yaml 2> /dev/null) == 0x* ]]
runs $golden 0
systemctl stop $golden
[[ $(shown $golden Result) == success ]]
[[ -z $(systemctl list-units --failed --no-legend 'ubiblk*') ]]
`,
    );
  },
  8 * 60_000,
);
