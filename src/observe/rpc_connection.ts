/**
 * The server's end of one client's connection: splits what comes into lines and answers them one after
 * the other. While an answer is worked on or isn't taken by the client, nothing more is read, so a
 * client occupies what it has sent at once and one answer, never more.
 */
import type { Socket } from 'bun';
import type { Log } from '../log.ts';
import {
  answerTo,
  errorAnswer,
  invalidRequest,
  type RpcCommands,
  RpcError,
} from './rpc_protocol.ts';

export interface RpcLimits {
  /** Bytes of a request without the end of its line. */
  lineBytes: number;
  clients: number;
  /** How long a client may take for its next request, or for taking an answer. */
  idleMs: number;
  /** How long a client that is refused may take to notice it. */
  lingerMs: number;
}

const NEWLINE = 10;
const NOTHING = Buffer.alloc(0);

export class RpcConnection {
  private input: Buffer = NOTHING;
  private output: Buffer = NOTHING;
  /** Resolves when the output is taken, or never will be. */
  private taken: (() => void) | null = null;
  private working = false;
  /** A command is being carried out: what takes long is not the client's fault. */
  private inCommand = false;
  /** The client has sent all that it will. */
  private ended = false;
  /** The client is only waited for: what it sends is thrown away. */
  private refused = false;
  private closed = false;
  private timer: Timer;

  constructor(
    private readonly socket: Socket<RpcConnection | null>,
    private readonly commands: RpcCommands,
    private readonly limits: RpcLimits,
    private readonly log: Log,
  ) {
    this.timer = setTimeout(() => this.idle(), limits.idleMs);
  }

  /** Bytes have come. */
  received(bytes: Buffer): void {
    if (this.refused) return;
    this.input = this.input.length === 0 ? bytes : Buffer.concat([this.input, bytes]);
    void this.work();
  }

  /** Nothing more will come. */
  receivedEnd(): void {
    this.ended = true;
    void this.work();
  }

  /** The socket takes bytes again. */
  writable(): void {
    if (this.output.length > 0) this.write();
  }

  /** The connection is gone. */
  gone(): void {
    this.closed = true;
    clearTimeout(this.timer);
    this.input = NOTHING;
    this.output = NOTHING;
    this.taken?.();
  }

  /** Answers all lines that are there, one in each turn of the event loop, which others need too. */
  private async work(): Promise<void> {
    if (this.working) return;
    this.working = true;
    this.socket.pause();
    for (;;) {
      const line = this.takeLine();
      if (this.closed || this.refused) return;
      if (line === null) break;
      if (line !== '') await this.answer(line);
      await nextTurn();
    }
    this.working = false;
    if (this.ended) this.socket.end();
    else this.socket.resume();
  }

  private async answer(line: string): Promise<void> {
    this.inCommand = true;
    const answer = await answerTo(line, this.commands, this.log);
    this.inCommand = false;
    await this.send(answer);
    if (!this.closed) this.timer.refresh();
  }

  /** @returns the next line, trimmed; null where there is none, or none that may be answered */
  private takeLine(): string | null {
    let end = this.input.indexOf(NEWLINE);
    const whole = end >= 0;
    if (!whole) end = this.input.length;
    if (end > this.limits.lineBytes) {
      const message = `invalid request: it has more than ${this.limits.lineBytes} bytes`;
      this.refuse(new RpcError('request_too_long', message));
      return null;
    }
    if (!whole && (!this.ended || end === 0)) return null;
    const bytes = this.input.subarray(0, end);
    const left = this.input.subarray(whole ? end + 1 : end);
    this.input = left.length === 0 ? NOTHING : left;
    try {
      return new TextDecoder('utf-8', { fatal: true }).decode(bytes).trim();
    } catch {
      this.refuse(invalidRequest('it is not UTF-8'));
      return null;
    }
  }

  /**
   * Says why, and nothing more. The connection stays until the client has closed it, for a while: one
   * that is closed while the client sends would throw away what it has not read yet.
   */
  refuse(error: RpcError): void {
    this.refused = true;
    this.input = NOTHING;
    void this.send(errorAnswer(error)).then(() => {
      if (this.closed) return;
      this.socket.shutdown();
      this.socket.resume();
    });
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.socket.terminate(), this.limits.lingerMs);
  }

  /** Resolves when the client's socket has taken the line. */
  private send(line: string): Promise<void> {
    if (this.closed) return Promise.resolve();
    const { promise, resolve } = Promise.withResolvers<void>();
    this.taken = resolve;
    this.output = Buffer.from(`${line}\n`);
    this.write();
    return promise;
  }

  private write(): void {
    const written = this.socket.write(this.output);
    // The client is gone, which a socket that isn't read from is not told.
    if (written < 0) this.socket.terminate();
    const left = this.output.subarray(Math.max(0, written));
    this.output = left.length === 0 ? NOTHING : left;
    if (left.length === 0) this.taken?.();
  }

  private idle(): void {
    if (this.inCommand) this.timer.refresh();
    else this.socket.terminate();
  }
}

function nextTurn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
