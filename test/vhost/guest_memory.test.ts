/** Nothing is handed out that isn't wholly inside a region. */
import { expect, test } from 'bun:test';
import { GuestMemory, type MemoryRegion } from '../../src/frontend/vhost/guest_memory.ts';
import { FakeMemory } from './fake_guest.ts';

const A = 0x1000_0000;
const SIZE = 0x3000;

/** Two regions that follow each other in the guest and not here, one apart, in no order. */
function twoAndOne(): { fake: FakeMemory; memory: GuestMemory; regions: MemoryRegion[] } {
  const fake = new FakeMemory([
    { guestAddress: A + SIZE, size: SIZE },
    { guestAddress: 0x40_0000_0000, size: SIZE },
    { guestAddress: A, size: SIZE },
  ]);
  return { fake, memory: new GuestMemory(fake.regions), regions: fake.regions };
}

test('an address is found in its region, with the bytes to that region end', () => {
  const { fake, memory, regions } = twoAndOne();
  const [second, far, first] = regions;
  for (const [address, region] of [
    [A, first],
    [A + SIZE - 1, first],
    [A + SIZE, second],
    [A + 2 * SIZE - 1, second],
    [0x40_0000_0000, far],
    [0x40_0000_0000 + SIZE - 1, far],
  ] as const) {
    expect(memory.find(address)).toBe(true);
    expect(memory.address).toBe(region.address + (address - region.guestAddress));
    expect(memory.available).toBe(region.guestAddress + SIZE - address);
  }
  fake.free();
});

for (const address of [
  0,
  A - 1,
  A + 2 * SIZE,
  0x3f_ffff_ffff,
  0x40_0000_0000 + SIZE,
  2 ** 52,
  2 ** 53 - 1,
  2 ** 53,
  2 ** 64,
]) {
  test(`${address} is in no region`, () => {
    const { fake, memory } = twoAndOne();
    expect(memory.find(address)).toBe(false);
    // The same after an address that was found: the last region is remembered.
    expect(memory.find(A)).toBe(true);
    expect(memory.find(address)).toBe(false);
    expect(memory.view(address, 1)).toBe(false);
    fake.free();
  });
}

test('a view is inside one region or there is none', () => {
  const { fake, memory } = twoAndOne();
  expect(memory.view(A, SIZE)).toBe(true);
  expect(memory.view(A, SIZE + 1)).toBe(false);
  expect(memory.view(A + SIZE - 16, 16)).toBe(true);
  expect(memory.view(A + SIZE - 15, 16)).toBe(false);
  expect(memory.view(A + 2 * SIZE - 16, 17)).toBe(false);
  fake.free();
});

test('a view shows the bytes of its address', () => {
  const { fake, memory } = twoAndOne();
  fake.at(A + SIZE + 77, 1)[0] = 0x5a;
  expect(memory.view(A + SIZE + 77, 1)).toBe(true);
  expect(memory.dataView.getUint8(memory.offset)).toBe(0x5a);
  fake.free();
});

test('regions of more than 4 GiB are seen to their last byte', () => {
  // Nothing is mapped there, and nothing is read.
  const size = 64 * 2 ** 30;
  const region = { guestAddress: 2 ** 40, size, userAddress: 0, address: 0x10_0000_0000 };
  const memory = new GuestMemory([{ ...region, pageBytes: 4096 }]);
  for (const offset of [0, 2 ** 30 - 1, 2 ** 30, 2 ** 32 - 8, 2 ** 32, 2 ** 35 + 5, size - 16]) {
    expect(memory.view(2 ** 40 + offset, 16)).toBe(true);
    expect(memory.address).toBe(0x10_0000_0000 + offset);
    const { dataView, offset: inView } = memory;
    expect(inView + 16).toBeLessThanOrEqual(dataView.byteLength);
  }
  expect(memory.view(2 ** 40 + size - 15, 16)).toBe(false);
});

test('without regions nothing is found', () => {
  const memory = new GuestMemory([]);
  expect(memory.find(0)).toBe(false);
  expect(memory.view(0, 0)).toBe(false);
});
