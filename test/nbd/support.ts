/** What tests of NBD share: a server in this process that can be made to lie, and raw clients. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Socket } from 'bun';
import { greeting, type NbdExport, Negotiation } from '../../src/frontend/nbd/negotiation.ts';
import { Log } from '../../src/log.ts';

export const quiet = new Log({ level: 'error', format: 'human' }, 'test');

export const someExport: NbdExport = {
  name: '',
  sizeBytes: 1 << 20,
  readOnly: false,
  canTrim: true,
  minBlock: 512,
  preferredBlock: 4096,
  maxPayload: 32 << 20,
  hasStripes: false,
};

/** A byte of the export that is told from its neighbours. */
export function byteAt(offset: number): number {
  return Math.imul(offset >>> 9, 2654435761) >>> 24;
}

export function bytesOf(offset: number, length: number): Uint8Array {
  return Uint8Array.from({ length }, (_, i) => byteAt(offset + i));
}

/** Changes what a server sends; a part of it ends the connection. */
export type Lie = (bytes: Uint8Array, phase: 'talk' | 'reply') => Uint8Array;

interface Client {
  input: Buffer;
  phase: 'flags' | 'options' | 'requests';
  negotiation: Negotiation;
}

/** A server of `byteAt` at a Unix socket, which answers reads and block status. */
export class FakeServer {
  readonly folder = mkdtempSync(join(tmpdir(), 'ubiblk-test-nbd-'));
  readonly socket = join(this.folder, 'socket');
  readonly requests: { type: number; offset: number; length: number }[] = [];
  private readonly listener;
  private readonly clients = new Set<Socket<Client>>();

  constructor(
    private readonly of: NbdExport = someExport,
    private readonly lie: Lie = (bytes) => bytes,
  ) {
    const server = this;
    this.listener = Bun.listen<Client>({
      unix: this.socket,
      socket: {
        open(socket) {
          server.clients.add(socket);
          const negotiation = new Negotiation(of, 'none');
          socket.data = { input: Buffer.alloc(0), phase: 'flags', negotiation };
          server.send(socket, greeting(), 'talk');
        },
        data(socket, bytes) {
          socket.data.input = Buffer.concat([socket.data.input, bytes]);
          while (server.step(socket));
        },
        close: (socket) => void server.clients.delete(socket),
      },
    });
  }

  get uri(): string {
    return `nbd+unix:///?socket=${this.socket}`;
  }

  /** Ends all connections; new ones are taken. */
  cut(): void {
    for (const client of this.clients) client.end();
  }

  [Symbol.dispose](): void {
    this.listener.stop(true);
    rmSync(this.folder, { recursive: true, force: true });
  }

  private send(socket: Socket<Client>, bytes: Uint8Array, phase: 'talk' | 'reply'): void {
    const said = this.lie(bytes, phase);
    socket.write(said);
    if (said.length < bytes.length) socket.end();
  }

  private step(socket: Socket<Client>): boolean {
    const { data } = socket;
    const { input, negotiation } = data;
    if (data.phase === 'flags') {
      if (input.length < 4) return false;
      negotiation.setFlags(input.readUInt32BE(0));
      data.input = input.subarray(4);
      data.phase = 'options';
      return true;
    }
    if (data.phase === 'options') {
      if (input.length < 16 || input.length < 16 + input.readUInt32BE(12)) return false;
      const end = 16 + input.readUInt32BE(12);
      const answer = negotiation.answer(input.readUInt32BE(8), input.subarray(16, end));
      data.input = input.subarray(end);
      if (negotiation.next === 'requests') data.phase = 'requests';
      this.send(socket, answer, 'talk');
      return true;
    }
    if (input.length < 28) return false;
    const type = input.readUInt16BE(6);
    const offset = Number(input.readBigUInt64BE(16));
    const length = input.readUInt32BE(24);
    this.requests.push({ type, offset, length });
    this.send(socket, replyTo(input, type, offset, length, this.of), 'reply');
    data.input = input.subarray(28);
    return true;
  }
}

