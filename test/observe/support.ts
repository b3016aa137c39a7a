/** RPC servers in this process, and clients that send what they like and read when they like. */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { createConnection, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Log } from '../../src/log.ts';
import type { RpcLimits } from '../../src/observe/rpc_connection.ts';
import type { RpcCommands } from '../../src/observe/rpc_protocol.ts';
import { defaultRpcLimits, RpcServer } from '../../src/observe/rpc_server.ts';

/** Records what is logged as errors. */
export class RecordingLog extends Log {
  readonly errors: string[] = [];

  constructor() {
    super({ level: 'error', format: 'human' }, 'test');
  }

  override error(message: string): void {
    this.errors.push(message);
  }
}

/** One test's folder, servers and clients; `using` takes them away. */
export class RpcBed {
  readonly folder = mkdtempSync(join(tmpdir(), 'ubiblk-rpc-'));
  readonly log = new RecordingLog();
  private readonly servers: RpcServer[] = [];
  private readonly clients: RpcClient[] = [];

  path(name = 'rpc.sock'): string {
    return join(this.folder, name);
  }

  serve(commands: RpcCommands, limits: Partial<RpcLimits> = {}, path = this.path()): RpcServer {
    const server = RpcServer.start(path, commands, this.log, { ...defaultRpcLimits, ...limits });
    this.servers.push(server);
    return server;
  }

  async connect(path = this.path()): Promise<RpcClient> {
    const client = new RpcClient(createConnection(path));
    this.clients.push(client);
    await client.connected;
    return client;
  }

  [Symbol.dispose](): void {
    for (const client of this.clients) client.vanish();
    for (const server of this.servers) server.stop();
    rmSync(this.folder, { recursive: true });
  }
}

export class RpcClient {
  readonly connected: Promise<void>;
  /** Resolves when the server has closed the connection. */
  readonly closed: Promise<void>;
  private text = '';
  private over = false;
  private wake = () => {};

  constructor(private readonly socket: Socket) {
    this.connected = new Promise((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', reject);
    });
    this.closed = new Promise((resolve) => socket.once('close', () => resolve()));
    socket.on('data', (bytes) => {
      this.text += bytes;
      this.wake();
    });
    socket.on('error', () => {});
    for (const end of ['end', 'close']) {
      socket.on(end, () => {
        this.over = true;
        this.wake();
      });
    }
  }

  send(text: string | Uint8Array): void {
    this.socket.write(text);
  }

  /** Sends bytes one by one, each as a message of its own. */
  async drip(text: string): Promise<void> {
    for (const byte of Buffer.from(text)) {
      await new Promise((resolve) => this.socket.write(Uint8Array.of(byte), resolve));
    }
  }

  /** Half-closes: nothing more is sent. */
  finish(): void {
    this.socket.end();
  }

  stopReading(): void {
    this.socket.pause();
  }

  goOnReading(): void {
    this.socket.resume();
  }

  vanish(): void {
    this.socket.destroy();
  }

  /** The next line without its end; null where the server has ended before one was whole. */
  async line(): Promise<string | null> {
    for (;;) {
      const end = this.text.indexOf('\n');
      if (end >= 0) {
        const line = this.text.slice(0, end);
        this.text = this.text.slice(end + 1);
        return line;
      }
      if (this.over) return null;
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
  }

  /** Sends one request and reads one answer. */
  async ask(request: string): Promise<unknown> {
    this.send(`${request}\n`);
    return JSON.parse((await this.line()) ?? 'null');
  }
}

export function openDescriptors(): number {
  return readdirSync('/proc/self/fd').length;
}
