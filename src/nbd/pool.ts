/**
 * Connections to one export of an NBD server: as many as it allows, each made anew when it breaks, with
 * growing delays. A request whose connection breaks is tried on another one.
 */

import type { ExportFacts } from '../device/nbd/protocol.ts';
import { UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { ChannelError } from '../remote/channel.ts';
import { RECONNECT_MS, Rests } from '../remote/rests.ts';
import type { SourceConnections } from '../stripe/interfaces.ts';
import { NbdConnection, type NbdOptions } from './connection.ts';

/** Connections that a request tries before it is given back to whoever asks again later. */
const ATTEMPTS = 4;

/** One of the connections, or the place of one that is being made. */
interface Line {
  connection: NbdConnection | null;
  connecting: boolean;
  /** Attempts to connect since something was answered. */
  attempts: number;
}

export class NbdPool {
  readonly facts: ExportFacts;
  private readonly lines: Line[] = [];
  private readonly most: number;
  private readonly stop = new AbortController();
  private readonly rests = new Rests();
  private waiters: PromiseWithResolvers<void>[] = [];
  private away: Error | null = null;
  private firstLoss: Error | null = null;
  private returnListener: () => void = () => {};

  private constructor(
    private readonly options: NbdOptions,
    most: number,
    first: NbdConnection,
    private readonly log: Log,
  ) {
    this.facts = first.facts;
    this.most = first.canMultiply ? most : 1;
    this.lines.push({ connection: first, connecting: false, attempts: 0 });
  }

  /**
   * Connects once; other connections are made when they are needed.
   * @param most connections, where the server allows several
   * @throws UserError where there is no such export
   */
  static async open(options: NbdOptions, most: number, log: Log): Promise<NbdPool> {
    try {
      return new NbdPool(options, most, await NbdConnection.open(options), log);
    } catch (error) {
      if (error instanceof UserError) throw error;
      throw new UserError(`the NBD server can't be used: ${(error as Error).message}`);
    }
  }

  /** Has a listener told when the server was away and is back. */
  whenBack(listener: () => void): void {
    this.returnListener = listener;
  }

  get connections(): SourceConnections {
    const open = this.lines.filter(({ connection }) => connection && !connection.failure).length;
    return { open, most: this.most, problem: this.away?.message ?? null };
  }

  /** Requests that go on at the same time without one waiting for another. */
  get parallel(): number {
    return this.most;
  }

  /**
   * Why a connection has ended since the beginning, null where none has: also one of which nothing was asked
   * at the time, and that was made anew.
   */
  get loss(): Error | null {
    for (const { connection } of this.lines) this.firstLoss ??= connection?.failure ?? null;
    return this.firstLoss;
  }

  reconnect(): void {
    this.rests.end();
  }

  /**
   * Makes a request on a connection, and on another one where that breaks.
   * @param attempts 1 for writes of whoever would not know that earlier ones were lost with a server
   */
  async use<Result>(
    request: (connection: NbdConnection) => Promise<Result>,
    attempts = ATTEMPTS,
  ): Promise<Result> {
    for (let attempt = 1; ; attempt++) {
      const line = await this.take();
      const connection = line.connection as NbdConnection;
      try {
        const result = await request(connection);
        line.attempts = 0;
        return result;
      } catch (error) {
        if (!(error instanceof ChannelError)) throw error;
        this.lose(line, connection, error);
        if (attempt >= attempts || this.closed) throw error;
      }
    }
  }

  close(): void {
    this.stop.abort();
    for (const { connection } of this.lines) connection?.close();
    this.reconnect();
    this.settle(new Error('the source was closed'));
  }

  private get closed(): boolean {
    return this.stop.signal.aborted;
  }

  /** The connection with the fewest requests. @throws Error where none can be made now */
  private async take(): Promise<Line> {
    for (;;) {
      if (this.closed) throw new Error('the source was closed');
      let best: Line | null = null;
      for (const line of this.lines) {
        const { connection } = line;
        if (!connection) continue;
        if (connection.failure) {
          this.lose(line, connection, connection.failure);
          continue;
        }
        if (!best || connection.inFlight < (best.connection as NbdConnection).inFlight) best = line;
      }
      // A further connection is worth it as soon as a request would wait behind another one.
      const busy = !best || (best.connection as NbdConnection).inFlight > 0;
      if (busy && this.lines.length < this.most) this.addLine();
      if (best) return best;
      if (this.away) throw this.away;
      const waiter = Promise.withResolvers<void>();
      this.waiters.push(waiter);
      await waiter.promise;
    }
  }

  private lose(line: Line, connection: NbdConnection, error: Error): void {
    if (line.connection !== connection) return;
    this.firstLoss ??= error;
    connection.close();
    line.connection = null;
    void this.connect(line, error);
  }

  private addLine(): void {
    const line = { connection: null, connecting: false, attempts: 0 };
    this.lines.push(line);
    void this.connect(line, null);
  }

  /** Tries until there is a connection to the same export as before. */
  private async connect(line: Line, reason: Error | null): Promise<void> {
    if (line.connecting) return;
    line.connecting = true;
    let last = reason;
    while (!this.closed) {
      const restMs = RECONNECT_MS[Math.min(line.attempts++, RECONNECT_MS.length - 1)];
      if (restMs > 0) {
        if (last) this.failed(last);
        await this.rests.rest(restMs);
      }
      try {
        const connection = await NbdConnection.open(this.options, this.stop.signal);
        if (this.closed) return connection.close();
        this.refuseOther(connection);
        line.connecting = false;
        this.returned(line, connection);
        return;
      } catch (error) {
        last = error as Error;
      }
    }
  }

  private refuseOther(connection: NbdConnection): void {
    if (connection.facts.sizeBytes === this.facts.sizeBytes) return;
    connection.close();
    throw new UserError(
      `${this.options.place.uri} now has ${connection.facts.sizeBytes} bytes, not ` +
        `${this.facts.sizeBytes}: it is another export than the one that was begun with`,
    );
  }

  private returned(line: Line, connection: NbdConnection): void {
    const wasAway = this.away !== null;
    line.connection = connection;
    this.away = null;
    this.settle(null);
    if (!wasAway) return;
    this.log.info(`${this.options.place.uri} is back`);
    this.reconnect();
    this.returnListener();
  }

  /** Where no connection is left, nobody waits for one. */
  private failed(error: Error): void {
    if (this.closed || this.lines.some(({ connection }) => connection)) return;
    if (!this.away) this.log.warn(`${this.options.place.uri} is away: ${error.message}`);
    this.away = error;
    this.settle(error);
  }

  private settle(error: Error | null): void {
    for (const waiter of this.waiters.splice(0)) {
      if (error) waiter.reject(error);
      else waiter.resolve();
    }
  }
}
