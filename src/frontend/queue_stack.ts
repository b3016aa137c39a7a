/** What a queue's thread puts between its front end and the disk. */
import { failed } from '../../ffi/errno.ts';
import { shim } from '../../ffi/library.ts';
import { type Ring, RingForbidden } from '../../ffi/ring.ts';
import { BounceLayer } from '../device/bounce.ts';
import { CryptLayer, InPlaceCryptLayer } from '../device/crypt.ts';
import type { DiskFacts, IoEngine } from '../device/disk.ts';
import { failureLog } from '../device/failure_log.ts';
import { FILES_PER_DISK, FileDevice, type FileEngine } from '../device/file_device.ts';
import { IoLog } from '../device/io_log.ts';
import { NbdDevice } from '../device/nbd/nbd_device.ts';
import { NullDevice } from '../device/null_device.ts';
import { PageCacheEngine } from '../device/page_cache_engine.ts';
import { RecordLayer } from '../device/record_layer.ts';
import type { BlockDevice, RequestTable } from '../device/request.ts';
import { SyncEngine } from '../device/sync_engine.ts';
import { UnsyncedLayer } from '../device/unsynced.ts';
import type { Log } from '../log.ts';
import type { LazyStart } from '../stripe/lazy_disk.ts';
import { LazyLayer } from '../stripe/lazy_layer.ts';
import { type QueueMessage, SharedStripes } from '../stripe/shared_state.ts';
import type { Pulse } from './heartbeat.ts';
import type { WorkerAnswer } from './thread.ts';

/** A disk as one queue uses it. */
export interface QueueDisk {
  queue: number;
  facts: DiskFacts;
  lazy: LazyStart | null;
  /**
   * Whether data comes in memory of this process alone, aligned to pages: then it need not be copied,
   * and is ciphered where it is.
   */
  ownMemory: boolean;
  /** Puts a layer on what is below that brings the data of requests into memory. */
  carry?: (below: BlockDevice, requests: RequestTable) => BlockDevice;
}

/** The files that the queue's engine has, by their numbers; -1 where there is none. */
export function queueFiles({ facts, lazy }: Pick<QueueDisk, 'facts' | 'lazy'>): number[] {
  const fds = [facts.fd, facts.bufferedFd];
  if (lazy?.image) fds.push(lazy.image.fd, lazy.image.bufferedFd);
  return fds;
}

/**
 * Builds the stack, with what is only for debugging on its top.
 * @param registrar what buffers for direct I/O are registered with, null where that gains nothing
 * @param post sends a message to main
 */
export function queueStack(
  disk: QueueDisk,
  engine: FileEngine,
  ring: Ring | null,
  requests: RequestTable,
  registrar: Ring | null,
  post: (answer: WorkerAnswer) => void,
  log: Log,
): BlockDevice {
  const { facts, lazy, queue, carry = (below) => below } = disk;
  const base = carry(baseStack(disk, engine, ring, requests, registrar, log), requests);
  if (!lazy) return withDebugging(facts, base, requests, log);
  const { image, stripes, queues, options } = lazy;
  let imageDevice: BlockDevice | null = null;
  if (image) {
    const file = new FileDevice(engine, image, requests, failureLog(log), FILES_PER_DISK);
    const aligned = disk.ownMemory || !image.direct;
    imageDevice = carry(aligned ? file : new BounceLayer(file, image, requests), requests);
  }
  const shared = new SharedStripes(lazy.shared, stripes, queues);
  const tell = (message: QueueMessage) => post({ kind: 'stripes', message });
  const release = () => ring?.updateFiles(FILES_PER_DISK, [-1, -1]);
  const own = { ...options, queue };
  const lazyLayer = new LazyLayer(base, imageDevice, shared, requests, own, tell, release);
  return withDebugging(facts, lazyLayer, requests, log);
}

function withDebugging(
  { skipSync, ioLog }: DiskFacts,
  stack: BlockDevice,
  requests: RequestTable,
  log: Log,
): BlockDevice {
  const below = skipSync ? new UnsyncedLayer(stack) : stack;
  if (!ioLog) return below;
  const tellEnd = (reason: string) => {
    log.error(`the I/O log can't be written any more and ends here: ${reason}`);
  };
  return new RecordLayer(below, requests, new IoLog(ioLog, tellEnd));
}

function baseStack(
  { facts, ownMemory, queue }: QueueDisk,
  engine: FileEngine,
  ring: Ring | null,
  requests: RequestTable,
  registrar: Ring | null,
  log: Log,
): BlockDevice {
  if (facts.nbd && ring) return new NbdDevice(ring, facts.nbd, queue, failureLog(log));
  if (facts.fd < 0) return new NullDevice();
  const file = new FileDevice(engine, facts, requests, failureLog(log));
  if (facts.xts !== 0) {
    const crypt = new CryptLayer(file, facts.xts, requests, registrar);
    return ownMemory ? new InPlaceCryptLayer(file, crypt, facts.xts, requests) : crypt;
  }
  return facts.direct && !ownMemory ? new BounceLayer(file, facts, requests) : file;
}

/** What does the I/O of a queue that has a ring in any case. */
export function engineBeside(
  ring: Ring,
  { facts, ioEngine }: { facts: DiskFacts; ioEngine: IoEngine },
  fds: readonly number[],
  pulse: Pulse,
): FileEngine {
  if (ioEngine === 'sync') return new SyncEngine(fds, () => pulse.answer());
  if (facts.direct || facts.writeThrough) return ring;
  return new PageCacheEngine(ring, new SyncEngine(fds), fds);
}

/** Names the calling thread, and pins it where the configuration says so. */
export function prepareThread(queue: number, cpu: number | undefined, log: Log): void {
  shim.ubiblk_name_thread(Buffer.from(`queue ${queue}\0`));
  if (cpu === undefined) return;
  const result = shim.ubiblk_pin_thread(cpu);
  if (result < 0)
    log.warn(`not pinned: ${failed(`CPU ${cpu}: sched_setaffinity`, result).message}`);
}

/**
 * What a thread that can't start tells main.
 * @param instead what the user can do where io_uring is forbidden, besides allowing it
 */
export function refusal(error: Error, instead: string): WorkerAnswer {
  if (!(error instanceof RingForbidden)) {
    return { kind: 'refused', message: error.message, user: error.name === 'UserError' };
  }
  return {
    kind: 'refused',
    message:
      `io_uring can't be used here (${error.message}); allow it (sysctl kernel.io_uring_disabled, ` +
      `the container's seccomp profile)${instead}`,
    user: true,
  };
}
