/** A stripe server as a source of stripes: several connections, each made anew when it breaks. */
import { createHash } from 'node:crypto';
import type { Psk } from '../crypto/tls_psk.ts';
import { warnOfUnlockedSecrets } from '../crypto/unlocked_secrets.ts';
import { UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { SourceConnections, StripeBuffer, StripeSource } from '../stripe/interfaces.ts';
import { HAS_SOURCE, WRITTEN } from '../stripe/shared_state.ts';
import { ChannelError } from './channel.ts';
import { type ConnectionOptions, StripeConnection } from './connection.ts';
import type { RemoteStripes } from './protocol.ts';
import { RECONNECT_MS, Rests } from './rests.ts';

export interface RemoteOptions extends ConnectionOptions {
  connections: number;
  /** Of the disk that is filled. */
  stripeBytes: number;
  /** Milliseconds before each attempt to connect again; the last one stays. */
  reconnectMs?: readonly number[];
}

/** Connections that a read tries before it is given back to whoever asks again later. */
const ATTEMPTS = 4;

/** What must stay the same as long as stripes are fetched. */
interface Identity {
  stripes: number;
  /** Of which stripes there is data. */
  data: string;
}

/** One of the connections, or the place of one that is being made. */
class Lane {
  connection: StripeConnection | null = null;
  busy = false;
  /** Attempts to connect since a stripe came this way: a server that only accepts is left alone, too. */
  attempts = 0;
}

interface Waiter {
  take: (lane: Lane) => void;
  refuse: (error: Error) => void;
}

export class RemoteSource implements StripeSource {
  readonly description: string;
  readonly sizeBytes: number;
  readonly leastDiskBytes: number;
  readonly parallel: number;
  private returnListener: () => void = () => {};
  private readonly lanes: Lane[] = [];
  private readonly waiters: Waiter[] = [];
  private readonly rests = new Rests();
  private readonly stop = new AbortController();
  /** Why there is no connection at all, null where there is one, or where the first ones are made. */
  private away: Error | null = null;
  private readonly identity: Identity;

  private constructor(
    private readonly options: RemoteOptions,
    private readonly first: RemoteStripes,
    private readonly psk: Psk | undefined,
    private readonly log: Log,
  ) {
    this.description = describeRemote(options.address, psk?.identity);
    this.parallel = options.connections;
    this.identity = identityOf(first);
    const last = lastWithData(first);
    this.sizeBytes = (last + 1) * first.stripeBytes;
    // Of the last stripe the server doesn't say how much of it there is.
    this.leastDiskBytes = last < 0 ? 0 : last * first.stripeBytes + 512;
  }

  /**
   * Connects once; the other connections are made when they are needed.
   * @param options whose secret is copied
   * @throws UserError where there is no such server, or its stripes are of another size
   */
  static async open(options: RemoteOptions, log: Log): Promise<RemoteSource> {
    const { address, stripeBytes } = options;
    const psk = options.psk && { ...options.psk, secret: options.psk.secret.copy() };
    const own = { ...options, ...(psk && { psk }) };
    try {
      const connection = await StripeConnection.open(own);
      const { stripes } = connection;
      if (psk) warnOfUnlockedSecrets(log);
      if (stripes.stripeBytes !== stripeBytes) {
        connection.close();
        throw new UserError(
          `${address} serves stripes of ${stripes.stripeBytes} bytes, but those of this disk have ` +
            `${stripeBytes}; make its metadata with the same size (--stripe-sector-count-shift)`,
        );
      }
      const source = new RemoteSource(own, stripes, psk, log);
      const lane = new Lane();
      lane.connection = connection;
      source.lanes.push(lane);
      return source;
    } catch (error) {
      psk?.secret.wipe();
      if (error instanceof UserError) throw error;
      throw new UserError(`the stripe server can't be used: ${(error as Error).message}`);
    }
  }

  has(stripe: number): boolean {
    return ((this.first.headers[stripe] ?? 0) & (WRITTEN | HAS_SOURCE)) !== 0;
  }

  async read(stripe: number, buffer: StripeBuffer, signal: AbortSignal): Promise<boolean> {
    for (let attempt = 1; ; attempt++) {
      const lane = await this.take(signal);
      const connection = lane.connection as StripeConnection;
      try {
        await connection.readStripe(stripe, buffer, buffer.bytes.length);
        lane.attempts = 0;
        this.giveBack(lane);
        return true;
      } catch (error) {
        if (!(error instanceof ChannelError)) {
          this.giveBack(lane);
          throw error;
        }
        this.lose(lane, error);
        if (attempt === ATTEMPTS || signal.aborted) throw error;
      }
    }
  }

  whenBack(listener: () => void): void {
    this.returnListener = listener;
  }

  get connections(): SourceConnections {
    const open = this.lanes.filter(({ connection }) => connection && !connection.failure).length;
    return { open, most: this.options.connections, problem: this.away?.message ?? null };
  }

  reconnect(): void {
    this.rests.end();
  }

  async close(): Promise<void> {
    this.stop.abort();
    for (const lane of this.lanes) lane.connection?.close();
    for (const waiter of this.waiters.splice(0)) waiter.refuse(new Error('the source was closed'));
    this.rests.end();
    this.psk?.secret.wipe();
  }

  private get closed(): boolean {
    return this.stop.signal.aborted;
  }

  /** A free connection; waits for one where all are busy. @throws Error where none can be made now */
  private async take(signal: AbortSignal): Promise<Lane> {
    for (const lane of this.lanes) {
      if (!lane.connection || lane.busy) continue;
      const { failure } = lane.connection;
      if (failure) {
        this.lose(lane, failure);
      } else {
        lane.busy = true;
        return lane;
      }
    }
    if (this.lanes.length < this.options.connections) this.addLane();
    if (this.away) throw this.away;
    return await new Promise((resolve, reject) => {
      const waiter: Waiter = {
        take: (lane) => {
          signal.removeEventListener('abort', abort);
          lane.busy = true;
          resolve(lane);
        },
        refuse: (error) => {
          signal.removeEventListener('abort', abort);
          reject(error);
        },
      };
      const abort = () => {
        this.waiters.splice(this.waiters.indexOf(waiter), 1);
        reject(new Error('the fetch was given up'));
      };
      signal.addEventListener('abort', abort);
      this.waiters.push(waiter);
    });
  }

  private giveBack(lane: Lane): void {
    lane.busy = false;
    if (lane.connection?.failure) this.lose(lane, lane.connection.failure);
    else this.waiters.shift()?.take(lane);
  }

  private lose(lane: Lane, error: Error): void {
    lane.connection?.close();
    lane.connection = null;
    lane.busy = false;
    void this.connect(lane, error);
  }

  private addLane(): void {
    const lane = new Lane();
    this.lanes.push(lane);
    void this.connect(lane, null);
  }

  /**
   * Tries until there is a connection to the same server as before.
   * @param reason why the last one was lost
   */
  private async connect(lane: Lane, reason: Error | null): Promise<void> {
    const { reconnectMs = RECONNECT_MS } = this.options;
    while (!this.closed) {
      const restMs = reconnectMs[Math.min(lane.attempts++, reconnectMs.length - 1)];
      if (restMs > 0) {
        if (reason) this.failed(reason);
        await this.rests.rest(restMs);
      }
      try {
        const connection = await StripeConnection.open(this.options, this.stop.signal);
        if (this.closed) return connection.close();
        this.refuseOther(connection);
        this.returned(lane, connection);
        return;
      } catch (error) {
        reason = error as Error;
      }
    }
  }

  private refuseOther(connection: StripeConnection): void {
    const now = identityOf(connection.stripes);
    const same = now.stripes === this.identity.stripes && now.data === this.identity.data;
    if (same && connection.stripes.stripeBytes === this.first.stripeBytes) {
      // One copy of what may be megabytes does for all connections.
      connection.stripes = this.first;
      return;
    }
    connection.close();
    throw new UserError(
      `${this.options.address} now serves another disk than the one that this one was begun from`,
    );
  }

  private returned(lane: Lane, connection: StripeConnection): void {
    const wasAway = this.away !== null;
    lane.connection = connection;
    this.away = null;
    if (wasAway) this.log.info(`${this.options.address} is back`);
    this.giveBack(lane);
    if (!wasAway) return;
    this.rests.end();
    this.returnListener();
  }

  /** Where no connection is left, nobody waits for one. */
  private failed(error: Error): void {
    if (this.closed || this.lanes.some((lane) => lane.connection)) return;
    if (!this.away || (error instanceof UserError && !(this.away instanceof UserError))) {
      this.log.warn(`${this.options.address} is away: ${error.message}`);
    }
    this.away = error;
    for (const waiter of this.waiters.splice(0)) waiter.refuse(error);
  }
}

/** A stripe server in words. */
export function describeRemote(address: string, pskIdentity = 'None'): string {
  return `remote (address: ${address}, psk_identity: ${pskIdentity})`;
}

function identityOf({ headers }: RemoteStripes): Identity {
  const end = lastWithData({ headers }) + 1;
  // What the server fetches meanwhile doesn't count.
  const data = headers
    .slice(0, end)
    .map((header) => ((header & (WRITTEN | HAS_SOURCE)) === 0 ? 0 : 1));
  return { stripes: end, data: createHash('sha256').update(data).digest('hex') };
}

/** The number of the last stripe with data, -1 where there is none; metadata files are padded. */
function lastWithData({ headers }: Pick<RemoteStripes, 'headers'>): number {
  return headers.findLastIndex((header) => (header & (WRITTEN | HAS_SOURCE)) !== 0);
}
