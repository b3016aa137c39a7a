/** Serves a disk's stripes to other hosts (docs/remote-stripes.md). */
import { lookup } from 'node:dns/promises';
import type { Socket, TCPSocketListener } from 'bun';
import { splitAddress } from '../config/address.ts';
import type { Psk } from '../crypto/tls_psk.ts';
import { warnOfUnlockedSecrets } from '../crypto/unlocked_secrets.ts';
import { errorName, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { Channel, ChannelError, type Memory, nativeMemory } from './channel.ts';
import { channelEvents } from './dial.ts';
import type { ServedStripes } from './served_disk.ts';
import { PIECE_BYTES, type SessionCounts, type SharedMemory, StripeSession } from './session.ts';

export interface StripeServerOptions {
  /** `host:port`; a port of 0 is any that is free. */
  address: string;
  psk?: Psk;
  /** Milliseconds without progress that end a connection within a request. */
  operationMs: number;
  maxClients: number;
  /** How long a client may take to show that it has the key. */
  handshakeMs?: number;
}

/** Connections that have not shown yet that they have the key. */
const MAX_HANDSHAKES = 64;
const HANDSHAKE_MS = 10_000;
const SCRATCH_BYTES = 16 * 1024;
/** Memory for stripes from the disk's own source, and the fewest of them at once. */
const WHOLES_BYTES = 64 << 20;
const MIN_WHOLES = 2;

/** One connection that is served. */
class Client {
  session: StripeSession | null = null;

  constructor(
    readonly channel: Channel,
    readonly name: string,
  ) {}
}

export class StripeServer {
  readonly counts: SessionCounts = { stripes: 0, bytes: 0 };
  private readonly clients = new Set<Client>();
  private handshakes = 0;
  private draining = false;
  private refused = 0;
  private readonly wholes: Pool;
  private listener: TCPSocketListener<Channel> | null = null;
  private readonly drained = Promise.withResolvers<void>();

  private constructor(
    private readonly served: ServedStripes,
    private readonly options: StripeServerOptions,
    private readonly log: Log,
  ) {
    const wholes = Math.max(MIN_WHOLES, Math.floor(WHOLES_BYTES / served.stripeBytes));
    this.wholes = new Pool(wholes, served.stripeBytes);
  }

  /** Listens from now on. @throws UserError where the address can't be used */
  static async start(
    served: ServedStripes,
    options: StripeServerOptions,
    log: Log,
  ): Promise<StripeServer> {
    const server = new StripeServer(served, options, log);
    const { host, port } = splitAddress(options.address);
    try {
      const { address } = await lookup(host);
      server.listener = Bun.listen<Channel>({
        hostname: address,
        port,
        socket: { open: (socket) => server.accept(socket), ...channelEvents },
      });
    } catch (error) {
      throw new UserError(
        `'${options.address}' can't be listened on: ${errorName(error)}; free it, or choose another ` +
          'address',
      );
    }
    return server;
  }

  /** Where it listens: `127.0.0.1:4444`. */
  get localAddress(): string {
    const { hostname, port } = this.listener as TCPSocketListener<Channel>;
    return hostname.includes(':') ? `[${hostname}]:${port}` : `${hostname}:${port}`;
  }

  get clientCount(): number {
    return this.clients.size;
  }

  /** Takes no new clients, finishes the answers that were begun, and closes all connections. */
  async drain(patienceMs: number): Promise<void> {
    this.draining = true;
    this.listener?.stop();
    for (const client of this.clients) if (!client.session?.busy) client.channel.close();
    this.lookIfDrained();
    const timer = setTimeout(() => {
      for (const client of this.clients) client.channel.close();
      this.drained.resolve();
    }, patienceMs);
    await this.drained.promise;
    clearTimeout(timer);
  }

  private accept(socket: Socket<Channel>): void {
    const { maxClients, operationMs, psk } = this.options;
    const full = this.clients.size >= maxClients || this.handshakes >= MAX_HANDSHAKES;
    if (full || this.draining) {
      // Once, and how often, when there is room again: who is refused may try without end.
      if (this.refused++ === 0 && full) {
        this.log.warn(`a client is refused: ${this.clients.size} are connected`);
      }
      socket.end();
      return;
    }
    if (this.refused > 0) this.log.info(`${this.refused} clients were refused meanwhile`);
    this.refused = 0;
    socket.setNoDelay(true);
    socket.setKeepAlive(true, 30_000);
    const name = socket.remoteAddress;
    const options = { role: 'server' as const, idleMs: operationMs, ...(psk && { psk }) };
    try {
      socket.data = new Channel(socket, options);
    } catch (error) {
      this.log.error(`a client is refused: ${(error as Error).message}`, { name });
      socket.terminate();
      return;
    }
    if (psk) warnOfUnlockedSecrets(this.log);
    const client = new Client(socket.data, name);
    this.clients.add(client);
    void this.serve(client);
  }

  private async serve(client: Client): Promise<void> {
    const { channel, name } = client;
    const memory: ReturnType<typeof nativeMemory>[] = [];
    const take = (bytes: number) => {
      memory.push(nativeMemory(bytes));
      return memory[memory.length - 1];
    };
    try {
      await this.shakeHands(channel);
      const [scratch, piece] = [take(SCRATCH_BYTES), take(PIECE_BYTES)];
      this.log.debug('a client has connected', { name, clients: this.clients.size });
      const { served, wholes, counts, log } = this;
      client.session = new StripeSession(channel, served, scratch, piece, wholes, counts, log);
      await client.session.run(() => this.draining);
    } catch (error) {
      // Whatever it is, others are served.
      const how = !(error instanceof ChannelError) ? 'error' : client.session ? 'debug' : 'warn';
      this.log[how](`the connection of ${name} has ended: ${(error as Error).message}`);
    } finally {
      channel.close();
      for (const each of memory) each.free();
      this.clients.delete(client);
      this.lookIfDrained();
    }
  }

  private async shakeHands(channel: Channel): Promise<void> {
    const { handshakeMs = HANDSHAKE_MS } = this.options;
    this.handshakes++;
    const timer = setTimeout(
      () => channel.close(`no handshake in ${handshakeMs / 1000} s`),
      handshakeMs,
    );
    try {
      await channel.open();
    } finally {
      clearTimeout(timer);
      this.handshakes--;
    }
  }

  private lookIfDrained(): void {
    if (this.draining && this.clients.size === 0) this.drained.resolve();
  }
}

/** Memory for so many at a time; others wait in the order in which they came. */
class Pool implements SharedMemory {
  private readonly free: Memory[] = [];
  private readonly waiting: ((memory: Memory) => void)[] = [];
  private made = 0;

  constructor(
    private readonly most: number,
    private readonly bytes: number,
  ) {}

  async take(): Promise<Memory> {
    const memory = this.free.pop();
    if (memory) return memory;
    if (this.made < this.most) {
      this.made++;
      return nativeMemory(this.bytes);
    }
    return await new Promise((resolve) => this.waiting.push(resolve));
  }

  giveBack(memory: Memory): void {
    const next = this.waiting.shift();
    if (next) next(memory);
    else this.free.push(memory);
  }
}
