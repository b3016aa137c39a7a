/**
 * An export of an NBD server as a disk without a file, for the main thread: it connects for each queue,
 * shakes hands, gives the queue the socket, and does so again when the queue has lost it.
 */

import { openLibrary, shim } from '../../ffi/library.ts';
import { parseNbdUri } from '../config/nbd_uri.ts';
import { Disk, nullFacts } from '../device/disk.ts';
import {
  CAN_MULTI_CONN,
  type ExportFacts,
  READ_ONLY,
  SEND_TRIM,
  SEND_WRITE_ZEROES,
} from '../device/nbd/protocol.ts';
import { QueueLine, queueLineBytes } from '../device/nbd/queue_line.ts';
import { UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { type Channel, nativeMemory } from '../remote/channel.ts';
import { adopt } from '../remote/dial.ts';
import { backoffMs } from '../stripe/backoff.ts';
import { type NbdOptions, openNbdChannel } from './connection.ts';
import { readPskFile } from './psk_file.ts';
import { relay } from './tls_relay.ts';

const CONNECT_MS = 10_000;
const FIRST_DELAY_MS = 100;
const LAST_DELAY_MS = 10_000;
/** A connection that has ended before is as good as none, in milliseconds. */
const SOON_MS = 1000;
/** So many of them in a row are told. */
const MANY_SOON = 3;
const MAX_LOGICAL_BLOCK = 4096;
const NOTE_BYTES = 4096;

export class NbdDisk extends Disk {
  private readonly stop = new AbortController();
  private readonly lines: QueueLine[];
  private readonly connecting = new Set<number>();
  /** When each queue was given its connection, and how many have ended soon in a row. */
  private readonly givenMs: number[] = [];
  private readonly soon: number[] = [];
  private notes: Channel | null = null;

  private constructor(
    private readonly options: NbdOptions,
    private readonly nbd: ExportFacts,
    readonly queues: number,
    start: { lines: SharedArrayBuffer; eventFds: number[]; lostFd: number },
    readOnly: boolean,
    private readonly log: Log,
  ) {
    super(options.place.uri, {
      ...nullFacts(nbd.sizeBytes),
      nbd: { facts: nbd, ...start },
      readOnly: readOnly || (nbd.flags & READ_ONLY) !== 0,
      logicalBlock: Math.max(512, nbd.minBlock),
      physicalBlock: Math.min(MAX_LOGICAL_BLOCK, Math.max(512, nbd.preferredBlock)),
      canPunch: (nbd.flags & SEND_TRIM) !== 0,
      canZeroRange: (nbd.flags & SEND_WRITE_ZEROES) !== 0,
    });
    this.lines = start.eventFds.map((_, queue) => new QueueLine(start.lines, queue));
  }

  /**
   * Connects for each queue; where the server allows one connection alone, there is one queue.
   * @throws UserError
   */
  static async open(uri: string, queues: number, readOnly: boolean, log: Log): Promise<NbdDisk> {
    openLibrary();
    const place = parseNbdUri(uri);
    const psk = place.tls ? readPskFile(place.pskFile as string, place.user) : undefined;
    const options = { place, ...(psk && { psk }), connectMs: CONNECT_MS, operationMs: CONNECT_MS };
    try {
      const first = await openNbdChannel(options);
      const { facts } = first;
      checkFacts(facts, uri);
      const count = (facts.flags & CAN_MULTI_CONN) !== 0 ? queues : 1;
      const fds = new Int32Array(2);
      if (shim.ubiblk_socket_pair(fds) < 0)
        throw new UserError("no descriptor is left; raise 'ulimit -n'");
      const start = {
        lines: new SharedArrayBuffer(queueLineBytes(count)),
        eventFds: Array.from({ length: count }, () => shim.ubiblk_eventfd()),
        lostFd: fds[1],
      };
      const disk = new NbdDisk(options, facts, count, start, readOnly, log);
      await disk.give(0, first.channel);
      for (let queue = 1; queue < count; queue++) {
        await disk.give(queue, (await openNbdChannel(options)).channel);
      }
      shim.ubiblk_set_blocking(fds[1], 0);
      disk.watch(fds[0]);
      return disk;
    } catch (error) {
      psk?.secret.wipe();
      if (error instanceof UserError) throw error;
      throw new UserError(`the NBD server can't be used: ${(error as Error).message}`);
    }
  }

  /** What clients have flushed is with the server. */
  override sync(): void {}

  override close(): void {
    this.stop.abort();
    this.notes?.close();
    this.options.psk?.secret.wipe();
  }

  /** Looks for lost connections whenever a queue says so. */
  private async watch(fd: number): Promise<void> {
    shim.ubiblk_set_blocking(fd, 0);
    const notes = await adopt(fd, { role: 'client', idleMs: CONNECT_MS });
    this.notes = notes;
    const memory = nativeMemory(NOTE_BYTES);
    try {
      for (;;) {
        await notes.receiveSome(memory, NOTE_BYTES);
        for (const [queue, line] of this.lines.entries()) {
          if (line.isLost) void this.reconnect(queue);
        }
      }
    } catch {
      // The disk is closed.
    } finally {
      memory.free();
    }
  }

  private async reconnect(queue: number): Promise<void> {
    if (this.connecting.has(queue)) return;
    this.connecting.add(queue);
    const { uri } = this.options.place;
    await this.restAfterSoon(queue, uri);
    for (let attempt = 1; !this.stop.signal.aborted; attempt++) {
      try {
        const { channel, facts } = await openNbdChannel(this.options, this.stop.signal);
        if (!sameExport(facts, this.nbd)) {
          channel.close();
          throw new Error('it is another export now');
        }
        this.connecting.delete(queue);
        if (attempt > 1) this.log.info(`queue ${queue} is connected to ${uri} again`);
        await this.give(queue, channel);
        return;
      } catch (error) {
        if (attempt === 1) {
          const why = (error as Error).message;
          this.log.warn(`${uri} is away, requests wait for it: ${why}`);
        }
        await Bun.sleep(backoffMs(attempt, FIRST_DELAY_MS, LAST_DELAY_MS));
      }
    }
  }

  /** A server that ends each connection, or whose replies are none, is not asked without end. */
  private async restAfterSoon(queue: number, uri: string): Promise<void> {
    const livedMs = performance.now() - this.givenMs[queue];
    const soon = livedMs < SOON_MS ? (this.soon[queue] ?? 0) + 1 : 0;
    this.soon[queue] = soon;
    if (soon === MANY_SOON) {
      this.log.warn(
        `${uri} ends its connections soon, or doesn't keep to the protocol; requests wait`,
      );
    }
    if (soon > 0) await Bun.sleep(backoffMs(soon, FIRST_DELAY_MS, LAST_DELAY_MS));
  }

  /** Gives a queue its socket; of TLS main keeps the one end. */
  private async give(queue: number, channel: Channel): Promise<void> {
    let fd: number;
    if (this.options.psk) {
      const fds = new Int32Array(2);
      if (shim.ubiblk_socket_pair(fds) < 0) throw new Error('no descriptor is left');
      fd = fds[1];
      void relay(channel, fds[0]);
    } else {
      fd = channel.detach();
    }
    this.givenMs[queue] = performance.now();
    this.lines[queue].give(fd);
    shim.ubiblk_eventfd_signal(this.facts.nbd?.eventFds[queue] ?? -1);
  }
}

/** Whether a queue that knows the one can go on with the other. */
function sameExport(one: ExportFacts, other: ExportFacts): boolean {
  const parts = [
    'sizeBytes',
    'flags',
    'minBlock',
    'maxPayload',
    'structured',
    'allocationId',
  ] as const;
  return parts.every((part) => one[part] === other[part]);
}

function checkFacts({ sizeBytes, minBlock }: ExportFacts, uri: string): void {
  if (sizeBytes === 0 || sizeBytes % 512 !== 0) {
    throw new UserError(`'${uri}' has ${sizeBytes} bytes, which is no multiple of 512 above 0`);
  }
  if (minBlock > MAX_LOGICAL_BLOCK) {
    throw new UserError(
      `'${uri}' takes blocks of ${minBlock} bytes; more than 4096 can't be served`,
    );
  }
}
