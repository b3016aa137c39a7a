/** The socket of a queue on a real ring: its owner hears of its end in whatever order that is told. */
import { afterAll, expect, test } from 'bun:test';
import { closeSync, writeSync } from 'node:fs';
import { openLibrary, shim } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import { Ring } from '../../ffi/ring.ts';
import { RingStream } from '../../src/device/nbd/ring_stream.ts';

const WANTED = 4096;
const open: number[] = [];
afterAll(() => {
  for (const fd of open) closeSync(fd);
});

for (const [what, count] of [
  ['a part of it', 50],
  ['all of it', WANTED],
] as const) {
  test(`when sending fails, and then ${what} has come that was waited for, both ends are told`, () => {
    openLibrary();
    const ring = new Ring(64, 128);
    const fds = new Int32Array(2);
    expect(shim.ubiblk_socket_pair(fds)).toBe(0);
    open.push(...fds);
    const heard: string[] = [];
    const stream: RingStream = new RingStream(ring, {
      received: () => void heard.push('received'),
      sent: () => void heard.push('sent'),
      ended: () => void heard.push(stream.idle ? 'ended' : 'ending'),
    });
    const memory = new NativeBuffer(WANTED);
    stream.open(fds[0]);
    expect(stream.takeTo(memory.address, WANTED)).toBe(false);
    stream.receive();
    ring.enter(0, 0);
    writeSync(fds[1], Buffer.alloc(count));
    shim.ubiblk_socket_shutdown(fds[1]);
    // It fails while it is handed over, before the ring looks at what has come.
    stream.push(memory.address, 1);
    stream.send();
    for (let turn = 0; turn < 10 && !stream.idle; turn++) {
      ring.enter(1, -1);
      ring.reap();
    }
    expect(heard).toEqual(['ending', 'sent', 'ended']);
    memory.free();
  });
}
