/**
 * A vhost-user-blk server as the main thread sees it: one control thread, one thread for each
 * queue, made once for the life of the process.
 */
import { openLibrary, shim } from '../../../ffi/library.ts';
import { ListeningSocket } from '../../../ffi/listening_socket.ts';
import type { Disk, DiskFacts, IoEngine } from '../../device/disk.ts';
import type { RequestBoard } from '../../device/request_board.ts';
import type { Log, LogSettings } from '../../log.ts';
import type { LazyDisk, LazyStart } from '../../stripe/lazy_disk.ts';
import { workerUrl } from '../../worker_url.ts';
import { Heartbeat } from '../heartbeat.ts';
import { eventFd, Thread } from '../thread.ts';
import { linkBytes, SharedState } from './queue_link.ts';

export interface VhostOptions {
  socketPath: string;
  /** GET_ID's answer, at most 20 bytes of UTF-8. */
  deviceId: string;
  numQueues: number;
  /** Rings up to this size are served, and those up to 1024 in any case. */
  queueSize: number;
  /** Bytes. */
  segSizeMax: number;
  segCountMax: number;
  pollQueueTimeoutUs: number;
  /** One for each queue. */
  cpus?: number[];
  ioEngine: IoEngine;
}

/** What every Worker of a server is told at its start. */
export interface WorkerStart {
  libraryFd: number;
  shared: SharedArrayBuffer;
  facts: DiskFacts;
  options: VhostOptions;
  log: LogSettings;
}

export interface QueueStart extends WorkerStart {
  queue: number;
  wakeFd: number;
  /** Of a `RequestBoard` of `largestRing` places. */
  board: SharedArrayBuffer;
  /** Of a `Heartbeat`. */
  heartbeat: SharedArrayBuffer;
  lazy: LazyStart | null;
}

export interface ControlStart extends WorkerStart {
  wakeFds: number[];
  listenFd: number;
  stopFd: number;
}

const SOCKET_MODE = 0o660;
/** How long reads are waited for at the stop that nothing comes of. */
const READ_PATIENCE_MS = 10_000;
const LOOK_MS = 500;

export class VhostServer {
  /** Resolves where a thread has died of an internal error; never rejects. */
  readonly failed: Promise<Error>;

  constructor(
    private readonly socket: ListeningSocket,
    private readonly stopFd: number,
    private readonly control: Thread,
    threads: readonly Thread[],
    /** Of the queues' threads. */
    readonly heartbeat: Heartbeat,
    private readonly board: RequestBoard,
    private readonly shared: SharedState,
  ) {
    this.failed = Promise.race(threads.map((thread) => thread.failed));
  }

  /** Whether a virtual machine is connected, and whether its writes may stay in a cache. */
  get frontend(): { connected: boolean; writeback: boolean } {
    const { connected, writeback } = this.shared;
    return { connected, writeback };
  }

  /**
   * Takes nothing more, finishes what is in flight, tells the guest, and removes the socket. Resolves
   * when no thread touches the disk any more.
   * @returns the error of a thread that died of it, or hangs, and then others may still use the disk
   */
  async stop(): Promise<Error | undefined> {
    shim.ubiblk_eventfd_signal(this.stopFd);
    const looking = new AbortController();
    const hung = this.readsHang(looking.signal);
    const failure = await Promise.race([this.control.ended, this.failed, hung]);
    looking.abort();
    this.socket.close();
    return failure;
  }

  /**
   * Resolves when for a long time nothing has been in flight but reads: of an image that hangs, for
   * example. What is left of them harms nobody.
   */
  private async readsHang(signal: AbortSignal): Promise<Error> {
    let sinceMs = performance.now();
    let before = '';
    while (!signal.aborted) {
      await Bun.sleep(LOOK_MS);
      const reads = this.board.list().flat();
      const now = JSON.stringify(reads);
      if (now !== before || reads.length === 0 || reads.some(([op]) => op !== 'read')) {
        sinceMs = performance.now();
        before = now;
      } else if (performance.now() - sinceMs >= READ_PATIENCE_MS) {
        const what = reads.length === 1 ? 'a read is' : `${reads.length} reads are`;
        return new Error(`${what} left unanswered: the disk, or its image, hangs`);
      }
    }
    return new Promise(() => {});
  }
}

/**
 * Starts the threads and listens; resolves when a frontend can connect.
 * @param board shows the requests of all queues, as many of each as its ring has places
 * @param lazy the main thread's part of a lazy disk
 * @throws UserError where the socket or the kernel doesn't allow it
 */
export async function startVhostServer(
  disk: Disk,
  options: VhostOptions,
  board: RequestBoard,
  log: Log,
  lazy: LazyDisk | null = null,
): Promise<VhostServer> {
  const libraryFd = openLibrary();
  const shared = new SharedArrayBuffer(linkBytes(options.numQueues));
  const state = new SharedState(shared);
  state.writeback = !disk.facts.writeThrough;
  const start = { libraryFd, shared, facts: disk.facts, options, log: log.settings };
  const socket = ListeningSocket.make(options.socketPath, SOCKET_MODE);
  try {
    const threads: Thread[] = [];
    const wakeFds = Array.from({ length: options.numQueues }, eventFd);
    const heartbeat = new Heartbeat(wakeFds);
    for (const [queue, wakeFd] of wakeFds.entries()) {
      const thread = new Thread(new Worker(queueWorker, { smol: true }), (m) => lazy?.receive(m));
      const forQueue = {
        queue,
        wakeFd,
        board: board.shared,
        heartbeat: heartbeat.shared,
        lazy: lazy?.start ?? null,
      };
      await thread.start({ ...start, ...forQueue } satisfies QueueStart);
      threads.push(thread);
    }
    lazy?.connect((queue) => shim.ubiblk_eventfd_signal(wakeFds[queue]));
    const stopFd = eventFd();
    const control = new Thread(new Worker(controlWorker));
    const forControl = { wakeFds, listenFd: socket.fd, stopFd };
    await control.start({ ...start, ...forControl } satisfies ControlStart);
    threads.push(control);
    log.info(`listening on '${options.socketPath}'`);
    return new VhostServer(socket, stopFd, control, threads, heartbeat, board, state);
  } catch (error) {
    socket.close();
    throw error;
  }
}

const queueWorker = workerUrl('frontend/vhost/queue_worker.ts');
const controlWorker = workerUrl('frontend/vhost/control_worker.ts');
