/**
 * Random rings, descriptors, tables and headers. Whatever they say: nothing outside the guest's memory
 * is touched, nothing outside the disk is asked for, and every chain that was taken is answered once,
 * or its ring is broken.
 */
import { expect, test } from 'bun:test';
import { Random, seed, soak } from '../random.ts';
import { DATA, GUEST_BASE, putHeader } from './fake_guest.ts';
import { QueueBench, type Script } from './queue_bench.ts';

const SIZE = 16;
const REGION_BYTES = 0x40000;
const RECORD_AT = GUEST_BASE + 0x100_0000;
/** Random data lies in a few pages, so that it meets itself; status bytes as well. */
const PLAY_BYTES = 0x8000;

const LENGTHS = [0, 1, 15, 16, 17, 20, 32, 511, 512, 513, 4096, 65536, REGION_BYTES, 0xffff_ffff];
const SECTORS: (number | bigint)[] = [
  0,
  1,
  2040,
  2047,
  2048,
  2n ** 32n,
  2n ** 44n,
  2n ** 53n,
  2n ** 55n,
  2n ** 63n,
  2n ** 64n - 1n,
];
const TYPES = [0, 0, 0, 1, 1, 1, 4, 8, 11, 13, 2, 99, 0xffff_ffff];

function randomAddress(random: Random): number | bigint {
  switch (random.below(16)) {
    case 0:
      return GUEST_BASE + REGION_BYTES - random.pick([0, 1, 16, 512, 513]);
    case 1:
      return GUEST_BASE + random.below(REGION_BYTES);
    case 2:
      return GUEST_BASE - random.pick([1, 16, 512]);
    case 3:
      return RECORD_AT + random.below(8192);
    case 4:
      return random.pick([0, 2n ** 52n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n]);
    default:
      return DATA + random.below(PLAY_BYTES);
  }
}

/** Flags and next of a descriptor: most often of a chain that goes on and ends. */
function randomLink(random: Random, index: number, size: number): [flags: number, next: number] {
  if (random.chance(24)) return [random.next() & 0xffff, random.next() & 0xffff];
  const last = random.chance(3);
  const next = random.chance(12) ? random.below(size + 2) : (index + 1) % size;
  // The further on in a chain, the rather the device writes it.
  const write = random.below(4) < Math.min(index, 3) ? 2 : 0;
  return [write | (last ? 0 : 1), next];
}

/** Shapes that a driver would write, to be spoilt in one place or none. */
function almostRight(bench: QueueBench, random: Random, head: number): void {
  const { guest } = bench;
  const type = random.pick(TYPES);
  const header = DATA + random.below(PLAY_BYTES / 2);
  const data = DATA + random.below(PLAY_BYTES / 2);
  const length = random.chance(4) ? random.pick(LENGTHS) : 512 * random.below(20);
  const writes = type === 0 || type === 8;
  const parts = [
    { address: header, length: 16, writable: false },
    { address: data, length, writable: writes },
    { address: DATA + PLAY_BYTES + head, length: 1, writable: true },
  ];
  if (random.chance(3)) parts.splice(2, 0, { ...parts[1], address: data + 4096 });
  if (random.chance(6)) {
    const spoilt = random.pick(parts);
    if (random.chance(2)) spoilt.length = random.pick(LENGTHS);
    else spoilt.address = Number(randomAddress(random));
  }
  if (random.chance(12)) parts.splice(random.below(parts.length), 1);
  if (random.chance(12)) random.pick(parts).writable = random.chance(2);
  const sector = random.chance(6) ? random.pick(SECTORS) : random.below(2000);
  putHeader(guest.memory.view(header, 16), 0, type, sector);
  if (random.chance(2)) {
    guest.writeIndirect(head, DATA + random.below(PLAY_BYTES / 2), parts);
    const at = random.chance(12) ? random.pick(LENGTHS) : parts.length * 16;
    guest.driver.descriptors.setUint32(head * 16 + 8, at, true);
  } else if (head + parts.length <= SIZE) {
    guest.writeChain(head, parts);
  }
}

