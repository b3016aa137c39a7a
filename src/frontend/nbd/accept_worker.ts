/** The thread that accepts an NBD server's connections and hands each to the queue with the fewest. */
import { attachLibrary, shim } from '../../../ffi/library.ts';
import { handOver, NbdLink } from './link.ts';
import type { AcceptAnswer, AcceptStart } from './server.ts';

declare const self: Worker;

/** Where no descriptor is left for a connection, it is tried again after so many milliseconds. */
const REST_MS = 100;
const STOP = 1;

self.onmessage = (event: MessageEvent<AcceptStart>) => {
  const { libraryFd, listenFd, stopFd, links, wakeFds, overTls } = event.data;
  attachLibrary(libraryFd);
  shim.ubiblk_name_thread(Buffer.from('accept\0'));
  const queues = links.map((shared) => new NbdLink(shared));
  tell({ kind: 'ready' });
  const polled = new Int32Array([stopFd, listenFd]);
  while ((shim.ubiblk_poll(polled, 2, -1) & STOP) === 0) {
    const fd = shim.ubiblk_stream_accept(listenFd);
    if (fd < 0) shim.ubiblk_poll(polled, 1, REST_MS);
    // Hands are shaken on the main thread, which then passes on what is plain.
    else if (overTls) tell({ kind: 'accepted', fd });
    else handOver(queues, wakeFds, fd, 0);
  }
  tell({ kind: 'ended' });
};

function tell(message: AcceptAnswer): void {
  self.postMessage(message);
}
