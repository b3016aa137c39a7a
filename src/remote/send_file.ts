/** Bytes of a file to a socket by threads of the shim, past Bun and without a copy. */
import { Lane } from '../../ffi/lane.ts';
import { openLibrary, shim } from '../../ffi/library.ts';

/** The most at once, each with a descriptor of its own. They wait for files, never for a peer. */
export const SENDERS = 8;
const lane = new Lane('send', SENDERS);
let sending = 0;

/**
 * Sends as much as the socket has room for. Bun may close the socket meanwhile: its number could be
 * another one's by then, so a second descriptor is used.
 * @param socket that doesn't block
 * @returns how many bytes; 0 also where it can't be done now, or fails
 */
export async function sendFile(
  socket: number,
  file: number,
  offset: number,
  length: number,
): Promise<number> {
  if (sending === SENDERS) return 0;
  openLibrary();
  const copy = shim.ubiblk_dup(socket);
  if (copy < 0) return 0;
  sending++;
  try {
    return Math.max(0, await lane.sendFile(copy, file, offset, length));
  } finally {
    sending--;
    shim.ubiblk_close(copy);
  }
}
