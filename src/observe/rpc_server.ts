/** The RPC socket of a running server: answers commands from a table to local clients. */
import type { Socket, UnixSocketOptions } from 'bun';
import { ListeningSocket } from '../../ffi/listening_socket.ts';
import type { Log } from '../log.ts';
import { RpcConnection, type RpcLimits } from './rpc_connection.ts';
import { type RpcCommands, RpcError } from './rpc_protocol.ts';

const SOCKET_MODE = 0o660;
/** Clients that are told that there are too many, and wait to have read it, for each that is served. */
const TURNED_AWAY = 4;

export const defaultRpcLimits: RpcLimits = {
  lineBytes: 64 * 1024,
  clients: 64,
  idleMs: 5 * 60_000,
  lingerMs: 2000,
};

export class RpcServer {
  private readonly served = new Set<RpcConnection>();
  private readonly turnedAway = new Set<RpcConnection>();
  private readonly listener: Bun.SocketListener<RpcConnection | null>;

  private constructor(
    private readonly socket: ListeningSocket,
    private readonly commands: RpcCommands,
    private readonly limits: RpcLimits,
    private readonly log: Log,
  ) {
    const handler: Bun.SocketHandler<RpcConnection | null> = {
      open: (client) => this.accept(client),
      data: (client, bytes) => client.data?.received(bytes),
      end: (client) => client.data?.receivedEnd(),
      drain: (client) => client.data?.writable(),
      close: (client) => this.forget(client),
      // What has failed is told by `close` as well.
      error: () => {},
    };
    // Not in Bun's types: what `node:net` is built on, which costs a start 13 ms and 4 MB.
    const options = { fd: socket.fd, allowHalfOpen: true, socket: handler };
    this.listener = Bun.listen(options as unknown as UnixSocketOptions<RpcConnection | null>);
    process.on('exit', this.remove);
  }

  /**
   * Listens at a path, for the user and group of this process alone, and answers from now on.
   * @throws UserError where the socket can't be made
   */
  static start(
    path: string,
    commands: RpcCommands,
    log: Log,
    limits: RpcLimits = defaultRpcLimits,
  ): RpcServer {
    return new RpcServer(ListeningSocket.make(path, SOCKET_MODE), commands, limits, log);
  }

  /** How many are connected; those that were refused for their number don't count. */
  get clientCount(): number {
    return this.served.size;
  }

  /** Closes all connections and removes the socket; commands in hand have no answer any more. */
  stop(): void {
    this.listener.stop(true);
    process.off('exit', this.remove);
    this.remove();
  }

  private readonly remove = () => this.socket.remove();

  private accept(client: Socket<RpcConnection | null>): void {
    const { served, turnedAway, limits } = this;
    const isOver = served.size === limits.clients;
    // However many come, only so many are waited for.
    if (isOver && turnedAway.size === limits.clients * TURNED_AWAY) {
      client.data = null;
      client.terminate();
      return;
    }
    const connection = new RpcConnection(client, this.commands, limits, this.log);
    client.data = connection;
    (isOver ? turnedAway : served).add(connection);
    if (!isOver) return;
    const message = `too many clients: ${served.size} are connected`;
    connection.refuse(new RpcError('too_many_clients', message));
  }

  private forget(client: Socket<RpcConnection | null>): void {
    if (!client.data) return;
    client.data.gone();
    this.served.delete(client.data);
    this.turnedAway.delete(client.data);
    client.data = null;
  }
}
