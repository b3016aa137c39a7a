/** Bytes to and from sockets by threads of the shim, past Bun and with no copy more than it takes. */
import { Lane, type Part } from '../../ffi/lane.ts';
import { openLibrary, shim } from '../../ffi/library.ts';

/** The most at once that send, each with a descriptor of its own. They wait for files, never for a peer. */
export const SENDERS = 8;
/** The most at once that receive. */
export const RECEIVERS = 8;
/** Milliseconds that one of those waits for more. */
const PATIENCE_MS = 20;

/** Threads that do the same. */
class Crew {
  private readonly lane: Lane;
  private busy = 0;

  constructor(
    name: string,
    private readonly most: number,
  ) {
    this.lane = new Lane(name, most);
  }

  /**
   * Has one of them do something with a socket. Bun may close the socket meanwhile: its number could be
   * another one's by then, so a second descriptor is used.
   * @returns bytes; 0 where it can't be done now, or fails
   */
  async use(
    socket: number,
    work: (lane: Lane, socket: number) => Promise<number>,
  ): Promise<number> {
    if (this.busy === this.most) return 0;
    openLibrary();
    const copy = shim.ubiblk_dup(socket);
    if (copy < 0) return 0;
    this.busy++;
    try {
      return Math.max(0, await work(this.lane, copy));
    } finally {
      this.busy--;
      shim.ubiblk_close(copy);
    }
  }
}

const senders = new Crew('send', SENDERS);
const receivers = new Crew('receive', RECEIVERS);

/**
 * Sends as much of a file as the socket has room for.
 * @param socket that doesn't block
 * @returns how many bytes; 0 also where it can't be done now, or fails
 */
export function sendFile(
  socket: number,
  file: number,
  offset: number,
  length: number,
): Promise<number> {
  return senders.use(socket, (lane, copy) => lane.sendFile(copy, file, offset, length));
}

/**
 * Receives until there is no more room, or what is to come takes its time; nobody else may read meanwhile.
 * @returns how many bytes; 0 also where it can't be done now, or fails
 */
export function receive(socket: number, to: Part): Promise<number> {
  return receivers.use(socket, (lane, copy) => lane.receive(copy, to, PATIENCE_MS));
}
