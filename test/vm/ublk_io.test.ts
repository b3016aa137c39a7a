/**
 * Data written to a ublk device is what is read from it, and what its data file holds at the end: for
 * each kind of disk, way of moving data and engine, on files and block devices, with the newest kernel
 * and an older one. Meanwhile the kernel shows the disk as the configuration describes it.
 *
 * suite time limit: 1700 s
 */

import { expect } from 'bun:test';
import { readFileSync } from 'node:fs';
import { type Lazy, lazyDisk } from '../e2e/lazy.ts';
import { client } from '../e2e/processes.ts';
import {
  Bed,
  matrix,
  need,
  quote,
  Random,
  type Settings,
  seed,
  testKeys,
  testWith,
} from '../e2e/support.ts';
import { type Kernel, runInGuest } from './ublk.ts';

const minutes = 60_000;
const mebibyte = 1 << 20;

/** Not a multiple of a page. */
const DISK_BYTES = 12 * mebibyte + 512 * 5;
const IMAGE_BYTES = 11.5 * mebibyte + 512 * 3;
const STRIPE_SHIFT = 7;

/** Who writes where; nobody does from `quiet` to `end`, and somebody in the disk's last block. */
const AREAS = { random: 0, fio: 4, dd: 8, quiet: 11, end: 12 };
/** In dd's area. */
const DISCARDED = { at: 9 * mebibyte, bytes: mebibyte };

const rows = matrix(
  {
    kernel: ['trixie', 'sid'],
    kind: ['plain', 'encrypted', 'lazy', 'lazy encrypted'],
    ublk_mode: ['copy', 'user_copy', 'need_get_data', 'zero_copy'],
    num_queues: [1, 2],
    direct_io: [true, false],
    io_engine: ['io_uring', 'sync'],
  } as const,
  ({ kernel, kind, ublk_mode, io_engine }) =>
    ublk_mode !== 'zero_copy' || (kernel === 'sid' && kind === 'plain' && io_engine === 'io_uring'),
);
type Row = (typeof rows)[number];

/** What a row leaves to chance. */
interface Chance {
  /** Where the data file is; `loop...` are block devices. */
  place: 'tmpfs' | 'ext4' | 'loop512' | 'loop4096';
  write_through: boolean;
  fioEngine: 'libaio' | 'io_uring';
}

function chanceOf(random: Random): Chance {
  const one = <T>(...values: T[]) => values[random.below(values.length)];
  return {
    place: one('tmpfs', 'ext4', 'loop512', 'loop4096'),
    write_through: one(true, false),
    fioEngine: one('libaio', 'io_uring'),
  };
}

/** Data files for a guest to start from. */
interface Fixture {
  disk: string;
  /** What it must read as. */
  reference: string;
  lazy?: Lazy;
}

async function lazyFixture(bed: Bed, encrypted: boolean): Promise<Fixture> {
  const sizes = { sizeBytes: DISK_BYTES, imageBytes: IMAGE_BYTES, shift: STRIPE_SHIFT };
  const lazy = await lazyDisk(bed, { ...sizes, encrypted });
  return { disk: lazy.disk, reference: lazy.reference, lazy };
}

/** The files of each lazy disk are in a test bed of its own, since they have the same names. */
async function fixtures(bed: Bed, forLazy: [Bed, Bed]): Promise<Record<Row['kind'], Fixture>> {
  const sizeBytes = DISK_BYTES;
  const plain = bed.disk({ sizeBytes });
  bed.fill(plain, sizeBytes, seed);
  const zeroes = bed.disk({ sizeBytes });
  return {
    plain: { disk: plain, reference: plain },
    encrypted: { disk: bed.disk({ sizeBytes, encrypted: true }), reference: zeroes },
    lazy: await lazyFixture(forLazy[0], false),
    'lazy encrypted': await lazyFixture(forLazy[1], true),
  };
}

