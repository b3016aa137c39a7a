/**
 * A guest that rewrites descriptors, tables, headers and ranges while they are read: what was checked
 * must be what is used.
 */
import { expect, test } from 'bun:test';
import { READ, WRITE } from '../../src/device/request.ts';
import { PARSED } from '../../src/frontend/vhost/block_request.ts';
import { seed, soak } from '../random.ts';
import { DATA, FakeGuest, GUEST_BASE, partsOf } from './fake_guest.ts';
import type { Scramble } from './scrambler_thread.ts';

const HEADER = DATA;
const TABLE = DATA + 0x1000;
const BUFFER = DATA + 0x4000;
const STATUS = DATA + 0x100;
const DISK_BYTES = 1 << 20;

test('chains that change while they are read stay inside the guest and the disk', async () => {
  const guest = new FakeGuest({ size: 8 });
  const { address } = guest.memory.regions[0];
  const place = (guestAddress: number, bytes: number, values: number[]) => ({
    address: address + (guestAddress - GUEST_BASE),
    words: bytes / 4,
    values,
  });
  const low = (guestAddress: number) => guestAddress % 2 ** 32;
  // Addresses' words, lengths, and flags with next, right ones and wrong ones in each place.
  const words = [
    ...[low(BUFFER), low(TABLE), low(HEADER), low(STATUS), low(GUEST_BASE + 0x40000 - 512)],
    ...[1, 1, 1, 1, 0, 0x1f_ffff, 0xffff_ffff],
    ...[16, 32, 48, 64, 512, 1024, 4096, 0x40000],
    ...[0x0001_0001, 0x0002_0003, 0x0002_0001, 2, 4, 0x0003_0003],
  ];
  const numbers = [0, 0, 0, 1, 4, 8, 11, 13, 16, 2047, 2048, 0xffff_ffff];
  const control = new SharedArrayBuffer(8);
  const worker = new Worker(new URL('./scrambler_thread.ts', import.meta.url).href);
  const started = new Int32Array(control);
  const ended = new Promise<void>((resolve, reject) => {
    worker.onmessage = () => resolve();
    worker.onerror = (event) => reject(new Error(event.message));
  });
  worker.postMessage({
    places: [
      place(GUEST_BASE, 8 * 16, words),
      place(TABLE, 4 * 16, words),
      place(HEADER, 16, numbers),
      place(BUFFER, 64, numbers),
    ],
    control,
    seed,
  } satisfies Scramble);
  const outcomes = [0, 0, 0];
  try {
    Atomics.wait(started, 1, 0, 10_000);
    for (let round = 0; round < (soak ? 20_000_000 : 300_000); round++) {
      if (round % 8 === 0) {
        guest.header(HEADER, round % 32 === 0 ? 13 : round % 2, 0);
        guest.writeIndirect(0, TABLE, [
          { address: HEADER, length: 16 },
          { address: BUFFER, length: 512, writable: round % 16 === 0 },
          { address: STATUS, length: 1, writable: true },
        ]);
      }
      const { outcome, request } = guest.read(round % 8);
      outcomes[outcome]++;
      if (outcome !== PARSED || request.op === 2) continue;
      for (let more = true; more; more = guest.reader.nextRange(request)) {
        const { offset, length } = request;
        if (length <= 0 || length % 512 || offset % 512 || offset + length > DISK_BYTES) {
          throw new Error(`${length} bytes at ${offset}`);
        }
      }
      if (request.op !== READ && request.op !== WRITE) continue;
      const parts = partsOf(request);
      const outside = parts.filter((part) => !guest.memory.grants(part.address, part.length));
      expect(outside).toEqual([]);
      expect(parts.reduce((sum, part) => sum + part.length, 0)).toBe(request.length);
      request.statusView.setUint8(request.statusOffset, 0);
    }
  } finally {
    Atomics.store(started, 0, 1);
    await ended;
  }
  // It did change while it was read, and chains of each kind came out of it.
  expect(Atomics.load(started, 1)).toBeGreaterThan(10);
  expect(outcomes.filter((count) => count < 100)).toEqual([]);
  expect(guest.memory.canariesStand).toBe(true);
  guest.free();
});
