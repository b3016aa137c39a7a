/** The thread of one virtqueue: builds the device stack on the disk and serves until told to end. */
import { failed } from '../../../ffi/errno.ts';
import { attachLibrary, shim } from '../../../ffi/library.ts';
import { Ring, RingForbidden, type RingSetup } from '../../../ffi/ring.ts';
import { BounceLayer } from '../../device/bounce.ts';
import { CryptLayer } from '../../device/crypt.ts';
import type { DiskFacts } from '../../device/disk.ts';
import { failureLog } from '../../device/failure_log.ts';
import { FILES_PER_DISK, FileDevice, type FileEngine } from '../../device/file_device.ts';
import { NullDevice } from '../../device/null_device.ts';
import { PageCacheEngine } from '../../device/page_cache_engine.ts';
import { type BlockDevice, RequestTable } from '../../device/request.ts';
import { QueueBoard } from '../../device/request_board.ts';
import { SyncEngine } from '../../device/sync_engine.ts';
import { Log } from '../../log.ts';
import type { LazyStart } from '../../stripe/lazy_disk.ts';
import { LazyLayer } from '../../stripe/lazy_layer.ts';
import { type QueueMessage, SharedStripes } from '../../stripe/shared_state.ts';
import { largestRing } from './protocol.ts';
import { VhostQueue } from './queue.ts';
import { QueueLink, SharedState } from './queue_link.ts';
import type { QueueStart, WorkerAnswer } from './server.ts';
import { EpollWaiter, RingWaiter, type Waiter } from './waiter.ts';

declare const self: Worker;

const MIN_RING_ENTRIES = 128;
const MAX_RING_ENTRIES = 4096;

self.onmessage = (event: MessageEvent<QueueStart>) => {
  let queue: VhostQueue;
  try {
    queue = build(event.data);
  } catch (error) {
    answer({ kind: 'refused', ...refusal(error as Error) });
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

function refusal(error: Error): { message: string; user: boolean } {
  if (!(error instanceof RingForbidden)) return { message: error.message, user: false };
  return {
    message:
      `io_uring can't be used here (${error.message}); allow it (sysctl kernel.io_uring_disabled, ` +
      "the container's seccomp profile) or set 'io_engine: sync' in the configuration",
    user: true,
  };
}

function build(start: QueueStart): VhostQueue {
  attachLibrary(start.libraryFd);
  const { facts, options, queue, wakeFd } = start;
  const log = new Log(start.log, `queue ${queue}`);
  shim.ubiblk_name_thread(Buffer.from(`queue ${queue}\0`));
  pin(options.cpus?.[queue], log);
  const requests = new RequestTable();
  const image = start.lazy?.image;
  const fds = [facts.fd, facts.bufferedFd];
  if (image) fds.push(image.fd, image.bufferedFd);
  let waiter: Waiter;
  let engine: FileEngine;
  let ring: Ring | null = null;
  if (options.ioEngine === 'sync') {
    waiter = new EpollWaiter(wakeFd);
    engine = new SyncEngine(fds);
  } else {
    const entries = clamp(options.queueSize, MIN_RING_ENTRIES, MAX_RING_ENTRIES);
    const setup = process.env.UBIBLK_IO_URING_SETUP as RingSetup | undefined;
    ring = new Ring(entries, 4 * entries, setup);
    if (facts.fd >= 0) ring.registerFiles(fds);
    log.debug('io_uring is set up', { setup: ring.setup, entries: ring.sqEntries });
    waiter = new RingWaiter(ring, wakeFd);
    engine =
      facts.direct || facts.writeThrough
        ? ring
        : new PageCacheEngine(ring, new SyncEngine(fds), fds);
  }
  // Of buffered I/O the kernel copies anyway. With a cipher it is our own buffers that are used.
  const registrar = facts.direct ? ring : null;
  let device = stack(facts, engine, requests, registrar, log);
  if (start.lazy) device = lazy(device, start.lazy, queue, engine, requests, ring, log);
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

function stack(
  facts: DiskFacts,
  engine: FileEngine,
  requests: RequestTable,
  registrar: Ring | null,
  log: Log,
): BlockDevice {
  if (facts.fd < 0) return new NullDevice();
  const file = new FileDevice(engine, facts, requests, failureLog(log));
  if (facts.xts !== 0) return new CryptLayer(file, facts.xts, requests, registrar);
  return facts.direct ? new BounceLayer(file, facts, requests) : file;
}

/** A disk whose stripes come from elsewhere, or whose writes are recorded. */
function lazy(
  base: BlockDevice,
  start: LazyStart,
  queue: number,
  engine: FileEngine,
  requests: RequestTable,
  ring: Ring | null,
  log: Log,
): BlockDevice {
  const { image, stripes, queues, options } = start;
  let imageDevice: BlockDevice | null = null;
  if (image) {
    const file = new FileDevice(engine, image, requests, failureLog(log), FILES_PER_DISK);
    imageDevice = image.direct ? new BounceLayer(file, image, requests) : file;
  }
  const shared = new SharedStripes(start.shared, stripes, queues);
  const post = (message: QueueMessage) => answer({ kind: 'stripes', message });
  const release = () => ring?.updateFiles(FILES_PER_DISK, [-1, -1]);
  return new LazyLayer(base, imageDevice, shared, requests, { ...options, queue }, post, release);
}

function pin(cpu: number | undefined, log: Log): void {
  if (cpu === undefined) return;
  const result = shim.ubiblk_pin_thread(cpu);
  if (result < 0)
    log.warn(`not pinned: ${failed(`CPU ${cpu}: sched_setaffinity`, result).message}`);
}

function clamp(value: number, low: number, high: number): number {
  return Math.min(Math.max(value, low), high);
}
