/** What tests of remote stripes share: a disk in memory, a server of it, raw connections to it. */
import type { Socket } from 'bun';
import { Secret } from '../../src/crypto/secret.ts';
import type { Psk } from '../../src/crypto/tls_psk.ts';
import { Log } from '../../src/log.ts';
import type { Memory } from '../../src/remote/channel.ts';
import { type PlainReader, ServedStripes } from '../../src/remote/served_disk.ts';
import { StripeServer, type StripeServerOptions } from '../../src/remote/stripe_server.ts';
import type { StripeSource } from '../../src/stripe/interfaces.ts';
import { FETCHED, HAS_SOURCE, WRITTEN } from '../../src/stripe/shared_state.ts';

export const SHIFT = 6;
export const STRIPE = 512 << SHIFT;

export const quiet = new Log({ level: 'error', format: 'human' }, 'test');

export function psk(identity = 'me', byte = 7): Psk {
  return { identity, secret: Secret.taking(new Uint8Array(32).fill(byte)) };
}

/** Bytes that tell where they are from. */
export function contents(length: number, salt = 0): Uint8Array {
  const bytes = new Uint8Array(length);
  const words = new Uint32Array(bytes.buffer);
  for (let i = 0; i < words.length; i++) words[i] = Math.imul(i + 1, 2654435761) + salt;
  return bytes;
}

/** A disk in memory, with stripes that can't be read. */
export class MemoryDisk implements PlainReader {
  readonly broken = new Set<number>();
  readonly expected: number[] = [];

  constructor(readonly bytes: Uint8Array) {}

  async read(offset: number, memory: Memory, length: number): Promise<void> {
    if (this.broken.has(Math.floor(offset / STRIPE))) {
      throw Object.assign(new Error('broken'), { code: 'EIO' });
    }
    if (offset + length > this.bytes.length) throw new Error('read behind the end');
    memory.bytes.set(this.bytes.subarray(offset, offset + length));
  }

  expect(offset: number): void {
    this.expected.push(offset);
  }
}

export interface Served {
  disk: MemoryDisk;
  server: StripeServer;
  address: string;
}

export interface ServeOptions extends Partial<StripeServerOptions> {
  sizeBytes?: number;
  headers?: number[];
  source?: StripeSource;
  disk?: MemoryDisk;
}

/** Serves a disk of five stripes, the last one of 1024 bytes, unless told otherwise. */
export async function serve(options: ServeOptions = {}): Promise<Served> {
  const { sizeBytes = 4 * STRIPE + 1024, source = null, ...more } = options;
  const disk = options.disk ?? new MemoryDisk(contents(sizeBytes));
  const count = Math.ceil(sizeBytes / STRIPE);
  const all = Array.from({ length: count }, () => FETCHED | WRITTEN | HAS_SOURCE);
  const headers = Uint8Array.from(options.headers ?? all);
  const served = new ServedStripes(SHIFT, sizeBytes, headers, disk, source);
  const server = await StripeServer.start(
    served,
    { address: '127.0.0.1:0', operationMs: 5000, maxClients: 100, ...more },
    quiet,
  );
  return { disk, server, address: server.localAddress };
}

/** A client that sends and receives bytes as they are. */
export class RawClient {
  private bytes = new Uint8Array(0);
  private ended = false;
  private wake: () => void = () => {};
  private constructor(private readonly socket: Socket) {}

  static async connect(address: string): Promise<RawClient> {
    const [hostname, port] = address.split(':');
    const opened = Promise.withResolvers<RawClient>();
    let client: RawClient;
    await Bun.connect({
      hostname,
      port: Number(port),
      socket: {
        open(socket) {
          client = new RawClient(socket);
          opened.resolve(client);
        },
        data(_, bytes) {
          const both = new Uint8Array(client.bytes.length + bytes.length);
          both.set(client.bytes);
          both.set(bytes, client.bytes.length);
          client.bytes = both;
          client.wake();
        },
        close() {
          client.ended = true;
          client.wake();
        },
        error() {},
      },
    });
    return await opened.promise;
  }

  send(...bytes: (number | Uint8Array)[]): void {
    for (const part of bytes) {
      this.socket.write(typeof part === 'number' ? Uint8Array.of(part) : part);
    }
  }

  /** Exactly so many bytes; fewer where the server ends the connection before. */
  async receive(length: number): Promise<Uint8Array> {
    while (this.bytes.length < length && !this.ended) {
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
    const got = this.bytes.slice(0, length);
    this.bytes = this.bytes.slice(length);
    return got;
  }

  /** Resolves when the server has closed the connection. */
  async end(): Promise<void> {
    while (!this.ended) {
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
  }

  /** Takes nothing of what comes from now on. */
  pause(): void {
    this.socket.pause();
  }

  /** Breaks the connection. */
  reset(): void {
    this.socket.terminate();
  }

  close(): void {
    this.socket.end();
  }
}

export function u64(value: number): Uint8Array {
  const bytes = new Uint8Array(8);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(value), true);
  return bytes;
}
