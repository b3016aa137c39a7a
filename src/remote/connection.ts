/** One connection to a stripe server: it is opened, asked for stripes one after the other, and closed. */
import { splitAddress } from '../config/address.ts';
import type { Psk } from '../crypto/tls_psk.ts';
import { UserError } from '../errors.ts';
import { type Channel, ChannelError, type Memory, nativeMemory } from './channel.ts';
import { Deadline } from './deadline.ts';
import { dialTcp } from './dial.ts';
import {
  HELLO_BYTES,
  LENGTH_BYTES,
  MAX_METADATA_BYTES,
  MIN_METADATA_BYTES,
  OP_HELLO,
  OP_METADATA,
  PROTOCOL_VERSION,
  parseRemoteMetadata,
  READ_STRIPE_BYTES,
  type RemoteStripes,
  readLength,
  STATUS_INVALID_COMMAND,
  STATUS_OK,
  saysNoStripe,
  statusName,
  writeReadStripe,
} from './protocol.ts';

export interface ConnectionOptions {
  /** `host:port`, an IPv6 address in brackets. */
  address: string;
  psk?: Psk;
  /** Milliseconds until hands are shaken and the server has greeted. */
  connectMs: number;
  /** Milliseconds without progress that end an operation. */
  operationMs: number;
}

/** The server has answered, and it says that it doesn't have a stripe, or can't read it. */
export class StripeRefused extends Error {
  constructor(
    readonly status: number,
    stripe: number,
    address: string,
  ) {
    super(`${address} answers ${statusName(status)} to the question for stripe ${stripe}`);
  }
}

const SCRATCH_BYTES = 65536;
/** Each so many bytes of metadata may take as long as an operation may be without progress. */
const METADATA_PIECE = 65536;

const never = new AbortController().signal;

export class StripeConnection {
  private constructor(
    private readonly channel: Channel,
    private readonly address: string,
    /** What the server has. */
    public stripes: RemoteStripes,
    private readonly scratch: ReturnType<typeof nativeMemory>,
  ) {}

  /**
   * Connects, shakes hands, and asks for the server's metadata.
   * @param stop gives it up
   * @throws Error where any of it fails; UserError where trying again can't help
   */
  static async open(options: ConnectionOptions, stop = never): Promise<StripeConnection> {
    const { address, connectMs, operationMs, psk } = options;
    const scratch = nativeMemory(SCRATCH_BYTES);
    let channel: Channel | null = null;
    const silent = (ms: number) => `${address} has not answered in ${ms / 1000} s`;
    let deadline = new Deadline(connectMs, silent(connectMs), stop);
    try {
      const channelOptions = { role: 'client' as const, idleMs: operationMs, ...(psk && { psk }) };
      const server = splitAddress(address);
      channel = await deadline.before(dialTcp(server, channelOptions, deadline.over));
      if (!psk) deadline.message += '; if it wants TLS, give psk_identity and psk_secret';
      await deadline.before(channel.open());
      await deadline.before(greet(channel, scratch, address));
      const length = await deadline.before(askMetadata(channel, scratch, address));
      deadline.clear();
      const ms = operationMs * Math.ceil(length / METADATA_PIECE);
      deadline = new Deadline(ms, silent(ms), stop);
      const stripes = await deadline.before(receiveMetadata(channel, length, address));
      return new StripeConnection(channel, address, stripes, scratch);
    } catch (error) {
      channel?.close();
      scratch.free();
      throw error;
    } finally {
      deadline.clear();
    }
  }

  /** Why the connection is of no use any more. */
  get failure(): Error | null {
    const { channel, address } = this;
    if (!channel.failure && channel.hasInput) {
      channel.close(`${address} has ended the connection, or sent what nobody asked for`);
    }
    return channel.failure;
  }

  /**
   * Fetches a stripe. Until it has been received, what is in the buffer is nothing.
   * @param length of its beginning that is wanted, in `buffer`
   * @throws ChannelError where the connection is of no use any more; StripeRefused
   */
  async readStripe(stripe: number, buffer: Memory, length: number): Promise<void> {
    const { channel, scratch, address, failure } = this;
    if (failure) throw failure;
    writeReadStripe(scratch.bytes, stripe);
    await channel.send(scratch, 0, READ_STRIPE_BYTES);
    await channel.receive(scratch, 0, 1);
    const status = scratch.bytes[0];
    if (saysNoStripe(status)) throw new StripeRefused(status, stripe, address);
    if (status !== STATUS_OK) throw this.broken(`answers ${statusName(status)} to a question`);
    await channel.receive(scratch, 0, LENGTH_BYTES);
    const whole = readLength(scratch.bytes);
    const { stripeBytes } = this.stripes;
    if (whole !== stripeBytes) {
      throw this.broken(`has sent a stripe of ${whole} bytes instead of ${stripeBytes}`);
    }
    await channel.receive(buffer, 0, length);
    for (let left = whole - length; left > 0; left -= SCRATCH_BYTES) {
      await channel.receive(scratch, 0, Math.min(left, SCRATCH_BYTES));
    }
  }

  /** The server doesn't keep to the protocol: nothing that it sends on this connection is believed. */
  private broken(what: string): ChannelError {
    const error = new ChannelError(`${this.address} ${what}`);
    this.channel.close(error.message);
    return error;
  }

  close(): void {
    this.channel.close();
    this.scratch.free();
  }
}

/** Servers of the older generation know no greeting, and say so. */
async function greet(channel: Channel, scratch: Memory, address: string): Promise<void> {
  scratch.bytes[0] = OP_HELLO;
  await channel.send(scratch, 0, 1);
  await channel.receive(scratch, 0, 1);
  const status = scratch.bytes[0];
  if (status === STATUS_INVALID_COMMAND) return;
  if (status !== STATUS_OK) throw notOurs(address, `answers ${statusName(status)} to a greeting`);
  await channel.receive(scratch, 0, HELLO_BYTES);
  const version = new DataView(scratch.bytes.buffer).getUint32(0, true);
  if (version === PROTOCOL_VERSION) return;
  throw notOurs(address, `speaks version ${version} of the protocol, not ${PROTOCOL_VERSION}`);
}

/** @returns how many bytes of it there are, which follow */
async function askMetadata(channel: Channel, scratch: Memory, address: string): Promise<number> {
  scratch.bytes[0] = OP_METADATA;
  await channel.send(scratch, 0, 1);
  await channel.receive(scratch, 0, 1);
  const status = scratch.bytes[0];
  if (status !== STATUS_OK) {
    throw notOurs(address, `answers ${statusName(status)} to the question for its metadata`);
  }
  await channel.receive(scratch, 0, LENGTH_BYTES);
  const length = readLength(scratch.bytes);
  if (length < MIN_METADATA_BYTES || length > MAX_METADATA_BYTES) {
    throw notOurs(address, `has ${length} bytes of metadata, which can't be`);
  }
  return length;
}

async function receiveMetadata(
  channel: Channel,
  length: number,
  address: string,
): Promise<RemoteStripes> {
  const blob = nativeMemory(length);
  try {
    await channel.receive(blob, 0, length);
    return parseRemoteMetadata(blob.bytes.slice(), address);
  } finally {
    blob.free();
  }
}

function notOurs(address: string, what: string): UserError {
  return new UserError(`${address} ${what}; is it a stripe server?`);
}
