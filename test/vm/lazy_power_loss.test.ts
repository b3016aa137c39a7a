/**
 * Power cuts under lazy disks: what the server recorded, and what it called durable, is true of what is
 * left. The server runs in a virtual machine, its files on devices with a write cache that a power cut
 * empties (`volatile-disks`); the page cache is lost with them. What survived is looked at twice: by a
 * server that is started on it, and on the host, by what the metadata says.
 */

import { expect } from 'bun:test';
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs';
import { dump, type Lazy, lazyDisk, numbers, touched } from '../e2e/lazy.ts';
import { binary, client, keyValues } from '../e2e/processes.ts';
import {
  Bed,
  matrix,
  need,
  quote,
  Random,
  type Settings,
  seed,
  soak,
  testKeys,
  testWith,
} from '../e2e/support.ts';

const minutes = 60_000;
const MIB = 1 << 20;
/** Of 32 KiB. */
const shift = 6;
const stripeBytes = 512 << shift;
const sizeBytes = 12 * MIB;
const imageBytes = 10 * MIB + 512;
const cuts = soak ? 12 : 3;
/** After so many nearly all is fetched, and another disk begins. */
const cutsOfDisk = 2;

const load = { depth: 16, max: 3 * stripeBytes, span: sizeBytes, zero: 1, cache: 1 };
/** What is read from the image as long as it isn't here: reads of more stripes have them fetched. */
const piece = stripeBytes;
const mix = `${'r'.repeat(5)}${'w'.repeat(30)}zzzddd`;

interface Row {
  encrypted: boolean;
  direct_io: boolean;
  io_engine: 'io_uring' | 'sync';
  /** Where the metadata is; `nbd1` is a device of its own: no flush of the disk makes it durable. */
  metadata_on: 'nbd0' | 'nbd1';
}

/** The guest's script. It leaves what survived cut N in `N.disk` and `N.meta`, what was known in `N.state`. */
function script({ metadata_on }: Row, lazy: Lazy, config: string): string {
  const random = new Random(seed);
  const devices = [...new Set(['nbd0', metadata_on])];
  const rounds = Array.from({ length: cuts }, (_, number) => {
    // A guest's flushes make durable what the server may have forgotten: every other new disk has none.
    const flushed = number % cutsOfDisk > 0 || (seed + number / cutsOfDisk) % 2 === 0;
    const kinds = flushed ? `${mix}ff` : mix;
    return [number, random.below(400) / 1000, random.below(1e9), kinds].join(' ');
  });
  const options = { ...load, queues: 2, piece, image: '/dev/shm/image', state: '/dev/shm/state' };
  const check = [client('vhost-check'), '/tmp/vhost.sock', ...keyValues(options)].join(' ');
  return `set -e
end() {
  (($? == 0)) || cat server.log load.log >&2
  # Before the devices go: whose requests are never answered can't be killed.
  kill -9 $server $client 2> /dev/null || true
  wait $server $client 2> /dev/null || true
}
trap end EXIT
# Nothing reaches the devices but what the server sends there.
sysctl -qw vm.dirty_writeback_centisecs=0 vm.dirty_ratio=80 vm.dirty_background_ratio=70
modprobe nbd max_part=0
devices=${quote(devices.join(' '))}
mount_all() { for name in $devices; do mount -o commit=600 /dev/$name /mnt/$name; done; }
cut_power() {
  kill -USR1 $power
  kill -9 $client $server || true
  wait $client $server 2> /dev/null || true
  for name in $devices; do until umount /mnt/$name 2> /dev/null; do sleep 0.05; done; done
  echo 3 > /proc/sys/vm/drop_caches
  kill -USR2 $power
}
serve() {
  # What the one before has said, this one hasn't.
  rm -f server.log
  ${quote(binary)} serve vhost --config ${quote(config)} 2> server.log < /dev/null &
  server=$!
  until grep -qs 'listening on' server.log; do kill -0 $server; sleep 0.05; done
}
copy() { dd if=$1 of=$2 bs=4M status=none; }
renew() {
  copy /dev/shm/disk /mnt/nbd0/disk
  copy /dev/shm/meta /mnt/${metadata_on}/meta
  rm -f /dev/shm/state
  sync
}
keep() { # NAME
  copy /mnt/nbd0/disk $1.disk
  copy /mnt/${metadata_on}/meta $1.meta
  copy /dev/shm/state $1.state
}

${client('volatile-disks')} ${seed} ${devices.map((name) => `/dev/${name}=32`).join(' ')} &
power=$!
for name in $devices; do
  until (($(cat /sys/block/$name/size))); do sleep 0.05; done
  mkfs.ext4 -q /dev/$name
  mkdir /mnt/$name
done
mount_all
copy ${quote(lazy.image)} /dev/shm/image
copy ${quote(lazy.disk)} /dev/shm/disk
copy ${quote(lazy.metadata)} /dev/shm/meta
while read -r number seconds seed mix; do
  ((number % ${cutsOfDisk})) || renew
  serve
  rm -f load.log
  # It begins by comparing all with what the cut before may have left.
  ${check} ops=1000000000 mix=$mix seed=$seed progress=1 > load.log 2>&1 < /dev/null &
  client=$!
  until grep -qs answers load.log; do kill -0 $client; sleep 0.02; done
  sleep $seconds
  kill -0 $client
  cut_power
  mount_all
  keep $number
done << END
${rounds.join('\n')}
END
serve
${check} ops=0
kill $server
wait $server`;
}