const functions = `modprobe loop
mkdir /disk
mount /dev/vda /disk
head -c 4M /dev/urandom > /run/random
# Puts a data file at /run/disk.
place() { # PLACE FILE
  local folder=/disk
  [[ $1 != tmpfs ]] || folder=/dev/shm
  cp --sparse=always "$2" $folder/disk.raw
  truncate -s %4096 $folder/disk.raw
  [[ $1 == loop4096 ]] || truncate -s ${DISK_BYTES} $folder/disk.raw
  ln -sf $folder/disk.raw /run/disk
  [[ $1 != loop* ]] ||
    ln -sf "$(losetup -f --show --direct-io=on -b "\${1#loop}" $folder/disk.raw)" /run/disk
}
leave() { # PLACE
  [[ $1 != loop* ]] || losetup -d "$(readlink /run/disk)"
  rm /dev/shm/disk.raw /disk/disk.raw 2> /dev/null || true
}
# Each size of requests by dd, one through the page cache and the next not.
dds() { # BLOCK
  local bs at=0 how=oflag=direct
  for bs in 512 1024 2048 4096 12288 16384 65536 131072 262144 524288 1048576; do
    ((bs % $1 == 0)) || continue
    dd if=/run/random iflag=skip_bytes skip=$at of="$device" oflag=seek_bytes \\
      seek=$(((${AREAS.dd} << 20) + at)) bs=$bs count=1 $how status=none
    at=$((at + bs))
    if [[ $how == oflag=direct ]]; then how=conv=fsync; else how=oflag=direct; fi
  done
  cmp -n $at -i $((${AREAS.dd} << 20)):0 "$device" /run/random
}
discard() {
  [[ $(cat /sys/block/ublkb0/queue/discard_max_bytes) == 0 ]] ||
    blkdiscard -f -o ${DISCARDED.at} -l ${DISCARDED.bytes} "$device" 2> /dev/null
}
last_block() { # BLOCK
  local size
  size=$(blockdev --getsize64 "$device")
  dd if=/run/random of="$device" bs="$1" count=1 seek=$((size - $1)) oflag=seek_bytes,direct status=none
}
fio_verifies() { # ENGINE BLOCK LOG
  local common=(--filename="$device" --rw=randrw --bsrange="$2-1M" --iodepth=32 --verify=crc32c
    --verify_fatal=1 --verify_backlog=64 --serialize_overlap=1 --size=2M --fsync=16
    --randseed=${seed})
  fio "\${common[@]}" --name=direct --direct=1 --ioengine="$1" --offset=${AREAS.fio}M --cpus_allowed=0 \\
    --name=cached --direct=0 --ioengine=psync --offset=$((${AREAS.fio} + 2))M --cpus_allowed=1 > /dev/null 2> "$3"
}
sysfs() {
  (cd /sys/block/ublkb0 && grep . size ro queue/* 2> /dev/null) || true
}
`;

/** What a guest does for one row; its files begin with the row's name. */
function script(name: string, row: Row, chance: Chance, fixture: Fixture): string {
  const block = chance.place === 'loop4096' ? 4096 : 512;
  const { lazy } = fixture;
  return `
step ${quote(`${name} ${Object.values(row).join(', ')}, ${Object.values(chance).join(', ')}`)}
place ${chance.place} ${fixture.disk}
${lazy ? `cp ${lazy.metadata} /run/disk.meta` : ''}
serve ${name}.yaml
grep -q mode=${row.ublk_mode} ${name}.yaml.log
sysfs > ${name}.sys
${client('vhost-check')} $device driver=io_uring direct=1 ops=200 depth=32 max=1048576 zero=1 \\
  span=$((${AREAS.fio - AREAS.random} << 20)) image=${fixture.reference} mix=rrrrwwwwzfu state=/run/state \\
  seed=${seed} > ${name}.check.log 2>&1
fio_verifies ${chance.fioEngine} ${block} ${name}.fio.log
dds ${block}
discard
last_block ${block}
${lazy ? `until "$ubiblk" rpc /run/rpc.sock status | grep -q '(100 %)'; do kill -0 "$server"; done` : ''}
dd if=$device of=${name}.seen bs=1M iflag=direct status=none
stop
dd if=/run/disk of=${name}.data bs=1M status=none
mv /run/state ${name}.state
leave ${chance.place}
rm ${name}.fio.log ${name}.check.log`;
}

/** A disk that can't be written, in the mode that is best for it: a file or a block device. */
function readOnlyScript(kernel: Kernel, { disk }: Fixture): string {
  const place =
    kernel === 'trixie'
      ? 'cp "$file" /run/fixed; chmod a-w /run/fixed'
      : 'ln -s "$(losetup -r -f --show "$file")" /run/fixed';
  return `
step a disk that may only be read
file=${disk}
${place}
serve fixed.yaml
grep 'mode=' fixed.yaml.log
sysfs > fixed.sys
refused dd if=/dev/zero of=$device bs=4096 count=1 oflag=direct 2> fixed.write.log
refused blkdiscard -f $device 2>> fixed.write.log
cmp $device "$file"
stop
cmp /run/fixed "$file"`;
}

function settings(row: Row, chance: Chance, fixture: Fixture): Settings {
  const { kind, kernel: _, ...more } = row;
  const { write_through } = chance;
  const keys: Settings = kind.endsWith('encrypted') ? { encryption_key: testKeys } : {};
  const lazy: Settings = fixture.lazy
    ? {
        metadata_path: '/run/disk.meta',
        image_path: fixture.lazy.image,
        autofetch: true,
        rpc_socket_path: '/run/rpc.sock',
      }
    : {};
  return { path: '/run/disk', write_through, ...more, ...keys, ...lazy };
}

