/** Exports of NBD servers as ends of a copy. */

import { parseNbdUri } from '../config/nbd_uri.ts';
import { READ_ONLY, SEND_FLUSH, SEND_WRITE_ZEROES } from '../device/nbd/protocol.ts';
import { errorName, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { NbdConnection } from '../nbd/connection.ts';
import { NbdPool } from '../nbd/pool.ts';
import { readPskFile } from '../nbd/psk_file.ts';
import { type Memory, nativeMemory } from '../remote/channel.ts';
import type { CopySource, CopyTarget, Extent } from './ends.ts';

const CONNECT_MS = 10_000;
const OPERATION_MS = 60_000;
const UNIT_BYTES = 1 << 20;
const PER_CONNECTION = 8;
/** Connections, as nbdcopy has. */
const MOST_CONNECTIONS = 4;
/** Of a server that can't zero. */
const ZERO_BYTES = 1 << 20;
/** Of one request; the protocol has 32 bits. */
const MOST_ZEROED = 2 ** 30;

async function openPool(uri: string, log: Log): Promise<{ pool: NbdPool; wipe: () => void }> {
  const place = parseNbdUri(uri);
  const psk = place.tls ? readPskFile(place.pskFile as string, place.user) : undefined;
  const options = { place, ...(psk && { psk }), connectMs: CONNECT_MS, operationMs: OPERATION_MS };
  const wipe = () => psk?.secret.wipe();
  try {
    return { pool: await NbdPool.open(options, MOST_CONNECTIONS, log), wipe };
  } catch (error) {
    wipe();
    throw error;
  }
}

export class NbdCopySource implements CopySource {
  readonly unitBytes = UNIT_BYTES;
  readonly sizeBytes: number;
  readonly parallel: number;
  readonly identity: string;

  private constructor(
    readonly name: string,
    private readonly pool: NbdPool,
    private readonly wipe: () => void,
  ) {
    this.sizeBytes = pool.facts.sizeBytes;
    this.parallel = pool.parallel * PER_CONNECTION;
    // Of whether the export has changed since, its server says nothing.
    this.identity = `nbd ${name} ${this.sizeBytes}`;
  }

  /** @throws UserError */
  static async open(uri: string, log: Log): Promise<NbdCopySource> {
    const { pool, wipe } = await openPool(uri, log);
    return new NbdCopySource(uri, pool, wipe);
  }

  async extents(offset: number, length: number): Promise<readonly Extent[]> {
    if (this.pool.facts.allocationId < 0) return [{ length, zero: false }];
    return await this.attempt((pool) => pool.use((each) => each.extents(offset, length)));
  }

  async read(offset: number, memory: Memory, length: number): Promise<boolean> {
    await this.attempt((pool) => pool.use((each) => each.read(offset, memory, length)));
    return true;
  }

  stop(): void {
    this.pool.close();
  }

  async close(): Promise<void> {
    this.pool.close();
    this.wipe();
  }

  private async attempt<Result>(what: (pool: NbdPool) => Promise<Result>): Promise<Result> {
    return await what(this.pool).catch((error) => {
      throw new UserError(`'${this.name}' can't be read: ${(error as Error).message}`);
    });
  }
}

export class NbdCopyTarget implements CopyTarget {
  readonly roomBytes: number;
  readonly sectorBytes: number;
  private zeroes: ReturnType<typeof nativeMemory> | null = null;
  private lost: UserError | null = null;

  private constructor(
    readonly name: string,
    readonly isZero: boolean,
    private readonly pool: NbdPool,
    private readonly wipe: () => void,
  ) {
    this.roomBytes = pool.facts.sizeBytes;
    this.sectorBytes = pool.facts.minBlock;
  }

  /**
   * @param isZero it reads as zeroes, as whoever calls knows
   * @throws UserError where it may not be written, or has no room
   */
  static async open(
    uri: string,
    sizeBytes: number,
    isZero: boolean,
    log: Log,
  ): Promise<NbdCopyTarget> {
    const { pool, wipe } = await openPool(uri, log);
    const problem =
      (pool.facts.flags & READ_ONLY) !== 0
        ? 'may not be written'
        : pool.facts.sizeBytes < sizeBytes
          ? `has ${pool.facts.sizeBytes} bytes, fewer than the ${sizeBytes} of the source`
          : null;
    if (problem === null) return new NbdCopyTarget(uri, isZero, pool, wipe);
    pool.close();
    wipe();
    throw new UserError(`'${uri}' ${problem}`);
  }

  has(): boolean {
    return false;
  }

  async write(offset: number, memory: Memory, length: number): Promise<void> {
    await this.attempt((each) => each.write(offset, memory, length));
  }

  async zero(offset: number, length: number): Promise<void> {
    const canZero = (this.pool.facts.flags & SEND_WRITE_ZEROES) !== 0;
    this.zeroes ??= canZero ? null : nativeMemory(ZERO_BYTES);
    const { zeroes } = this;
    const most = zeroes ? ZERO_BYTES : MOST_ZEROED;
    for (let at = 0; at < length; at += most) {
      const part = Math.min(most, length - at);
      await this.attempt((each) =>
        zeroes ? each.write(offset + at, zeroes, part) : each.zero(offset + at, part, true),
      );
    }
  }

  async done(): Promise<void> {}

  async commit(): Promise<void> {
    if ((this.pool.facts.flags & SEND_FLUSH) === 0) return;
    await this.attempt((each) => each.flush());
  }

  async giveUp(): Promise<void> {}

  stop(): void {
    this.pool.close();
  }

  async close(): Promise<void> {
    this.pool.close();
    this.zeroes?.free();
    this.wipe();
  }

  /** A server that comes back may have lost what it had not made durable: then all begins anew. */
  private async attempt(what: (each: NbdConnection) => Promise<void>): Promise<void> {
    if (this.lost) throw this.lost;
    const { pool } = this;
    const asked = async (each: NbdConnection) => {
      if (!pool.loss) await what(each);
      if (pool.loss) throw pool.loss;
    };
    await pool.use(asked, 1).catch((error) => {
      this.lost = new UserError(`'${this.name}' can't be written: ${errorName(error)}`);
      throw this.lost;
    });
  }
}