/** How many sectors hold less than the last that was sent. */
function lost(sent: Buffer, found: Buffer): number {
  let count = 0;
  for (let at = 4; at < sent.length; at += 8) {
    if (sent.readUInt32LE(at) !== found.readUInt32LE(at)) count++;
  }
  return count;
}

function keys(encrypted: boolean): Settings {
  return encrypted ? { encryption_key: testKeys } : {};
}

/**
 * Compares what survived a cut with what was known: the disk, and the image where the metadata says that a
 * stripe isn't fetched.
 *
 * @returns how many sectors were lost
 */
async function compare(bed: Bed, lazy: Lazy, encrypted: boolean, cut: number): Promise<number> {
  const path = bed.path(`${cut}.disk`);
  const state = bed.path(`${cut}.state`);
  const files = { path, metadata_path: bed.path(`${cut}.meta`), image_path: lazy.image };
  const config = bed.config({ ...files, ...keys(encrypted) });
  const { stripes, fetched, written, hasSource } = await dump(bed, { config });
  const flushed = touched(state, shift, 'answered');
  expect([...flushed.difference(numbers(written))], 'written to, but not on record').toEqual([]);

  const plain = encrypted ? bed.decrypted(path) : path;
  const image = readFileSync(lazy.image);
  const fd = openSync(plain, 'r+');
  for (const stripe of numbers(hasSource).difference(numbers(fetched))) {
    const content = Buffer.alloc(stripeBytes);
    image.copy(content, 0, stripe * stripeBytes, (stripe + 1) * stripeBytes);
    writeSync(fd, content, 0, stripeBytes, stripe * stripeBytes);
  }
  closeSync(fd);
  const sent = readFileSync(state);
  await bed.check(plain, { ...load, driver: 'io_uring', ops: 0, state, image: lazy.image });
  const losses = lost(sent, readFileSync(state));
  const counts = `${stripes.fetched} fetched, ${stripes.missing} missing, ${stripes.written} written`;
  console.log(`cut ${cut}: ${counts}; ${losses} sectors lost`);
  return losses;
}

const rows: Row[] = soak
  ? matrix({
      encrypted: [false, true],
      direct_io: [false, true],
      io_engine: ['io_uring', 'sync'],
      metadata_on: ['nbd0', 'nbd1'],
    } as const)
  : [
      { encrypted: false, direct_io: false, io_engine: 'io_uring', metadata_on: 'nbd0' },
      { encrypted: true, direct_io: true, io_engine: 'io_uring', metadata_on: 'nbd1' },
    ];

for (const row of rows) {
  const { encrypted, metadata_on, ...settings } = row;
  const name = Object.entries(row).map((pair) => pair.join('='));
  testWith(
    `a lazy disk is what its metadata says after each of ${cuts} power cuts: ${name.join(' ')}`,
    [need.program('mkfs.ext4')],
    async () => {
      await using bed = new Bed();
      const format = encrypted ? 2 : 1;
      const lazy = await lazyDisk(bed, { sizeBytes, imageBytes, shift, format, encrypted });
      const config = bed.config({
        ...settings,
        ...keys(encrypted),
        path: '/mnt/nbd0/disk',
        metadata_path: `/mnt/${metadata_on}/meta`,
        image_path: '/dev/shm/image',
        socket: '/tmp/vhost.sock',
        num_queues: 2,
        queue_size: 256,
        // The guest's processors are needed by the others.
        poll_queue_timeout_us: 0,
        autofetch: true,
        autofetch_max_mib_per_s: 1,
        track_written: true,
      });
      const seconds = soak ? 900 : 300;
      // Of older kernels, 6.12 among them, nbd loses a request whose sender is killed while sending it.
      const guest = bed.guest({ seconds, more: ['--kernel', 'sid'] }, script(row, lazy, config));
      await bed.guestEnd(guest);
      let losses = 0;
      for (let cut = 0; cut < cuts; cut++) losses += await compare(bed, lazy, encrypted, cut);
      expect(losses).toBeGreaterThan(0);
    },
    (soak ? 20 : 8) * minutes,
  );
}
