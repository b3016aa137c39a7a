/**
 * Serves the NBD connections of one queue thread: their sockets and the disk share one ring, so that one
 * system call hands over replies and I/O and brings what is new. Allocates only for new connections.
 */
import { shim } from '../../../ffi/library.ts';
import type { Ring } from '../../../ffi/ring.ts';
import { NbdDevice } from '../../device/nbd/nbd_device.ts';
import type { BlockDevice, RequestTable } from '../../device/request.ts';
import type { QueueBoard } from '../../device/request_board.ts';
import type { Log } from '../../log.ts';
import type { BlockStatus } from './block_status.ts';
import { CONNECTION_SLOTS, type ConnectionHost, NbdConnection } from './connection.ts';
import { MOST_CONNECTIONS, NbdLink, Stay } from './link.ts';
import type { NbdExport } from './negotiation.ts';

/** Places of a queue on the board of requests. */
export const QUEUE_PLACES = MOST_CONNECTIONS * CONNECTION_SLOTS;

/** A client that hasn't agreed on anything after so long has no place where others need it. */
const NEGOTIATION_NS = 10e9;

/** Clients' faults that are told as warnings. */
const MOST_TOLD = 10;

/** What a queue needs to know of its disk. */
export interface QueueShape {
  export: NbdExport;
  maxZeroBytes: number;
  /** Of `ConnectionHost.fastZeroes`. */
  fastZeroes: { unmapped: boolean; kept: boolean };
}

export class NbdQueue implements ConnectionHost {
  readonly export: NbdExport;
  readonly maxZeroBytes: number;
  readonly remote: NbdDevice | null;
  nowNs = 0;
  private readonly open = new Set<NbdConnection>();
  private readonly free: NbdConnection[] = [];
  private made = 0;
  private withOutput: NbdConnection[] = [];
  private told = 0;
  private problems = 0;

  /**
   * @param device the top of the queue's own device stack
   * @param ring carries sockets and I/O, and a poll of what wakes the queue
   */
  constructor(
    readonly device: BlockDevice,
    readonly ring: Ring,
    readonly table: RequestTable,
    readonly board: QueueBoard,
    readonly status: BlockStatus,
    private readonly shape: QueueShape,
    private readonly link: NbdLink,
    private readonly log: Log,
  ) {
    this.export = shape.export;
    this.maxZeroBytes = shape.maxZeroBytes;
    this.remote = device instanceof NbdDevice && device.tellsExtents ? device : null;
    board.reset(QUEUE_PLACES);
  }

  /** Serves until it is to end and no connection is left. */
  run(): void {
    const { device, ring } = this;
    for (;;) {
      this.nowNs = shim.ubiblk_clock_ns();
      device.receive?.();
      this.obey();
      for (let i = 0; i < this.withOutput.length; i++) this.withOutput[i].flush();
      this.withOutput.length = 0;
      if (this.told !== Stay.SERVE && this.open.size === 0) break;
      ring.enter(1, -1);
      this.nowNs = shim.ubiblk_clock_ns();
      ring.reap();
    }
    // What was prepared last is handed over.
    ring.enter(0, 0);
  }

  fastZeroes(mayUnmap: boolean): boolean {
    const { unmapped, kept } = this.shape.fastZeroes;
    return mayUnmap ? unmapped : kept;
  }

  hasOutput(connection: NbdConnection): void {
    this.withOutput.push(connection);
  }

  released(connection: NbdConnection): void {
    this.open.delete(connection);
    this.free.push(connection);
    this.link.closed();
  }

  problem(words: string): void {
    // Whoever floods the server must not flood its log.
    if (this.problems++ < MOST_TOLD) this.log.warn(words);
    else this.log.debug(words);
  }

  private obey(): void {
    const { link } = this;
    for (let value = link.take(); value >= 0; value = link.take()) this.begin(value);
    if (this.open.size === MOST_CONNECTIONS) this.makeRoom();
    const { stay } = link;
    if (stay === this.told) return;
    this.told = stay;
    for (const connection of [...this.open]) {
      if (stay === Stay.UNTIL_ANSWERED) connection.leave();
      else connection.cut();
    }
    if (stay === Stay.NO_LONGER) this.device.failWaiting?.();
  }

  private makeRoom(): void {
    for (const connection of [...this.open]) {
      const since = connection.negotiatingSince;
      if (since !== null && this.nowNs - since > NEGOTIATION_NS) connection.cut();
    }
  }

  private begin(value: number): void {
    const fd = NbdLink.fdOf(value);
    if (this.told !== Stay.SERVE || this.open.size === MOST_CONNECTIONS) {
      shim.ubiblk_close(fd);
      this.link.closed();
      return;
    }
    const connection = this.free.pop() ?? new NbdConnection(this, this.made++ * CONNECTION_SLOTS);
    this.open.add(connection);
    connection.open(fd, NbdLink.bitsOf(value));
  }
}