/** The first half of the export is data, the second half is told to be zeroes. */
function replyTo(request: Buffer, type: number, offset: number, length: number, of: NbdExport) {
  const head = Buffer.alloc(20);
  head.writeUInt32BE(0x668e33ef, 0);
  head.writeUInt16BE(1, 4);
  request.copy(head, 8, 8, 16);
  let body: Buffer;
  if (type === 0) {
    head.writeUInt16BE(1, 6);
    body = Buffer.concat([request.subarray(16, 24), bytesOf(offset, length)]);
  } else {
    head.writeUInt16BE(5, 6);
    const half = of.sizeBytes / 2;
    const data = Math.max(0, Math.min(length, half - offset));
    const numbers = [
      1,
      ...(data > 0 ? [data, 0] : []),
      ...(length > data ? [length - data, 3] : []),
    ];
    body = Buffer.alloc(numbers.length * 4);
    for (const [i, number] of numbers.entries()) body.writeUInt32BE(number, i * 4);
  }
  head.writeUInt32BE(body.length, 16);
  return Buffer.concat([head, body]);
}

/** A connection that sends whatever it is told to. */
export class RawClient {
  private constructor(
    private readonly socket: Socket<undefined>,
    private readonly state: { input: Buffer; unsent: Buffer; closed: boolean; wake: () => void },
  ) {}

  static async open(path: string): Promise<RawClient> {
    const state = {
      input: Buffer.alloc(0),
      unsent: Buffer.alloc(0),
      closed: false,
      wake: () => {},
    };
    const drain = (socket: Socket<undefined>) => {
      const count = socket.write(state.unsent);
      state.unsent = state.unsent.subarray(Math.max(count, 0));
    };
    const socket = await Bun.connect<undefined>({
      unix: path,
      socket: {
        data(_, bytes) {
          state.input = Buffer.concat([state.input, bytes]);
          state.wake();
        },
        close() {
          state.closed = true;
          state.wake();
        },
        drain,
        error() {},
      },
    });
    return new RawClient(socket, state);
  }

  send(bytes: Uint8Array): void {
    const { state, socket } = this;
    const count = state.unsent.length === 0 ? Math.max(socket.write(bytes), 0) : 0;
    state.unsent = Buffer.concat([state.unsent, bytes.subarray(count)]);
  }

  /** Receives so many bytes; null where the connection ends before. */
  async receive(count: number): Promise<Buffer | null> {
    const { state } = this;
    while (state.input.length < count && !state.closed) {
      await new Promise<void>((resolve) => {
        state.wake = resolve;
      });
    }
    if (state.input.length < count) return null;
    const bytes = state.input.subarray(0, count);
    state.input = state.input.subarray(count);
    return bytes;
  }

  /** Resolves when the other side has closed it. */
  async closed(): Promise<void> {
    const { state } = this;
    while (!state.closed) {
      await new Promise<void>((resolve) => {
        state.wake = resolve;
      });
    }
  }

  close(): void {
    this.socket.end();
  }
}

/** An option as a client sends it. */
export function option(number: number, data: Uint8Array = new Uint8Array()): Buffer {
  const head = Buffer.alloc(16);
  head.write('IHAVEOPT', 'latin1');
  head.writeUInt32BE(number, 8);
  head.writeUInt32BE(data.length, 12);
  return Buffer.concat([head, data]);
}

/** The data of NBD_OPT_GO and NBD_OPT_INFO. */
export function goData(name = ''): Buffer {
  const bytes = Buffer.alloc(6 + Buffer.byteLength(name));
  bytes.writeUInt32BE(Buffer.byteLength(name), 0);
  bytes.write(name, 4);
  return bytes;
}

export function request(
  type: number,
  { flags = 0, cookie = 1n, offset = 0n, length = 0 },
  data: Uint8Array = new Uint8Array(),
): Buffer {
  const head = Buffer.alloc(28);
  head.writeUInt32BE(0x25609513, 0);
  head.writeUInt16BE(flags, 4);
  head.writeUInt16BE(type, 6);
  head.writeBigUInt64BE(cookie, 8);
  head.writeBigUInt64BE(offset, 16);
  head.writeUInt32BE(length, 24);
  return Buffer.concat([head, data]);
}