/** The disk as it was seen and its data file, compared with each other and with what was written. */
async function checkData(bed: Bed, name: string, row: Row, fixture: Fixture): Promise<void> {
  const file = bed.path(`${name}.data`);
  const plain = row.kind.endsWith('encrypted') ? bed.decrypted(file) : file;
  const data = readFileSync(plain);
  const seen = readFileSync(bed.path(`${name}.seen`));
  same(`${name}: the device and its data file`, seen, data);
  const quiet = [AREAS.quiet * mebibyte, AREAS.end * mebibyte];
  const reference = Buffer.alloc(quiet[1]);
  readFileSync(fixture.reference).copy(reference);
  same(`${name}: what nobody wrote`, data.subarray(...quiet), reference.subarray(...quiet));
  await bed.check(plain, {
    driver: 'io_uring',
    ops: 0,
    zero: 1,
    span: (AREAS.fio - AREAS.random) * mebibyte,
    state: bed.path(`${name}.state`),
    image: fixture.reference,
  });
  if (Number(shown(bed, name)['queue/discard_max_bytes']) === 0) return;
  const { at, bytes } = DISCARDED;
  same(`${name}: what was discarded`, data.subarray(at, at + bytes), Buffer.alloc(bytes));
}

function same(what: string, one: Buffer, other: Buffer): void {
  if (one.equals(other)) return;
  let at = 0;
  while (one[at] === other[at]) at++;
  throw new Error(`${what} differ at ${at}: ${one.length} and ${other.length} bytes`);
}

/** Files of the block device's folder in sysfs. */
function shown(bed: Bed, name: string): Record<string, string> {
  const lines = readFileSync(bed.path(`${name}.sys`), 'utf8')
    .trim()
    .split('\n');
  return Object.fromEntries(
    lines.map((line) => [line.slice(0, line.indexOf(':')), line.slice(line.indexOf(':') + 1)]),
  );
}

/** The kernel shows the disk as it was configured. */
function checkShown(bed: Bed, name: string, row: Row, chance: Chance, fixture: Fixture): void {
  const found = shown(bed, name);
  const block = chance.place === 'loop4096' ? 4096 : 512;
  const bytes = Math.ceil(DISK_BYTES / block) * block;
  expect({ name, ...found }).toMatchObject({
    name,
    size: String(bytes / 512),
    ro: '0',
    'queue/logical_block_size': String(block),
    'queue/write_cache': chance.write_through ? 'write through' : 'write back',
    'queue/fua': chance.write_through ? '0' : '1',
    'queue/max_sectors_kb': '1024',
  });
  const physical = Number(found['queue/physical_block_size']);
  expect(physical).toBe(chance.place === 'loop512' ? 512 : 4096);
  expect(Number(found['queue/minimum_io_size'])).toBe(physical);
  if (fixture.lazy) expect(Number(found['queue/optimal_io_size'])).toBe(512 << STRIPE_SHIFT);
  const discards = !row.kind.endsWith('encrypted');
  expect(Number(found['queue/discard_max_bytes']) > 0).toBe(discards);
  expect(Number(found['queue/write_zeroes_max_bytes'])).toBeGreaterThan(0);
}

async function ioOn(kernel: Kernel): Promise<void> {
  await using bed = new Bed();
  await using one = new Bed();
  await using other = new Bed();
  const all = await fixtures(bed, [one, other]);
  const random = new Random(seed);
  const runs = rows
    .filter((row) => row.kernel === kernel)
    .map((row, i) => ({ name: `row${i}`, row, chance: chanceOf(random), fixture: all[row.kind] }));
  for (const { name, row, chance, fixture } of runs) {
    bed.config(settings(row, chance, fixture), `${name}.yaml`);
  }
  bed.config({ path: '/run/fixed', num_queues: 2 }, 'fixed.yaml');
  const scratch = bed.disk({ sizeBytes: 64 * mebibyte });
  await bed.run(['mkfs.ext4', '-q', scratch]);
  const scripts = runs.map(({ name, row, chance, fixture }) => script(name, row, chance, fixture));
  scripts.push(readOnlyScript(kernel, all.plain));
  const options = { kernel, disks: [scratch], seconds: 800 };
  const guest = await runInGuest(bed, options, functions + scripts.join('\n'));
  expect(guest.stdout.text).toContain(`mode=${kernel === 'sid' ? 'zero_copy' : 'copy'} `);
  expect(shown(bed, 'fixed')).toMatchObject({
    ro: '1',
    size: String(DISK_BYTES / 512),
    'queue/write_cache': 'write through',
    'queue/fua': '0',
  });
  for (const { name, row, chance, fixture } of runs) {
    await checkData(bed, name, row, fixture);
    checkShown(bed, name, row, chance, fixture);
  }
}

for (const kernel of ['trixie', 'sid'] as const) {
  testWith(
    `what is written to a disk is read from it, and in its data file: kernel of ${kernel}`,
    [need.program('fio'), need.program('mkfs.ext4')],
    () => ioOn(kernel),
    15 * minutes,
  );
}
