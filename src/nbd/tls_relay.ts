/** Passes bytes on between a channel over TLS and a plain socket, both ways, until either ends. */
import { shim } from '../../ffi/library.ts';
import { type Channel, nativeMemory } from '../remote/channel.ts';
import { adopt } from '../remote/dial.ts';

const PIECE_BYTES = 256 * 1024;
/** The other side of the plain socket is of this process, and may take its time. */
const FOREVER_MS = 2 ** 31 - 1;

/**
 * Takes over both; resolves when they are closed.
 * @param fd a connected socket, whose other end is somebody's of this process
 */
export async function relay(secured: Channel, fd: number): Promise<void> {
  shim.ubiblk_set_blocking(fd, 0);
  const plain = await adopt(fd, { role: 'client', idleMs: FOREVER_MS });
  await Promise.all([pass(secured, plain), pass(plain, secured)]);
}

async function pass(from: Channel, to: Channel): Promise<void> {
  const memory = nativeMemory(PIECE_BYTES);
  try {
    for (;;) {
      const count = await from.receiveSome(memory, PIECE_BYTES);
      await to.send(memory, 0, count);
    }
  } catch {
    // The end of the one is the end of the other.
    from.close();
    to.close();
  } finally {
    memory.free();
  }
}
