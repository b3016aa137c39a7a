/** Disks that fill themselves from an image, under random requests, kills and restarts. */

import { expect, test } from 'bun:test';
import { readFileSync, statSync } from 'node:fs';
import { type Lazy, type LazyOptions, lazyDisk } from './lazy.ts';
import { client, keyValues } from './processes.ts';
import { Bed, matrix, Random, seed, soak } from './support.ts';

const mebibyte = 1 << 20;
const SPAN = 32 * mebibyte;

/** A lazy disk whose image has a hole in its middle. */
async function holedDisk(bed: Bed, options: LazyOptions): Promise<Lazy> {
  const lazy = await lazyDisk(bed, options);
  const hole = Math.floor(options.imageBytes / 3 / 4096) * 4096;
  const range = ['-o', String(hole), '-l', String(3 * mebibyte)];
  await bed.run(['fallocate', '-p', ...range, lazy.image]);
  return lazy;
}

const rows = matrix({
  io: ['io_uring direct', 'io_uring cached', 'sync direct'],
  copy_on_read: [true, false],
  autofetch: [true, false],
  track_written: [true, false],
  encrypted: [true, false],
  map: ['format 1, shift 6', 'format 2, shift 8', 'format 2, shift 11'],
  imageBytes: [SPAN, 20 * mebibyte + 512 * 3, 5 * 512],
  queues: [1, 4],
} as const);

for (const [index, row] of rows.entries()) {
  const { encrypted, io, map, imageBytes, queues, ...flags } = row;
  const [format, shift] = map.match(/\d+/g)?.map(Number) ?? [];
  const [io_engine, cache] = io.split(' ');
  const settings = { ...flags, io_engine, direct_io: cache === 'direct' };
  const name = Object.entries(row)
    .map(([key, value]) => `${key}=${value}`)
    .join(' ');
  test(`a lazy disk holds its image and what was written: ${name}`, async () => {
    await using bed = new Bed();
    // Its last stripe is a partial one.
    const sizeBytes = SPAN + 512 * 77;
    const options = { encrypted, format, shift, imageBytes, sizeBytes };
    const lazy = await holedDisk(bed, { ...options, settings });
    const server = await bed.serve(lazy.disk, { ...lazy.settings, num_queues: queues });
    const state = bed.path('state');
    const load = { queues, span: SPAN, state, image: lazy.image, zero: 1, mix: 'rrrrwwwwzdfu' };
    const max = shift === 11 ? 2 * mebibyte : 262144;
    await bed.check(server.socket, {
      ...load,
      max,
      depth: 32,
      ops: 1500,
      seed: (seed + index) % 1e5,
    });
    await bed.stop(server);
    const again = await bed.start(server.config, server.socket);
    await bed.check(again.socket, { ...load, depth: 8, ops: 300, seed: index + 1 });
    await bed.stop(again);
    // Everything was read: with copy-on-read or autofetch the disk itself has it all.
    if (settings.copy_on_read)
      await bed.compareFile(lazy.disk, state, { span: SPAN, image: lazy.image });
  }, 90_000);
}

const engines = matrix({ io_engine: ['io_uring', 'sync'], encrypted: [false, true] } as const);

for (const { encrypted, ...settings } of engines) {
  const times = soak ? 200 : 15;
  test(`a lazy disk survives that its server is killed ${times} times: ${settings.io_engine} ${encrypted ? 'encrypted' : 'plain'}`, async () => {
    await using bed = new Bed();
    const random = new Random(seed);
    const options = {
      encrypted,
      format: 2,
      shift: 7,
      imageBytes: 24 * mebibyte + 512,
      sizeBytes: SPAN,
    };
    const limits = { track_written: true, autofetch: true, autofetch_max_mib_per_s: 8 };
    const lazy = await holedDisk(bed, { ...options, settings: { ...settings, ...limits } });
    const state = bed.path('state');
    let server = await bed.serve(lazy.disk, { ...lazy.settings, num_queues: 2 });
    const load = {
      queues: 2,
      depth: 32,
      max: 131072,
      span: SPAN,
      state,
      image: lazy.image,
      zero: 1,
    };
    for (let round = 0; round < times; round++) {
      const argv = keyValues({
        ...load,
        ops: 1e9,
        progress: 1,
        seed: seed + round,
        mix: 'rrwwwwzu',
      });
      const user = bed.spawn([client('vhost-check'), server.socket, ...argv]);
      await user.said(new RegExp(`(answers\\n.*){${1 + random.below(2)}}`, 's'), 30_000);
      await bed.crash(server);
      await user.destroy(false);
      server = await bed.start(server.config, server.socket);
    }
    await bed.check(server.socket, { ...load, ops: 500, seed });
    await bed.stop(server);
    await bed.compareFile(lazy.disk, state, { span: SPAN, image: lazy.image });
  }, 300_000);
}

test('autofetch copies the whole image, holes as holes, and lets go of it', async () => {
  await using bed = new Bed();
  const settings = { autofetch: true };
  const imageBytes = 24 * mebibyte + 512 * 5;
  const options = { format: 1, shift: 11, imageBytes, sizeBytes: SPAN, settings };
  const lazy = await holedDisk(bed, options);
  const server = await bed.serve(lazy.disk, lazy.settings);
  await bed.closed(server.child.pid, lazy.image, 30_000);
  await bed.stop(server);
  const expected = Buffer.alloc(SPAN);
  readFileSync(lazy.image).copy(expected);
  expect(Buffer.compare(readFileSync(lazy.disk), expected)).toBe(0);
  expect(statSync(lazy.disk).blocks).toBeLessThan(SPAN / 512 - 4096);
  // Nothing is left to fetch: the image isn't needed any more.
  await bed.run(['rm', lazy.image]);
  const again = await bed.start(server.config, server.socket);
  await bed.check(again.socket, { ops: 200 });
  await bed.stop(again);
}, 60_000);
