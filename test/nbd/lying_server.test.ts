/** A client's answers are right or are errors, whatever a server says; and it never waits for ever. */
import { expect, test } from 'bun:test';
import { parseNbdUri } from '../../src/config/nbd_uri.ts';
import { NbdConnection } from '../../src/nbd/connection.ts';
import { nativeMemory } from '../../src/remote/channel.ts';
import { Random, seed, soak } from '../random.ts';
import { bytesOf, FakeServer, type Lie, someExport } from './support.ts';

console.log(`seed ${seed} (UBIBLK_TEST_SEED=${seed} repeats this run)`);

const LENGTH = 8192;

async function tryServer(uri: string): Promise<'right' | 'error'> {
  const options = { place: parseNbdUri(uri), connectMs: 200, operationMs: 200 };
  let connection: NbdConnection | null = null;
  const memory = nativeMemory(2 * LENGTH);
  try {
    connection = await NbdConnection.open(options);
    const other = { address: memory.address + LENGTH, bytes: memory.bytes.subarray(LENGTH) };
    const results = await Promise.allSettled([
      connection.read(4096, memory, LENGTH),
      connection.extents(0, someExport.sizeBytes),
      connection.read(65536, other, LENGTH),
    ]);
    for (const [i, at] of [
      [0, 4096],
      [2, 65536],
    ]) {
      if (results[i].status === 'rejected') continue;
      const from = i === 0 ? 0 : LENGTH;
      expect(Buffer.compare(memory.bytes.subarray(from, from + LENGTH), bytesOf(at, LENGTH))).toBe(
        0,
      );
    }
    return results.every(({ status }) => status === 'fulfilled') ? 'right' : 'error';
  } catch (error) {
    if (!(error instanceof Error) || error.message.includes('expect(')) throw error;
    return 'error';
  } finally {
    connection?.close();
    memory.free();
  }
}

test('an honest server is believed, in any order of its replies', async () => {
  using server = new FakeServer();
  expect(await tryServer(server.uri)).toBe('right');
});

/** Data of reads is nobody's to check: lies are told in what is around it. */
function liar(random: Random): Lie {
  return (bytes, phase) => {
    if (!random.chance(phase === 'talk' ? 6 : 3)) return bytes;
    const copy = Buffer.from(bytes);
    const head = phase === 'reply' ? Math.min(28, copy.length) : copy.length;
    if (random.chance(4)) return copy.subarray(0, random.below(copy.length));
    for (let n = 1 + random.below(3); n > 0; n--) copy[random.below(head)] ^= 1 << random.below(8);
    return copy;
  };
}

test('lies are found or do no harm', async () => {
  const random = new Random(seed);
  const counts = { right: 0, error: 0 };
  for (let round = 0; round < (soak ? 2000 : 60); round++) {
    using server = new FakeServer(someExport, liar(random));
    counts[await tryServer(server.uri)]++;
  }
  expect(counts.error).toBeGreaterThan(10);
  expect(counts.right).toBeGreaterThan(0);
}, 60_000);

for (const [what, change] of [
  ['a cookie that nobody gave', (bytes: Buffer) => bytes.writeUInt32BE(77, 12)],
  ['data behind what was asked for', (bytes: Buffer) => bytes.writeUInt32BE(8192 + 512, 24)],
  ['more bytes than were asked for', (bytes: Buffer) => bytes.writeUInt32BE(LENGTH + 16, 16)],
  ['another magic', (bytes: Buffer) => bytes.writeUInt32BE(1, 0)],
] as const) {
  test(`${what} ends the connection`, async () => {
    using server = new FakeServer(someExport, (bytes, phase) => {
      if (phase === 'talk' || bytes[7] !== 1) return bytes;
      const copy = Buffer.from(bytes);
      change(copy);
      return copy;
    });
    expect(await tryServer(server.uri)).toBe('error');
  });
}
