/** A ublk device's server as the main thread sees it: the control thread, one thread for each queue. */
import { openLibrary, shim } from '../../../ffi/library.ts';
import type { DiskFacts, IoEngine } from '../../device/disk.ts';
import type { RequestBoard } from '../../device/request_board.ts';
import type { Log, LogSettings } from '../../log.ts';
import type { LazyDisk, LazyStart } from '../../stripe/lazy_disk.ts';
import { workerUrl } from '../../worker_url.ts';
import { Heartbeat } from '../heartbeat.ts';
import { eventFd, Thread } from '../thread.ts';
import type { UblkControlThread } from './control_thread.ts';
import { recoveryOf } from './modes.ts';
import type { UblkDevice } from './options.ts';
import { hasFeature } from './protocol.ts';
import { Stay } from './queue.ts';

/** What the thread of a queue is told at its start. */
export interface UblkQueueStart {
  libraryFd: number;
  facts: DiskFacts;
  lazy: LazyStart | null;
  ioEngine: IoEngine;
  device: UblkDevice;
  queue: number;
  /** The processor that it is pinned to. */
  cpu?: number;
  wakeFd: number;
  /** Of a `RequestBoard` of as many places as the device's queues are deep. */
  board: SharedArrayBuffer;
  /** Of a `Heartbeat`. */
  heartbeat: SharedArrayBuffer;
  /** One number, of `Stay`. */
  wanted: SharedArrayBuffer;
  log: LogSettings;
}

export interface ServedWith {
  facts: DiskFacts;
  ioEngine: IoEngine;
  cpus?: readonly number[];
}

/** How long requests may take to end before a device is left with them. */
const LEAVE_MS = 5000;

export class UblkServer {
  /** Resolves where a thread has died of an internal error; never rejects. */
  readonly failed: Promise<Error>;
  /** Resolves when no queue is served any more, for whatever reason. */
  readonly ended: Promise<undefined>;

  constructor(
    private readonly control: UblkControlThread,
    private readonly device: UblkDevice,
    threads: readonly Thread[],
    /** Of the queues' threads. */
    readonly heartbeat: Heartbeat,
    private readonly wanted: Int32Array,
    private readonly wakeFds: readonly number[],
  ) {
    this.failed = Promise.race(threads.map((thread) => thread.failed));
    this.ended = Promise.all(threads.map((thread) => thread.ended)).then(() => undefined);
  }

  /**
   * Takes the block device away when its requests are done; then it can be deleted.
   * @returns the error of a thread that died of it, and then others may still use the disk
   */
  async stop(): Promise<Error | undefined> {
    const stopped = this.control.call('stop', this.device.info.id).then(() => this.ended);
    return await Promise.race([stopped, this.failed]);
  }

  /**
   * Removes a device whose queues have ended.
   * @param held others still have it open, and are not waited for
   * @returns false where it is only gone when they let go of it, and it is deleted once more
   */
  async delete(held: boolean): Promise<boolean> {
    return await this.control.call('delete', this.device, held);
  }

  /**
   * Ends the queues and leaves the device, with what others have asked of it, to a successor. It is
   * let go of when the process ends.
   * @returns the error of a thread that died of it
   */
  async leave(): Promise<Error | undefined> {
    const { id, flags } = this.device.info;
    const quiesced =
      hasFeature(flags, 'QUIESCE') && (await this.control.call('quiesce', id, LEAVE_MS));
    // Where the kernel would fail what comes while nobody serves, it is served until nothing comes.
    if (!quiesced && recoveryOf(flags) !== 'reissue') {
      this.want(Stay.UNTIL_IDLE);
      await Promise.race([this.ended, this.failed, Bun.sleep(LEAVE_MS)]);
    }
    this.want(Stay.NO_LONGER);
    return await Promise.race([this.ended, this.failed]);
  }

  private want(stay: number): void {
    Atomics.store(this.wanted, 0, stay);
    for (const fd of this.wakeFds) shim.ubiblk_eventfd_signal(fd);
  }
}

/**
 * Starts a thread for each queue of a device that was attached; then `start` shows the block device.
 * @param board shows the requests of all queues
 * @param lazy the main thread's part of a lazy disk
 * @throws UserError or Error where a thread can't be started
 */
export async function startUblkQueues(
  control: UblkControlThread,
  device: UblkDevice,
  { facts, ioEngine, cpus }: ServedWith,
  board: RequestBoard,
  lazy: LazyDisk | null,
  log: Log,
): Promise<UblkServer> {
  const wanted = new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
  const wakeFds = Array.from({ length: device.info.queues }, eventFd);
  const threads = wakeFds.map(
    () => new Thread(new Worker(queueWorker, { smol: true }), (message) => lazy?.receive(message)),
  );
  const heartbeat = new Heartbeat(wakeFds);
  const stay = new Int32Array(wanted);
  const server = new UblkServer(control, device, threads, heartbeat, stay, wakeFds);
  lazy?.connect((queue) => shim.ubiblk_eventfd_signal(wakeFds[queue]));
  for (const [queue, thread] of threads.entries()) {
    const start = {
      libraryFd: openLibrary(),
      facts,
      lazy: lazy?.start ?? null,
      ioEngine,
      device,
      queue,
      ...(cpus && { cpu: cpus[queue] }),
      wakeFd: wakeFds[queue],
      board: board.shared,
      heartbeat: heartbeat.shared,
      wanted,
      log: log.settings,
    } satisfies UblkQueueStart;
    await thread.start(start).catch(async (error) => {
      if (!device.recovered) await discard(control, device, threads.slice(0, queue), log);
      throw error;
    });
  }
  return server;
}

/** Deletes a device that was not shown, some of whose queues are served already. */
async function discard(
  control: UblkControlThread,
  device: UblkDevice,
  serving: readonly Thread[],
  log: Log,
): Promise<void> {
  log.debug('the device is removed again: a queue of it could not be started');
  await control.call('stop', device.info.id);
  await Promise.all(serving.map((thread) => thread.ended));
  await control.call('delete', device, false);
}

const queueWorker = workerUrl('frontend/ublk/queue_worker.ts');
