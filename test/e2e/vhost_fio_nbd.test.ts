/** fio's own verification, through the NBD bridge of qemu-storage-daemon. */

import { existsSync } from 'node:fs';
import { client } from './processes.ts';
import { Bed, matrix, need, seed, soak, testWith } from './support.ts';

const rows = matrix({
  io_engine: ['io_uring', 'sync'],
  direct_io: [true, false],
  write_through: [false, true],
  encrypted: [false, true],
} as const);

for (const row of rows) {
  const { encrypted, ...settings } = row;
  const name = Object.entries(row)
    .map(([key, value]) => `${key}=${value}`)
    .join(' ');
  testWith(
    `fio through NBD verifies what it wrote: ${name}`,
    [need.program('fio')],
    async () => {
      await using bed = new Bed();
      const server = await bed.serve(bed.disk({ encrypted }), { ...settings, num_queues: 2 });
      const nbd = bed.path('nbd.sock');
      // It answers on its standard output once NBD is there.
      const bridge = bed.spawn([
        client('qemu-storage-daemon'),
        '--blockdev',
        `driver=virtio-blk-vhost-user,node-name=v,path=${server.socket},cache.direct=on`,
        '--nbd-server',
        `addr.type=unix,addr.path=${nbd}`,
        '--export',
        'type=nbd,id=n,node-name=v,name=v,writable=on',
        '--chardev',
        'stdio,id=c',
        '--monitor',
        'chardev=c',
      ]);
      await bridge.said(/"QMP"/, 15_000);
      if (!existsSync(nbd)) throw new Error(bridge.report());
      await bed.run([
        'fio',
        '--name=v',
        '--ioengine=nbd',
        `--uri=nbd+unix:///v?socket=${nbd}`,
        '--rw=randrw',
        '--bsrange=512-256k',
        '--iodepth=32',
        '--verify=crc32c',
        '--verify_backlog=256',
        '--verify_fatal=1',
        '--serialize_overlap=1',
        `--size=${soak ? 64 : 24}M`,
        `--randseed=${seed}`,
        '--output-format=terse',
      ]);
      await bridge.destroy(true);
      await bed.stop(server);
    },
    120_000,
  );
}
