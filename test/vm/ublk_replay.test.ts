/**
 * What a ublk server records of its device (`io_debug_path`), replayed onto what the disk was, makes what
 * its disk is, in the modes in which requests have memory; in the others it is refused.
 */
import { expect } from 'bun:test';
import { readFileSync } from 'node:fs';
import { client } from '../e2e/processes.ts';
import { Bed, need, seed, testKeys, testWith } from '../e2e/support.ts';
import { runInGuest } from './ublk.ts';

const DISK_BYTES = 8 << 20;

testWith(
  'a log of a ublk device, replayed, makes its disk',
  [need.program('mkfs.ext4')],
  async () => {
    await using bed = new Bed();
    const common = { path: '/run/disk', num_queues: 2, io_debug_path: '/run/io.log' };
    bed.config(common, 'best.yaml');
    bed.config({ ...common, ublk_mode: 'need_get_data', encryption_key: testKeys }, 'crypt.yaml');
    bed.config({ ...common, ublk_mode: 'zero_copy' }, 'zero_copy.yaml');
    bed.config({ ...common, ublk_mode: 'user_copy' }, 'user_copy.yaml');
    const encrypted = bed.disk({ sizeBytes: DISK_BYTES, encrypted: true });
    const load = `driver=io_uring direct=1 ops=300 depth=16 max=262144 zero=1 mix=rrrwwwzf seed=${seed}`;
    const use = `
${client('vhost-check')} $device ${load} > check.log 2>&1
mkfs.ext4 -q -E nodiscard $device
e2fsck -fn $device > /dev/null 2>&1
dd if=$device of=/run/seen bs=1M iflag=direct status=none
stop`;
    await runInGuest(
      bed,
      { kernel: 'sid', seconds: 240 },
      `
step plain, in the mode that is best
truncate -s ${DISK_BYTES} /run/disk /run/before
serve best.yaml
cat /sys/block/ublkb0/queue/discard_max_bytes > discards
${use}
"$ubiblk" replay --log /run/io.log --disk /run/before > best.out
cmp /run/disk /run/before
step encrypted
cp ${encrypted} /run/disk
truncate -s 0 /run/before
truncate -s ${DISK_BYTES} /run/before
serve crypt.yaml
${use}
"$ubiblk" replay --log /run/io.log --disk /run/before > crypt.out
cmp /run/seen /run/before
step modes in which requests have no memory
refused "$ubiblk" serve ublk --config zero_copy.yaml 2> zero_copy.err
refused "$ubiblk" serve ublk --config user_copy.yaml 2> user_copy.err`,
    );
    const text = (name: string) => readFileSync(bed.path(name), 'utf8');
    expect(text('best.yaml.log')).toContain('mode=copy ');
    expect(text('discards')).toBe('0\n');
    for (const name of ['best', 'crypt']) {
      expect(text(`${name}.out`)).toMatch(
        /^(\d{3,}) writes of .*, (\d{3,}) reads of .*, \2 of them as recorded\n$/,
      );
    }
    expect(text('crypt.yaml.log')).toContain('WILL HOLD PLAIN TEXT');
    for (const mode of ['zero_copy', 'user_copy']) {
      expect(text(`${mode}.err`)).toContain(`ublk_mode ${mode} can't be used with io_debug_path`);
    }
  },
  5 * 60_000,
);