function anything(bench: QueueBench, random: Random): void {
  const { guest } = bench;
  for (let i = 0; i < SIZE; i++) {
    const [flags, next] = randomLink(random, i, SIZE);
    const length = random.pick(LENGTHS);
    const address = Number(randomAddress(random));
    guest.driver.writeDescriptor(i, address, length, flags, next);
    if (random.chance(6)) guest.driver.writeDescriptor(i, DATA, 16 * random.below(9), 4, 0);
  }
  const table = guest.memory.view(DATA, 8 * 16);
  for (let i = 0; i < 8; i++) {
    const [flags, next] = randomLink(random, i, 8);
    table.setBigUint64(i * 16, BigInt(randomAddress(random)), true);
    table.setUint32(i * 16 + 8, random.pick(LENGTHS), true);
    table.setUint16(i * 16 + 12, flags, true);
    table.setUint16(i * 16 + 14, next, true);
  }
  const at = DATA + random.below(PLAY_BYTES);
  putHeader(guest.memory.view(at, 16), 0, random.pick(TYPES), random.pick(SECTORS));
}

interface Tally {
  popped: number;
  asked: number;
  broken: number;
}

/** One ring's life. The guest keeps its promise of each head at once, most of the time. */
function* life(bench: QueueBench, random: Random, tally: Tally): Script {
  const { driver } = bench.guest;
  const waiting = new Set<number>();
  let honest = true;
  yield;
  for (let step = 0; step < 12; step++) {
    for (let count = 1 + random.below(5); count > 0; count--) {
      let head = random.below(SIZE);
      if (waiting.has(head)) continue;
      if (random.chance(16)) anything(bench, random);
      else almostRight(bench, random, head);
      if (random.chance(200)) {
        honest = false;
        head = random.pick([...waiting, SIZE, 0xffff]);
      }
      waiting.add(head);
      driver.add(head);
    }
    driver.publish();
    if (random.chance(300)) {
      honest = false;
      driver.available[1] = random.next();
    }
    yield;
    // What is in flight is no longer the guest's to change; it does so all the same.
    if (random.chance(3)) anything(bench, random);
    while (bench.device.open.length > random.below(4)) {
      const place = random.below(bench.device.open.length);
      bench.device.finish(place, random.chance(6) ? -5 : 0);
    }
    yield;
    for (const { head } of bench.take()) {
      if (honest && !waiting.delete(head)) throw new Error(`head ${head} is answered unasked`);
    }
    if (bench.logged.length > 0) break;
  }
  while (bench.device.open.length > 0) bench.device.finish(0);
  yield;
  for (const { head } of bench.take()) waiting.delete(head);
  tally.popped += bench.taken.length;
  tally.asked += bench.device.asked.length;
  if (bench.logged.length > 0) {
    tally.broken++;
    const [line] = bench.logged;
    if (!line.startsWith('the queue is stopped: ')) throw new Error(line);
  } else if (honest && waiting.size > 0) {
    throw new Error(`heads ${[...waiting]} are never answered`);
  }
}

function fuzz(rounds: number, options: { inflight: boolean }): Tally {
  const tally = { popped: 0, asked: 0, broken: 0 };
  for (let round = 0; round < rounds; round++) {
    const random = new Random(seed + round);
    const bench = new QueueBench({
      size: SIZE,
      eventIdx: random.chance(2),
      indirect: !random.chance(8),
      facts: { readOnly: random.chance(8), canPunch: !random.chance(8) },
      inflight: options.inflight,
    });
    try {
      bench.run(life(bench, random, tally));
    } catch (error) {
      throw new Error(`UBIBLK_TEST_SEED=${seed + round}: ${error}`, { cause: error });
    } finally {
      bench.free();
    }
  }
  return tally;
}

for (const inflight of [false, true]) {
  const name = inflight ? 'with' : 'without';
  test(`random chains ${name} an in-flight record (UBIBLK_TEST_SEED=${seed})`, () => {
    const rounds = soak ? 20_000 : 1000;
    const tally = fuzz(rounds, { inflight });
    console.log(
      `${rounds} rings: ${tally.popped} answers, ${tally.asked} requests, ${tally.broken} broken`,
    );
    // A fuzz whose chains are all refused at the door, or all right, finds nothing.
    expect(tally.popped).toBeGreaterThan(rounds * 5);
    expect(tally.asked).toBeGreaterThan(rounds * 2);
    expect(tally.broken).toBeGreaterThan(0);
  });
}
