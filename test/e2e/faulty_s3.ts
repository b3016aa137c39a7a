/** A proxy in front of an S3 server that fails as such servers do, and counts. */
import { createHash } from 'node:crypto';
import {
  createServer,
  type IncomingMessage,
  request,
  type Server,
  type ServerResponse,
} from 'node:http';
import type { AddressInfo } from 'node:net';
import { within } from './processes.ts';

/** What is done with a request instead of passing it on. */
export type Fault =
  | { kind: 'status'; status: number; code?: string; headers?: Record<string, string> }
  /** The connection is cut before an answer, after half of one, and when the server has done its work. */
  | { kind: 'reset' }
  | { kind: 'cut' }
  | { kind: 'lost answer' }
  /** Half of an answer comes, and no more. */
  | { kind: 'stall' }
  /** A byte of the answer's body is another one; its checksum is another one; the request's body is. */
  | { kind: 'wrong bytes' }
  | { kind: 'wrong checksum' }
  | { kind: 'damaged upload' }
  /** No answer comes. */
  | { kind: 'silence' }
  | { kind: 'late'; ms: number }
  | { kind: 'held'; until: Promise<void> };

export interface SeenRequest {
  method: string;
  /** Without the bucket. */
  key: string;
  headers: IncomingMessage['headers'];
}

/** Says what happens to a request; null: it is passed on. */
export type Plan = (request: SeenRequest, count: number) => Fault | null;

export class FaultyS3 {
  plan: Plan = () => null;
  readonly seen: SeenRequest[] = [];
  /** The most requests that were under way at once. */
  most = 0;
  private busy = 0;
  private readonly server: Server;

  private constructor(private readonly upstream: string) {
    this.server = createServer((incoming, answer) => {
      this.most = Math.max(this.most, ++this.busy);
      answer.on('close', () => this.busy--);
      void this.handle(incoming, answer);
    });
  }

  static async start(upstream: string): Promise<FaultyS3> {
    const proxy = new FaultyS3(upstream);
    const { promise, resolve } = Promise.withResolvers<void>();
    proxy.server.listen(0, '127.0.0.1', resolve);
    await within(promise, 10_000, () => 'the proxy');
    return proxy;
  }

  get url(): string {
    return `http://127.0.0.1:${(this.server.address() as AddressInfo).port}`;
  }

  /** How many requests of a kind there were. */
  count(method: string, pattern: RegExp): number {
    return this.seen.filter((seen) => seen.method === method && pattern.test(seen.key)).length;
  }

  forget(): void {
    this.seen.length = 0;
    this.most = 0;
  }

  stop(): void {
    this.server.closeAllConnections();
    this.server.close();
  }

  private async handle(incoming: IncomingMessage, answer: ServerResponse): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of incoming) chunks.push(chunk as Buffer);
    const { method = 'GET', url = '/', headers } = incoming;
    const seen = { method, key: url.replace(/^\/[^/?]*\/?/, ''), headers };
    const before = this.seen.filter((each) => each.method === method && each.key === seen.key);
    this.seen.push(seen);
    const fault = this.plan(seen, before.length);
    if (fault?.kind === 'late') await Bun.sleep(fault.ms);
    if (fault?.kind === 'held') await fault.until;
    if (fault && this.answerWith(fault, incoming, answer)) return;
    this.pass(fault, incoming, Buffer.concat(chunks), answer);
  }

  /** @returns whether that was the answer */
  private answerWith(fault: Fault, { socket }: IncomingMessage, answer: ServerResponse): boolean {
    if (fault.kind === 'silence') return true;
    if (fault.kind === 'reset') {
      socket.destroy();
      return true;
    }
    if (fault.kind !== 'status') return false;
    const { status, code = 'InternalError', headers = {} } = fault;
    answer.writeHead(status, { 'content-type': 'application/xml', ...headers });
    answer.end(errorOf(code));
    return true;
  }

  private pass(
    fault: Fault | null,
    { method, url, headers, socket }: IncomingMessage,
    body: Buffer,
    answer: ServerResponse,
  ): void {
    if (fault?.kind === 'damaged upload' && body.length > 0) body[body.length >> 1] ^= 1;
    if (!hasItsChecksum(headers, body)) {
      answer.writeHead(400, { 'content-type': 'application/xml' });
      return void answer.end(errorOf('BadDigest'));
    }
    const options = { method, headers, agent: false as const };
    const onward = request(`${this.upstream}${url}`, options, async (reply) => {
      const chunks: Buffer[] = [];
      for await (const chunk of reply) chunks.push(chunk as Buffer);
      const content = Buffer.concat(chunks);
      if (fault?.kind === 'lost answer') return void socket.destroy();
      const given = { ...reply.headers };
      if (fault?.kind === 'wrong bytes' && content.length > 0) {
        content[content.length >> 1] ^= 1;
        for (const name of Object.keys(given)) if (name.includes('checksum')) delete given[name];
      }
      if (fault?.kind === 'wrong checksum') given['x-amz-checksum-crc32'] = 'AAAAAA==';
      // Of an answer to HEAD the length is told without a body.
      if (method !== 'HEAD') given['content-length'] = String(content.length);
      delete given['transfer-encoding'];
      delete given.connection;
      answer.writeHead(reply.statusCode ?? 500, given);
      const half = content.subarray(0, content.length >> 1);
      if (fault?.kind === 'stall') return void answer.write(half);
      if (fault?.kind !== 'cut') return void answer.end(content);
      answer.write(half, () => answer.destroy());
    });
    onward.on('error', () => answer.destroy());
    onward.end(body);
  }
}

function errorOf(code: string): string {
  return `<?xml version="1.0"?><Error><Code>${code}</Code><Message>made</Message></Error>`;
}

/** As S3 looks at uploads of data; the test's server doesn't. */
function hasItsChecksum(headers: IncomingMessage['headers'], body: Buffer): boolean {
  const sha256 = headers['x-amz-checksum-sha256'];
  return sha256 === undefined || createHash('sha256').update(body).digest('base64') === sha256;
}
