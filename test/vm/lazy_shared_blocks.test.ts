/** A lazy disk beside its image on a file system whose files can share blocks: nothing is copied. */

import { expect } from 'bun:test';
import { binary } from '../e2e/processes.ts';
import { Bed, need, quote, testWith } from '../e2e/support.ts';

const minutes = 60_000;

testWith(
  'autofetch from a raw image on btrfs shares its blocks',
  [need.program('mkfs.btrfs')],
  async () => {
    await using bed = new Bed();
    const guest = bed.guest(
      { disks: [bed.disk({ sizeBytes: 256 << 20 })], seconds: 120 },
      `set -e
modprobe btrfs
mkfs.btrfs -q /dev/vda 2> /dev/null
mount /dev/vda /mnt
cd /mnt
head -c 33554432 /dev/urandom > image
truncate -s 33554432 disk
cat > vm.yaml << END
path: disk
socket: /tmp/vhost.sock
rpc_socket_path: /tmp/rpc.sock
metadata_path: metadata
stripe_source: {source: raw, path: image}
autofetch: true
END
ubiblk=${quote(binary)}
$ubiblk metadata init --config vm.yaml
sync
$ubiblk serve vhost --config vm.yaml &
server=$!
until $ubiblk rpc /tmp/rpc.sock status --json 2> /dev/null | grep -q '"fetched":32,'; do
  kill -0 $server
  sleep 0.1
done
kill $server
wait $server
cmp image disk
btrfs filesystem du --raw -s disk | tail -n 1`,
    );
    await bed.guestEnd(guest);
    // Total, exclusive, shared.
    const [, exclusive, shared] = (guest.stdout.text.trim().split('\n').at(-1) ?? '')
      .trim()
      .split(/\s+/)
      .map(Number);
    expect({ exclusive, shared }).toEqual({ exclusive: 0, shared: 32 << 20 });
  },
  3 * minutes,
);
