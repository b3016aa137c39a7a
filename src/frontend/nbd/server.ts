/**
 * An NBD server as the main thread sees it: one thread that accepts, one thread for each queue, made
 * once for the life of the process.
 */
import { openLibrary, shim } from '../../../ffi/library.ts';
import type { Psk } from '../../crypto/tls_psk.ts';
import type { Disk, DiskFacts, IoEngine } from '../../device/disk.ts';
import { MAX_PAYLOAD } from '../../device/nbd/protocol.ts';
import type { RequestBoard } from '../../device/request_board.ts';
import type { Log, LogSettings } from '../../log.ts';
import type { LazyDisk, LazyStart } from '../../stripe/lazy_disk.ts';
import { workerUrl } from '../../worker_url.ts';
import { Heartbeat } from '../heartbeat.ts';
import { maxZeroSectors } from '../limits.ts';
import { eventFd, Thread, type WorkerAnswer } from '../thread.ts';
import { LINK_BYTES, NbdLink, Stay } from './link.ts';
import type { NbdExport } from './negotiation.ts';
import type { QueueShape } from './queue.ts';
import { TlsGate } from './tls_gate.ts';

export interface NbdServerOptions {
  /** A stream socket that listens; it is the caller's to close. */
  listenFd: number;
  exportName: string;
  /** Nothing is written for clients, whatever the disk allows. */
  readOnly: boolean;
  /** Clients must have it. */
  psk?: Psk;
  numQueues: number;
  /** One for each queue. */
  cpus?: readonly number[];
  ioEngine: IoEngine;
}

/** What the thread of a queue is told at its start. */
export interface NbdQueueStart {
  libraryFd: number;
  facts: DiskFacts;
  lazy: LazyStart | null;
  ioEngine: IoEngine;
  queue: number;
  cpu?: number;
  wakeFd: number;
  /** Of a `Heartbeat`. */
  heartbeat: SharedArrayBuffer;
  board: SharedArrayBuffer;
  link: SharedArrayBuffer;
  shape: QueueShape;
  log: LogSettings;
}

export interface AcceptStart {
  libraryFd: number;
  listenFd: number;
  stopFd: number;
  links: SharedArrayBuffer[];
  wakeFds: number[];
  overTls: boolean;
}

export type AcceptAnswer = WorkerAnswer | { kind: 'accepted'; fd: number };

/** How long clients may take at the end for the replies that they wait for. */
const END_PATIENCE_MS = 3000;
const PREFERRED_BLOCK = 4096;
const SECTOR_BYTES = 512;

export class NbdServer {
  /** Resolves where a thread has died of an internal error; never rejects. */
  readonly failed: Promise<Error>;
  private readonly ended: Promise<undefined>;

  constructor(
    private readonly stopFd: number,
    accepting: Thread,
    queues: readonly Thread[],
    private readonly links: readonly NbdLink[],
    private readonly wakeFds: readonly number[],
    readonly heartbeat: Heartbeat,
    private readonly gate: TlsGate | null,
  ) {
    this.failed = Promise.race([accepting, ...queues].map((thread) => thread.failed));
    const all = [accepting, ...queues].map((thread) => thread.ended);
    this.ended = Promise.all(all).then(() => undefined);
  }

  /** Clients that are connected. */
  get connections(): number {
    return this.links.reduce((sum, { open }) => sum + open, 0);
  }

  /**
   * Takes nothing more and answers what is in flight; clients that don't read their replies are waited
   * for a while. Resolves when no thread touches the disk any more.
   * @returns the error of a thread that died of it, and then others may still use the disk
   */
  async stop(): Promise<Error | undefined> {
    shim.ubiblk_eventfd_signal(this.stopFd);
    this.want(Stay.UNTIL_ANSWERED);
    const impatience = setTimeout(() => this.want(Stay.NO_LONGER), END_PATIENCE_MS);
    const failure = await Promise.race([this.ended, this.failed]);
    clearTimeout(impatience);
    this.gate?.close();
    return failure;
  }

