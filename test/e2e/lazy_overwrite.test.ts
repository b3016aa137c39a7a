/**
 * Requests that overwrite whole stripes of a lazy disk need nothing of its source: they are answered
 * while that is away, and what they left is there after a kill and a restart.
 */

import { expect } from 'bun:test';
import { readFileSync } from 'node:fs';
import { dump, ended, failed, type Lazy, lazyDisk, Outage, qemuIo, statusNow } from './lazy.ts';
import { client } from './processes.ts';
import { Bed, matrix, qemuDisk, type Server, testWith } from './support.ts';

const KIB = 1 << 10;
/** Of 64 KiB. */
const shift = 7;
const stripeBytes = 64 * KIB;
/** The last stripe, of number 64, is partial. */
const sizeBytes = 64 * stripeBytes + 512 * 77;
/** First and last of the stripes that are overwritten, each range by one request. */
const ranges: [number, number][] = [
  [3, 10],
  [12, 12],
  [40, 55],
  [64, 64],
];
const PATTERN = 90;

type Kind = 'write' | 'zero' | 'zero and unmap' | 'discard';
const commands: Record<Kind, string> = {
  write: `write -P ${PATTERN}`,
  zero: 'write -z',
  'zero and unmap': 'write -z -u',
  discard: 'discard',
};

function overwrites(kind: Kind): string[] {
  return ranges.map(([first, last]) => {
    const offset = first * stripeBytes;
    const length = Math.min((last + 1) * stripeBytes, sizeBytes) - offset;
    return `${commands[kind]} ${offset} ${length}`;
  });
}

/** What the disk holds then. */
function expected({ reference }: Lazy, kind: Kind): Buffer {
  const content = readFileSync(reference);
  for (const [first, last] of ranges) {
    const byte = kind === 'write' ? PATTERN : 0;
    content.fill(byte, first * stripeBytes, Math.min((last + 1) * stripeBytes, sizeBytes));
  }
  return content;
}

/** The disk as a guest reads it. */
async function read(bed: Bed, { socket }: Server): Promise<Buffer> {
  const copy = bed.path('copy.raw');
  await bed.run([client('qemu-img'), 'convert', '--image-opts', qemuDisk(socket), copy]);
  return readFileSync(copy);
}

function same(found: Buffer, wanted: Buffer): void {
  expect(found.length).toBe(wanted.length);
  const at = found.findIndex((byte, i) => byte !== wanted[i]);
  if (at >= 0) throw new Error(`byte ${at} (stripe ${at / stripeBytes}) is ${found[at]}`);
}

const rows = matrix({
  kind: ['write', 'zero', 'zero and unmap', 'discard'],
  io_engine: ['io_uring', 'sync'],
  direct_io: [true, false],
  encrypted: [false, true],
  track_written: [false, true],
  end: ['SIGKILL', 'SIGTERM'],
} as const);

for (const { encrypted, end, ...row } of rows) {
  const { kind: wanted, ...settings } = row;
  // An encrypted disk offers no discard.
  const kind = encrypted && wanted === 'discard' ? 'zero' : wanted;
  const name = Object.entries({ encrypted, end, ...settings }).map((pair) => pair.join('='));
  testWith(
    `${kind} of whole stripes needs no source, and is there after ${name.join(' ')}`,
    [],
    async () => {
      await using bed = new Bed();
      const more = { ...settings, copy_on_read: true };
      const options = { encrypted, shift, sizeBytes, imageBytes: sizeBytes, settings: more };
      const lazy = await lazyDisk(bed, options);
      const away = new Outage(lazy.image);
      const server = await bed.serve(lazy.disk, lazy.settings);
      away.begin();
      await ended(qemuIo(bed, server, ...overwrites(kind), 'flush'));
      const { stripes, ...status } = await statusNow(server, lazy.rpc);
      expect(stripes.fetched).toBe(26);
      expect(status).toMatchObject({ failing: [], failing_count: 0, queued: 0, in_flight: 0 });
      expect(server.child.stderr.text).not.toContain('could not be');
      if (end === 'SIGKILL') await bed.crash(server);
      else await bed.stop(server);
      away.end();
      const recorded = await dump(bed, lazy);
      expect(recorded.fetched).toEqual(ranges);
      expect(recorded.written).toEqual(settings.track_written ? ranges : []);
      const again = await bed.start(server.config, server.socket);
      same(await read(bed, again), expected(lazy, kind));
      await bed.stop(again);
      const plain = encrypted ? bed.decrypted(lazy.disk) : lazy.disk;
      same(readFileSync(plain), expected(lazy, kind));
    },
    60_000,
  );
}

testWith(
  'a stripe that autofetch fails to have is overwritten, and fails no more',
  [],
  async () => {
    await using bed = new Bed();
    const settings = { autofetch: true, autofetch_max_mib_per_s: 1, copy_on_read: true };
    const lazy = await lazyDisk(bed, { shift, sizeBytes, imageBytes: sizeBytes, settings });
    const away = new Outage(lazy.image);
    const server = await bed.serve(lazy.disk, lazy.settings);
    away.begin();
    const { stripe } = await failed(server, lazy.rpc, 2);
    const offset = stripe * stripeBytes;
    await ended(qemuIo(bed, server, `write -P ${PATTERN} ${offset} ${stripeBytes}`, 'flush'));
    const { failing } = await statusNow(server, lazy.rpc);
    expect(failing.map((of) => of.stripe)).not.toContain(stripe);
    away.end();
    const wanted = readFileSync(lazy.reference);
    wanted.fill(PATTERN, offset, offset + stripeBytes);
    await bed.closed(server.child.pid, lazy.image, 30_000);
    await bed.stop(server);
    same(readFileSync(lazy.disk), wanted);
  },
  60_000,
);
