/** An export of an NBD server as a source of stripes; what it says is zeroes is never transferred. */

import { parseNbdUri } from '../config/nbd_uri.ts';
import { UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { SourceConnections, StripeBuffer, StripeSource } from '../stripe/interfaces.ts';
import { CaptiveServer } from './captive_server.ts';
import type { NbdOptions } from './connection.ts';
import { NbdPool } from './pool.ts';
import { readPskFile } from './psk_file.ts';
import { ZeroMap } from './zero_map.ts';

export interface NbdSourceOptions {
  /** The one or the other: where the server is, or what starts one. */
  uri?: string;
  command?: readonly string[];
  connections: number;
  connectMs: number;
  operationMs: number;
}

/** Requests at once on a connection. */
const PER_CONNECTION = 8;
const MOST_PARALLEL = 32;
/** What is known of zeroes after this long is enough to begin with. */
const LEARN_MS = 1000;
/** From the end of a server's socket to the end of its process, in milliseconds. */
const END_MS = 300;

export class NbdSource implements StripeSource {
  readonly description: string;
  readonly sizeBytes: number;
  readonly parallel: number;
  private readonly zeroes: ZeroMap | null;

  private constructor(
    private readonly pool: NbdPool,
    private readonly stripeBytes: number,
    words: string,
    private readonly options: NbdOptions,
    private readonly captive: CaptiveServer | null,
  ) {
    const { sizeBytes, allocationId } = pool.facts;
    this.sizeBytes = sizeBytes;
    this.description = `nbd (${words}, size: ${sizeBytes} bytes)`;
    this.parallel = Math.min(MOST_PARALLEL, pool.parallel * PER_CONNECTION);
    this.zeroes = allocationId < 0 ? null : new ZeroMap(sizeBytes, stripeBytes);
  }

  /** @throws UserError where there is no such server or export, or it can't be started */
  static async open(options: NbdSourceOptions, stripeBytes: number, log: Log): Promise<NbdSource> {
    const { uri, command, connectMs, operationMs } = options;
    const captive = uri === undefined ? CaptiveServer.start(command ?? [], log) : null;
    const place = parseNbdUri(captive ? `nbd+unix:///?socket=${captive.socket}` : (uri ?? ''));
    const psk = place.tls ? readPskFile(place.pskFile as string, place.user) : undefined;
    const nbd = { place, connectMs, operationMs, ...(psk && { psk }) };
    try {
      const pool = await opened(NbdPool.open(nbd, options.connections, log), captive);
      checkFacts(pool, uri ?? command?.join(' ') ?? '');
      return new NbdSource(pool, stripeBytes, nbdWords(options), nbd, captive);
    } catch (error) {
      psk?.secret.wipe();
      await captive?.stop();
      throw error;
    }
  }

  has(stripe: number): boolean {
    return stripe * this.stripeBytes < this.sizeBytes;
  }

  async read(stripe: number, buffer: StripeBuffer): Promise<boolean> {
    const { pool, zeroes } = this;
    if (zeroes && (await zeroes.isZero(stripe, (ask) => pool.use(ask)))) return false;
    const offset = stripe * this.stripeBytes;
    const wanted = Math.min(buffer.bytes.length, this.sizeBytes - offset);
    await pool.use((connection) => connection.read(offset, buffer, wanted));
    buffer.bytes.fill(0, wanted);
    return true;
  }

  get knownZeroes(): SharedArrayBuffer | undefined {
    return this.zeroes?.shared;
  }

  async prepare(): Promise<void> {
    const learning = this.zeroes?.learnAll((ask) => this.pool.use(ask));
    // What isn't learnt now is asked for when it is needed.
    await Promise.race([learning?.catch(() => {}), Bun.sleep(LEARN_MS)]);
  }

  whenBack(listener: () => void): void {
    this.pool.whenBack(listener);
  }

  get connections(): SourceConnections {
    return this.pool.connections;
  }

  reconnect(): void {
    this.pool.reconnect();
  }

  async close(): Promise<void> {
    this.pool.close();
    this.options.psk?.secret.wipe();
    await this.captive?.stop();
  }
}

/** A server that has ended is a better reason than what its end looks like from here. */
async function opened<Result>(
  opening: Promise<Result>,
  captive: CaptiveServer | null,
): Promise<Result> {
  if (!captive) return await opening;
  const failed = Promise.withResolvers<never>();
  const late = opening.catch(async (error) => {
    await Bun.sleep(END_MS);
    throw error;
  });
  captive.ended.then((words) => {
    failed.reject(new UserError(`${words} before it could be used; its messages are above`));
  });
  return await Promise.race([late, failed.promise]);
}

function checkFacts(pool: NbdPool, name: string): void {
  const { sizeBytes } = pool.facts;
  const problem =
    sizeBytes === 0 ? 'is empty' : sizeBytes % 512 !== 0 ? 'is no multiple of 512' : '';
  if (!problem) return;
  pool.close();
  throw new UserError(`the export of '${name}' has ${sizeBytes} bytes, which ${problem}`);
}

/** The source in words, without what only the server knows. */
export function nbdWords({ uri, command }: Pick<NbdSourceOptions, 'uri' | 'command'>): string {
  return uri === undefined ? `command: ${command?.join(' ')}` : `uri: ${uri}`;
}
