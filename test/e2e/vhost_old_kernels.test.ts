/**
 * The set-ups of io_uring that older kernels are left with: 5.15 has the plain one, 5.19 the
 * cooperative one. `UBIBLK_IO_URING_SETUP` names the first that is tried.
 */

import { expect, test } from 'bun:test';
import { Bed, matrix, seed } from './support.ts';

for (const { setup, ...settings } of matrix({
  setup: ['coop', 'plain'],
  direct_io: [true, false],
  write_through: [true, false],
} as const)) {
  const name = Object.entries(settings)
    .map(([key, value]) => `${key}=${value}`)
    .join(' ');
  test(`random requests with io_uring set up '${setup}': ${name}`, async () => {
    await using bed = new Bed();
    const disk = bed.disk();
    const env = { UBIBLK_IO_URING_SETUP: setup, UBIBLK_LOG: 'debug' };
    const server = await bed.serve(disk, { ...settings, num_queues: 2 }, { env });
    const state = bed.path('state');
    const load = { queues: 2, state, zero: 1, max: 1 << 20, span: 32 << 20 };
    for (const depth of [1, 128]) {
      await bed.check(server.socket, { ...load, depth, ops: 20 * depth + 500, seed });
    }
    expect(server.child.stderr.text).toContain(`setup=${setup}`);
    await bed.stop(server);
    await bed.compareFile(disk, state, { span: load.span });
  }, 60_000);
}
