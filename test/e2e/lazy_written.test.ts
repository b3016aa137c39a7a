/** `track_written`: the metadata names the stripes that guests have written to, and no others. */

import { expect } from 'bun:test';
import { dump, type Lazy, lazyDisk, numbers, touched } from './lazy.ts';
import { client, keyValues } from './processes.ts';
import { Bed, matrix, Random, seed, soak, testWith } from './support.ts';

const MIB = 1 << 20;
/** Of 64 KiB. */
const shift = 7;
const stripeBytes = 512 << shift;
const sizeBytes = 24 * MIB + 512 * 77;

async function written(bed: Bed, lazy: Lazy): Promise<Set<number>> {
  const { written: lists, stripes } = await dump(bed, lazy);
  const found = numbers(lists);
  expect(found.size).toBe(stripes.written);
  return found;
}

function load(bed: Bed, { reference }: Lazy, imageBytes: number) {
  const image: Record<string, string> = imageBytes > 0 ? { image: reference } : {};
  const sizes = { queues: 2, max: 2 * stripeBytes, span: sizeBytes };
  return { ...sizes, state: bed.path('state'), zero: 1, ...image };
}

const rows = matrix({
  io_engine: ['io_uring', 'sync'],
  track_written: [true, false],
  autofetch: [true, false],
  encrypted: [false, true],
  format: [1, 2],
  imageBytes: [0, 10 * MIB + 512, sizeBytes],
} as const);

for (const row of rows) {
  const { encrypted, format, imageBytes, ...settings } = row;
  const name = Object.entries(row).map((pair) => pair.join('='));
  testWith(
    `the stripes that were written to are those on record: ${name.join(' ')}`,
    [],
    async () => {
      await using bed = new Bed();
      const more = { ...settings, copy_on_read: true };
      const options = { encrypted, format, shift, sizeBytes, imageBytes, settings: more };
      const lazy = await lazyDisk(bed, options);
      const server = await bed.serve(lazy.disk, { ...lazy.settings, num_queues: 2 });
      const requests = { ops: 100, depth: 16, mix: 'rrwwwuzdf', seed };
      const all = load(bed, lazy, imageBytes);
      await bed.check(server.socket, { ...all, ...requests });
      const expected = settings.track_written
        ? touched(all.state, shift, 'sent')
        : new Set<number>();
      // Beside the server: what was answered is on record.
      expect(await written(bed, lazy)).toEqual(expected);
      await bed.stop(server);
      expect(await written(bed, lazy)).toEqual(expected);
      if (settings.track_written) expect(expected.size).toBeGreaterThan(50);
    },
    60_000,
  );
}

const engines = matrix({ io_engine: ['io_uring', 'sync'], encrypted: [false, true] } as const);
for (const { encrypted, ...settings } of engines) {
  const times = soak ? 100 : 6;
  testWith(
    `no written stripe is forgotten by a server that is killed ${times} times: ${settings.io_engine} ${encrypted ? 'encrypted' : 'plain'}`,
    [],
    async () => {
      await using bed = new Bed();
      const random = new Random(seed);
      const imageBytes = 12 * MIB + 512;
      const more = { ...settings, track_written: true, copy_on_read: false };
      const options = { encrypted, shift, sizeBytes, imageBytes, settings: more };
      const lazy = await lazyDisk(bed, options);
      const all = load(bed, lazy, imageBytes);
      let server = await bed.serve(lazy.disk, { ...lazy.settings, num_queues: 2 });
      const [answered, sent] = [new Set<number>(), new Set<number>()];
      for (let round = 0; round < times; round++) {
        // Few at a time, so that few are in flight at the kill.
        const argv = { ...all, depth: 4, ops: 1e9, progress: 1, mix: 'rwwz', seed: seed + round };
        const user = bed.spawn([client('vhost-check'), server.socket, ...keyValues(argv)]);
        await user.said(new RegExp(`(answers\\n.*){${1 + random.below(2)}}`, 's'), 30_000);
        await bed.crash(server);
        await user.destroy(false);
        for (const stripe of touched(all.state, shift, 'answered')) answered.add(stripe);
        for (const stripe of touched(all.state, shift, 'sent')) sent.add(stripe);
        const found = await written(bed, lazy);
        expect([...answered.difference(found)]).toEqual([]);
        expect([...found.difference(sent)]).toEqual([]);
        server = await bed.start(server.config, server.socket);
      }
      await bed.check(server.socket, { ...all, ops: 0 });
      await bed.stop(server);
    },
    soak ? 600_000 : 120_000,
  );
}
