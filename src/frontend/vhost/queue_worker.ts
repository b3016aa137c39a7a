/** The thread of one virtqueue: builds the device stack on the disk and serves until told to end. */
import { attachLibrary } from '../../../ffi/library.ts';
import { Ring, type RingSetup } from '../../../ffi/ring.ts';
import type { FileEngine } from '../../device/file_device.ts';
import { PageCacheEngine } from '../../device/page_cache_engine.ts';
import { RequestTable } from '../../device/request.ts';
import { QueueBoard } from '../../device/request_board.ts';
import { SyncEngine } from '../../device/sync_engine.ts';
import { Log } from '../../log.ts';
import { Pulse } from '../heartbeat.ts';
import { prepareThread, queueFiles, queueStack, refusal } from '../queue_stack.ts';
import type { WorkerAnswer } from '../thread.ts';
import { EpollWaiter, RingWaiter, type Waiter } from '../waiter.ts';
import { largestRing } from './protocol.ts';
import { VhostQueue } from './queue.ts';
import { QueueLink, SharedState } from './queue_link.ts';
import type { QueueStart } from './server.ts';

declare const self: Worker;

const MIN_RING_ENTRIES = 128;
const MAX_RING_ENTRIES = 4096;

self.onmessage = (event: MessageEvent<QueueStart>) => {
  let queue: VhostQueue;
  try {
    queue = build(event.data);
  } catch (error) {
    answer(refusal(error as Error, " or set 'io_engine: sync' in the configuration"));
    return;
  }
  // What start-up left behind goes now: the loop itself allocates nothing, so nothing else would.
  Bun.gc(true);
  answer({ kind: 'ready' });
  queue.run();
};

function answer(message: WorkerAnswer): void {
  self.postMessage(message);
}

function build(start: QueueStart): VhostQueue {
  attachLibrary(start.libraryFd);
  const { facts, options, queue, wakeFd } = start;
  const log = new Log(start.log, `queue ${queue}`);
  prepareThread(queue, options.cpus?.[queue], log);
  const requests = new RequestTable();
  const disk = { queue, facts, lazy: start.lazy, ownMemory: false };
  const fds = queueFiles(disk);
  const pulse = new Pulse(start.heartbeat, queue);
  let waiter: Waiter;
  let engine: FileEngine;
  let ring: Ring | null = null;
  if (options.ioEngine === 'sync') {
    waiter = new EpollWaiter(wakeFd, pulse);
    engine = new SyncEngine(fds, () => pulse.answer());
  } else {
    const entries = clamp(options.queueSize, MIN_RING_ENTRIES, MAX_RING_ENTRIES);
    const setup = process.env.UBIBLK_IO_URING_SETUP as RingSetup | undefined;
    ring = new Ring(entries, 4 * entries, setup);
    if (facts.fd >= 0) ring.registerFiles(fds);
    log.debug('io_uring is set up', { setup: ring.setup, entries: ring.sqEntries });
    waiter = new RingWaiter(ring, wakeFd, pulse);
    engine =
      facts.direct || facts.writeThrough
        ? ring
        : new PageCacheEngine(ring, new SyncEngine(fds), fds);
  }
  // Of buffered I/O the kernel copies anyway. With a cipher it is our own buffers that are used.
  const registrar = facts.direct ? ring : null;
  const device = queueStack(disk, engine, ring, requests, registrar, answer, log);
  return new VhostQueue(
    device,
    facts,
    waiter,
    requests,
    new QueueLink(start.shared, queue),
    new SharedState(start.shared),
    new QueueBoard(start.board, queue, largestRing(options.queueSize)),
    { deviceId: options.deviceId, pollTimeoutUs: options.pollQueueTimeoutUs },
    log,
    facts.xts === 0 ? registrar : null,
  );
}

function clamp(value: number, low: number, high: number): number {
  return Math.min(Math.max(value, low), high);
}
