/** One connection to a stripe server: it is opened, asked for stripes one after the other, and closed. */
import { lookup } from 'node:dns/promises';
import type { Socket } from 'bun';
import type { Psk } from '../crypto/tls_psk.ts';
import { errorName, UserError } from '../errors.ts';
import { Channel, ChannelError, type Memory, nativeMemory } from './channel.ts';
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
  statusName,
  writeReadStripe,
} from './protocol.ts';

export interface ConnectionOptions {
  /** `host:port`, an IPv6 address in brackets. */
  address: string;
  psk?: Psk;
  /** Milliseconds for everything until the first stripe can be asked for. */
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

export class StripeConnection {
  private readonly scratch: ReturnType<typeof nativeMemory>;

  private constructor(
    private readonly channel: Channel,
    private readonly address: string,
    /** What the server has. */
    readonly stripes: RemoteStripes,
    scratch: ReturnType<typeof nativeMemory>,
  ) {
    this.scratch = scratch;
  }

  /**
   * Connects, shakes hands, and asks for the server's metadata.
   * @throws Error where any of it fails; UserError where trying again can't help
   */
  static async open(options: ConnectionOptions): Promise<StripeConnection> {
    const { address, connectMs } = options;
    const deadline = new Deadline(
      connectMs,
      `${address} has not answered in ${connectMs / 1000} s`,
    );
    const scratch = nativeMemory(SCRATCH_BYTES);
    let channel: Channel | null = null;
    try {
      channel = await deadline.before(connect(options), (late) => late.close());
      await deadline.before(channel.open());
      await deadline.before(greet(channel, scratch, address));
      const stripes = await deadline.before(askMetadata(channel, scratch, address));
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
    return this.channel.failure;
  }

  /**
   * Fetches a stripe.
   * @param length of its beginning that is wanted, in `buffer`
   * @throws ChannelError where the connection is of no use any more; StripeRefused
   */
  async readStripe(stripe: number, buffer: Memory, length: number): Promise<void> {
    const { channel, scratch, address } = this;
    writeReadStripe(scratch.bytes, stripe);
    await channel.send(scratch, 0, READ_STRIPE_BYTES);
    await channel.receive(scratch, 0, 1);
    const status = scratch.bytes[0];
    if (status !== STATUS_OK) throw new StripeRefused(status, stripe, address);
    await channel.receive(scratch, 0, LENGTH_BYTES);
    const whole = readLength(scratch.bytes);
    if (whole !== this.stripes.stripeBytes) {
      channel.close();
      throw new ChannelError(
        `${address} has sent a stripe of ${whole} bytes instead of ${this.stripes.stripeBytes}`,
      );
    }
    await channel.receive(buffer, 0, length);
    for (let left = whole - length; left > 0; left -= SCRATCH_BYTES) {
      await channel.receive(scratch, 0, Math.min(left, SCRATCH_BYTES));
    }
  }

  close(): void {
    this.channel.close();
    this.scratch.free();
  }
}

/** The host and port of `host:port`. */
export function splitAddress(address: string): { host: string; port: number } {
  const colon = address.lastIndexOf(':');
  const host = address.slice(0, colon).replace(/^\[(.*)\]$/, '$1');
  return { host, port: Number(address.slice(colon + 1)) };
}

async function connect({ address, psk, operationMs }: ConnectionOptions): Promise<Channel> {
  const { host, port } = splitAddress(address);
  // Names are looked up each time: a server may have moved.
  const found = await lookup(host).catch((error) => {
    throw new Error(`'${host}' can't be resolved: ${errorName(error)}`);
  });
  const opened = Promise.withResolvers<Channel>();
  const socket = Bun.connect<Channel>({
    hostname: found.address,
    port,
    socket: {
      open(socket: Socket<Channel>) {
        socket.setNoDelay(true);
        socket.setKeepAlive(true, 30_000);
        const options = { role: 'client' as const, idleMs: operationMs, ...(psk && { psk }) };
        socket.data = new Channel(socket, options);
        opened.resolve(socket.data);
      },
      ...channelEvents,
    },
  });
  // The failure to connect is told by both.
  socket.catch((error) => {
    opened.reject(new Error(`${address} can't be connected to: ${errorName(error)}`));
  });
  return await opened.promise;
}

/** What a socket tells its channel. */
export const channelEvents = {
  data: (socket: Socket<Channel>, bytes: Uint8Array) => socket.data?.received(bytes),
  drain: (socket: Socket<Channel>) => socket.data?.writable(),
  end: (socket: Socket<Channel>) => socket.data?.receivedEnd(),
  close: (socket: Socket<Channel>, error?: Error) => socket.data?.closed(error),
  error: (socket: Socket<Channel>, error: Error) => socket.data?.closed(error),
};

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

async function askMetadata(
  channel: Channel,
  scratch: Memory,
  address: string,
): Promise<RemoteStripes> {
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

/** A time by which several steps together must be done. */
class Deadline {
  private readonly passed = Promise.withResolvers<never>();
  private readonly timer: ReturnType<typeof setTimeout>;

  constructor(ms: number, message: string) {
    this.passed.promise.catch(() => {});
    this.timer = setTimeout(() => this.passed.reject(new Error(message)), ms);
  }

  /** @param late gets a result that comes too late */
  async before<Result>(step: Promise<Result>, late?: (result: Result) => void): Promise<Result> {
    let over = false;
    step.then(
      (result) => over && late?.(result),
      () => {},
    );
    try {
      return await Promise.race([step, this.passed.promise]);
    } catch (error) {
      over = true;
      throw error;
    }
  }

  clear(): void {
    clearTimeout(this.timer);
  }
}