  private want(stay: number): void {
    for (const link of this.links) link.stay = stay;
    for (const fd of this.wakeFds) shim.ubiblk_eventfd_signal(fd);
  }
}

/**
 * Starts the threads; resolves when clients are served.
 * @param board shows the requests of all queues, `QUEUE_PLACES` of each
 * @param lazy the main thread's part of a lazy disk
 * @throws UserError where the kernel doesn't allow it
 */
export async function startNbdServer(
  { facts }: Pick<Disk, 'facts'>,
  options: NbdServerOptions,
  board: RequestBoard,
  log: Log,
  lazy: LazyDisk | null = null,
): Promise<NbdServer> {
  const libraryFd = openLibrary();
  const { listenFd, numQueues, cpus, ioEngine, psk } = options;
  shim.ubiblk_set_blocking(listenFd, 0);
  const shared = Array.from({ length: numQueues }, () => new SharedArrayBuffer(LINK_BYTES));
  const links = shared.map((link) => new NbdLink(link));
  const wakeFds = Array.from({ length: numQueues }, eventFd);
  const heartbeat = new Heartbeat(wakeFds);
  const shape = shapeOf(facts, options, lazy !== null);
  const threads: Thread[] = [];
  for (let queue = 0; queue < numQueues; queue++) {
    const thread = new Thread(new Worker(queueWorker, { smol: true }), (m) => lazy?.receive(m));
    await thread.start({
      libraryFd,
      facts,
      lazy: lazy?.start ?? null,
      ioEngine,
      queue,
      ...(cpus && { cpu: cpus[queue] }),
      wakeFd: wakeFds[queue],
      heartbeat: heartbeat.shared,
      board: board.shared,
      link: shared[queue],
      shape,
      log: log.settings,
    } satisfies NbdQueueStart);
    threads.push(thread);
  }
  lazy?.connect((queue) => shim.ubiblk_eventfd_signal(wakeFds[queue]));
  const stopFd = eventFd();
  const gate = psk ? new TlsGate(psk, shape.export, links, wakeFds, log) : null;
  const worker = new Worker(acceptWorker, { smol: true });
  const accepting = new Thread(worker);
  if (gate) {
    worker.addEventListener('message', ({ data }: MessageEvent<AcceptAnswer>) => {
      if (data.kind === 'accepted') void gate.receive(data.fd);
    });
  }
  const overTls = gate !== null;
  const start = { libraryFd, listenFd, stopFd, links: shared, wakeFds, overTls };
  await accepting.start(start satisfies AcceptStart);
  return new NbdServer(stopFd, accepting, threads, links, wakeFds, heartbeat, gate);
}

function shapeOf(facts: DiskFacts, options: NbdServerOptions, hasStripes: boolean): QueueShape {
  const { canPunch, canZeroRange, xts, sizeBytes } = facts;
  // A stripe that is still to be fetched must be before a part of it is zeroed.
  const atOnce = xts === 0 && !hasStripes;
  return {
    export: exportOf(facts, options, hasStripes),
    maxZeroBytes: Math.min(maxZeroSectors(facts) * SECTOR_BYTES, sizeBytes),
    fastZeroes: {
      unmapped: atOnce && (canPunch || canZeroRange),
      kept: atOnce && canZeroRange,
    },
  };
}

function exportOf(facts: DiskFacts, options: NbdServerOptions, hasStripes: boolean): NbdExport {
  const { sizeBytes, xts, physicalBlock } = facts;
  const readOnly = facts.readOnly || options.readOnly;
  return {
    name: options.exportName,
    sizeBytes,
    readOnly,
    // Holes of an encrypted disk would read as noise.
    canTrim: xts === 0 && !readOnly,
    minBlock: SECTOR_BYTES,
    preferredBlock: Math.max(PREFERRED_BLOCK, physicalBlock),
    maxPayload: MAX_PAYLOAD,
    hasStripes,
  };
}

const queueWorker = workerUrl('frontend/nbd/queue_worker.ts');
const acceptWorker = workerUrl('frontend/nbd/accept_worker.ts');
