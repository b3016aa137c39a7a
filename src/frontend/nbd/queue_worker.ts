/** The thread of one queue of an NBD server: builds the device stack on the disk and serves. */
import { attachLibrary } from '../../../ffi/library.ts';
import { Ring } from '../../../ffi/ring.ts';
import { RequestTable } from '../../device/request.ts';
import { QueueBoard } from '../../device/request_board.ts';
import { Log } from '../../log.ts';
import { Pulse } from '../heartbeat.ts';
import { engineBeside, prepareThread, queueFiles, queueStack, refusal } from '../queue_stack.ts';
import type { WorkerAnswer } from '../thread.ts';
import { RingWaiter } from '../waiter.ts';
import { BlockStatus } from './block_status.ts';
import { NbdLink } from './link.ts';
import { NbdQueue, QUEUE_PLACES } from './queue.ts';
import type { NbdQueueStart } from './server.ts';

declare const self: Worker;

const RING_ENTRIES = 1024;

self.onmessage = (event: MessageEvent<NbdQueueStart>) => {
  let queue: NbdQueue;
  try {
    queue = build(event.data);
  } catch (error) {
    answer(refusal(error as Error, ''));
    return;
  }
  Bun.gc(true);
  answer({ kind: 'ready' });
  queue.run();
  answer({ kind: 'ended' });
};

function answer(message: WorkerAnswer): void {
  self.postMessage(message);
}

function build(start: NbdQueueStart): NbdQueue {
  attachLibrary(start.libraryFd);
  const { facts, lazy, queue, cpu, shape } = start;
  const log = new Log(start.log, `queue ${queue}`);
  prepareThread(queue, cpu, log);
  const ring = new Ring(RING_ENTRIES, 8 * RING_ENTRIES);
  const disk = { queue, facts, lazy, ownMemory: true };
  const fds = queueFiles(disk);
  if (facts.fd >= 0) ring.registerFiles(fds);
  const pulse = new Pulse(start.heartbeat, queue);
  new RingWaiter(ring, start.wakeFd, pulse);
  log.debug('io_uring is set up', { setup: ring.setup, entries: ring.sqEntries });
  const requests = new RequestTable();
  const engine = engineBeside(ring, start, fds, pulse);
  const stack = queueStack(disk, engine, ring, requests, null, answer, log);
  const board = new QueueBoard(start.board, queue, QUEUE_PLACES);
  const status = new BlockStatus(facts, lazy);
  return new NbdQueue(stack, ring, requests, board, status, shape, new NbdLink(start.link), log);
}
