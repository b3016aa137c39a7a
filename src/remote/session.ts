/** A stripe server's side of one connection: reads requests and answers them, one after the other. */
import { isErrno } from '../errors.ts';
import type { Log } from '../log.ts';
import type { Channel, Memory } from './channel.ts';
import {
  OP_HELLO,
  OP_METADATA,
  OP_READ_STRIPE,
  PROTOCOL_VERSION,
  readLength,
  STATUS_INVALID_COMMAND,
  STATUS_INVALID_STRIPE,
  STATUS_NO_DATA,
  STATUS_NOT_FETCHED,
  STATUS_OK,
  STATUS_SERVER_ERROR,
  writeLength,
} from './protocol.ts';
import type { ServedStripes } from './served_disk.ts';

/** Memory that sessions share. */
export interface SharedMemory {
  take(): Promise<Memory>;
  giveBack(memory: Memory): void;
}

/** Bytes that are read and sent at a time. */
export const PIECE_BYTES = 128 * 1024;
/** How long the source of a served disk may take for a stripe, in milliseconds. */
const SOURCE_MS = 30_000;

export interface SessionCounts {
  /** Stripes and bytes that were sent to all clients. */
  stripes: number;
  bytes: number;
}

export class StripeSession {
  /** Whether a request is being answered. */
  busy = false;
  private next = -1;
  /** Whether the client has greeted, as those of the newer generation do. */
  private greeted = false;

  /**
   * @param scratch of this session alone, for requests and short answers
   * @param piece of this session alone, PIECE_BYTES long, for what is sent
   * @param whole memory for stripes that come from the disk's own source
   */
  constructor(
    private readonly channel: Channel,
    private readonly served: ServedStripes,
    private readonly scratch: Memory,
    private readonly piece: Memory,
    private readonly whole: SharedMemory,
    private readonly counts: SessionCounts,
    private readonly log: Log,
  ) {}

  /**
   * Serves until the client goes away or breaks the protocol, or the server is to end.
   * @throws ChannelError
   */
  async run(mustEnd: () => boolean): Promise<void> {
    const { channel, scratch } = this;
    while (!mustEnd()) {
      // A client may need nothing for days.
      await channel.receive(scratch, 0, 1, true);
      this.busy = true;
      const op = scratch.bytes[0];
      if (op === OP_READ_STRIPE) await this.readStripe();
      else if (op === OP_METADATA) await this.sendMetadata();
      else if (op === OP_HELLO) await this.greet();
      else await this.sendStatus(STATUS_INVALID_COMMAND);
      this.busy = false;
    }
  }

  private async sendStatus(status: number): Promise<void> {
    this.scratch.bytes[0] = status;
    await this.channel.send(this.scratch, 0, 1);
  }

  private async greet(): Promise<void> {
    this.greeted = true;
    const { bytes } = this.scratch;
    bytes[0] = STATUS_OK;
    new DataView(bytes.buffer, bytes.byteOffset).setUint32(1, PROTOCOL_VERSION, true);
    await this.channel.send(this.scratch, 0, 5);
  }

  /** Each generation of clients reads its own version alone. */
  private async sendMetadata(): Promise<void> {
    const { channel, scratch } = this;
    const blob = this.served.metadata(this.greeted ? 2 : 1);
    scratch.bytes[0] = STATUS_OK;
    writeLength(scratch.bytes.subarray(1), blob.length);
    await channel.send(scratch, 0, 9);
    for (let at = 0; at < blob.length; at += scratch.bytes.length) {
      const part = blob.subarray(at, at + scratch.bytes.length);
      scratch.bytes.set(part);
      await channel.send(scratch, 0, part.length);
    }
  }

  private async readStripe(): Promise<void> {
    const { channel, scratch, served } = this;
    await channel.receive(scratch, 0, 8);
    const stripe = readLength(scratch.bytes);
    if (stripe >= served.stripes) {
      await this.sendStatus(STATUS_INVALID_STRIPE);
      return;
    }
    const place = served.place(stripe);
    if (place === 'not fetched') await this.sendStatus(STATUS_NOT_FETCHED);
    else if (place === 'nowhere') await this.sendStatus(STATUS_NO_DATA);
    else if (place === 'source') await this.sendFromSource(stripe);
    else await this.sendFromDisk(stripe);
    this.next = stripe + 1;
  }

  private async sendFromDisk(stripe: number): Promise<void> {
    const { served, channel, piece } = this;
    const { reader, stripeBytes } = served;
    const start = stripe * stripeBytes;
    const length = served.lengthOf(stripe);
    // A client that goes through the disk will want the one after, too.
    if (stripe === this.next && stripe + 1 < served.stripes) {
      reader.expect(start + stripeBytes, served.lengthOf(stripe + 1));
    }
    for (let at = 0, part = 0; at < stripeBytes; at += part) {
      if (at > 0) at += await this.sendFromFile(start + at, length - at);
      // Also where the socket was full: a send by Bun waits until it has room again.
      part = Math.min(PIECE_BYTES, stripeBytes - at);
      const there = Math.max(0, Math.min(part, length - at));
      if (there > 0 && !(await this.readPiece(start + at, there, at === 0, stripe))) return;
      // Behind the end of the disk everybody sees zeroes.
      if (there < part) piece.bytes.fill(0, there, part);
      if (at === 0) await this.sendHeader();
      await channel.send(piece, 0, part);
    }
    this.count();
  }

  /** @returns how many bytes could be sent without a copy; all failures are left to what reads them */
  private async sendFromFile(offset: number, length: number): Promise<number> {
    const { plainFd } = this.served.reader;
    if (plainFd === undefined || length <= 0) return 0;
    return await this.channel.sendFile(plainFd, offset, length);
  }

  /** @returns false where it can't be read, which the client has been told, or the connection ended */
  private async readPiece(
    offset: number,
    length: number,
    first: boolean,
    stripe: number,
  ): Promise<boolean> {
    try {
      await this.served.reader.read(offset, this.piece, length);
      return true;
    } catch (error) {
      if (!isErrno(error)) throw error;
      this.log.error(`stripe ${stripe} can't be read: ${error.message}`);
      if (first) await this.sendStatus(STATUS_SERVER_ERROR);
      // An answer that was begun can't be taken back.
      else this.channel.close('a stripe could not be read to its end');
      return false;
    }
  }

  private async sendFromSource(stripe: number): Promise<void> {
    const { served, channel, whole } = this;
    const source = served.source as NonNullable<ServedStripes['source']>;
    const memory = await whole.take();
    try {
      const length = served.lengthOf(stripe);
      const part = { address: memory.address, bytes: memory.bytes.subarray(0, length) };
      let filled: boolean;
      try {
        filled = await source.read(stripe, part, AbortSignal.timeout(SOURCE_MS));
      } catch (error) {
        this.log.warn(`stripe ${stripe} can't be fetched: ${(error as Error).message}`);
        await this.sendStatus(STATUS_SERVER_ERROR);
        return;
      }
      memory.bytes.fill(0, filled ? length : 0);
      await this.sendHeader();
      await channel.send(memory, 0, served.stripeBytes);
    } finally {
      whole.giveBack(memory);
    }
    this.count();
  }

  private async sendHeader(): Promise<void> {
    const { scratch } = this;
    scratch.bytes[0] = STATUS_OK;
    writeLength(scratch.bytes.subarray(1), this.served.stripeBytes);
    await this.channel.send(scratch, 0, 9);
  }

  private count(): void {
    this.counts.stripes++;
    this.counts.bytes += this.served.stripeBytes;
  }
}
