/** What a probe does with a disk once it is connected: checks bytes, and measures. */
import { UserError } from '../errors.ts';
import { LatencyHistogram } from '../latency_histogram.ts';
import type { BlockClient } from './block_client.ts';
import { fillPattern, findDifference } from './pattern.ts';
import { T_IN, T_OUT } from './slot.ts';

const RANDOM_BYTES = 4096;
/** What a buffer holds before it is read into: bytes that the device leaves out are found. */
const POISON = 0xa5;

export interface Measurement {
  name: string;
  requestBytes: number;
  /** Requests in flight on all queues together. */
  depth: number;
  requests: number;
  seconds: number;
  iops: number;
  bytesPerSecond: number;
  /** Latencies in microseconds, from the moment that a request is put into its queue. */
  meanUs: number;
  p50Us: number;
  p90Us: number;
  p99Us: number;
  p999Us: number;
  maxUs: number;
}

/** Chunks of a span, one after the other. */
function* chunks(
  startBytes: number,
  endBytes: number,
  chunkBytes: number,
): Generator<[offset: number, length: number]> {
  for (let at = startBytes; at < endBytes; at += chunkBytes) {
    yield [at, Math.min(chunkBytes, endBytes - at)];
  }
}

/** What `sweep` does with the bytes of a chunk. */
type ChunkWork = (bytes: Uint8Array, offset: number) => void;

/** Runs a request of `type` over each chunk of a span. */
async function sweep(
  client: BlockClient,
  type: number,
  [startBytes, endBytes]: readonly [number, number],
  before: ChunkWork,
  after: ChunkWork,
): Promise<void> {
  const todo = chunks(startBytes, endBytes, client.transferBytes);
  const places = Array.from({ length: client.slotCount }, () => [0, 0]);
  const bytesOf = (slot: number) => client.data(slot).subarray(0, places[slot][1]);
  await client.run({
    next(slot) {
      const chunk = todo.next();
      if (chunk.done) return false;
      places[slot] = chunk.value;
      const [offset, length] = chunk.value;
      before(bytesOf(slot), offset);
      client.start(slot, type, offset, length);
      return true;
    },
    done(slot) {
      after(bytesOf(slot), places[slot][0]);
    },
  });
}

/**
 * Reads a span of the disk, as many requests at once as the client has room for, in no order.
 * @param span its first byte and the one behind its last; multiples of the disk's blocks
 * @param take gets each piece; its memory is used again afterwards
 * @throws UserError where a request fails
 */
export async function readSpan(
  client: BlockClient,
  span: readonly [startBytes: number, endBytes: number],
  take: (bytes: Uint8Array, offset: number) => void,
): Promise<void> {
  await sweep(client, T_IN, span, poison, take);
}

/**
 * Writes a pattern over the span, flushes, and reads every byte of it back.
 * @throws UserError where a byte differs
 */
export async function writeAndCompare(
  client: BlockClient,
  spanBytes: number,
  seed: number,
): Promise<void> {
  const nothing = () => {};
  const fill = (bytes: Uint8Array, at: number) => fillPattern(wordsOf(bytes), at, seed);
  await sweep(client, T_OUT, [0, spanBytes], fill, nothing);
  await client.flush();
  await readSpan(client, [0, spanBytes], (bytes, offset) => {
    const at = findDifference(wordsOf(bytes), offset, seed);
    if (at < 0) return;
    const got = bytes[at];
    fillPattern(wordsOf(bytes), offset, seed);
    throw new UserError(
      `the disk returns other data than was written: at offset ${offset + at} it has ` +
        `${hexByte(got)} instead of ${hexByte(bytes[at])}`,
    );
  });
}

/**
 * Reads the span twice: a disk that nobody writes must say the same both times.
 * @throws UserError where it doesn't
 */
export async function readTwice(client: BlockClient, spanBytes: number): Promise<void> {
  const hashes = new Map<number, number | bigint>();
  await readSpan(client, [0, spanBytes], (bytes, offset) => {
    hashes.set(offset, Bun.hash(bytes));
  });
  await readSpan(client, [0, spanBytes], (bytes, offset) => {
    if (hashes.get(offset) === Bun.hash(bytes)) return;
    throw new UserError(
      `the disk returned different data when it was read again, within ${bytes.length} bytes at ` +
        `offset ${offset}; does another program write its file?`,
    );
  });
}

export interface MeasureOptions {
  name: string;
  write: boolean;
  random: boolean;
  spanBytes: number;
  durationS: number;
}

/** Requests for a while, as many at once as the client has room for. @throws UserError */
export async function measure(client: BlockClient, options: MeasureOptions): Promise<Measurement> {
  const { name, write, random, spanBytes, durationS } = options;
  const depth = client.slotCount;
  const requestBytes = Math.min(random ? RANDOM_BYTES : client.transferBytes, spanBytes);
  const blocks = Math.floor(spanBytes / requestBytes);
  const type = write ? T_OUT : T_IN;
  const latencies = new LatencyHistogram();
  const startedNs = new Float64Array(depth);
  let block = 0;
  const beginNs = Bun.nanoseconds();
  const endNs = beginNs + durationS * 1e9;
  await client.run({
    next(slot) {
      const nowNs = Bun.nanoseconds();
      if (nowNs >= endNs) return false;
      startedNs[slot] = nowNs;
      block = random ? Math.floor(Math.random() * blocks) : (block + 1) % blocks;
      client.start(slot, type, block * requestBytes, requestBytes);
      return true;
    },
    done(slot) {
      latencies.add(Bun.nanoseconds() - startedNs[slot]);
    },
  });
  const seconds = (Bun.nanoseconds() - beginNs) / 1e9;
  const requests = latencies.count;
  return {
    name,
    requestBytes,
    depth,
    requests,
    seconds,
    iops: requests / seconds,
    bytesPerSecond: (requests * requestBytes) / seconds,
    meanUs: latencies.meanUs,
    p50Us: latencies.percentileUs(0.5),
    p90Us: latencies.percentileUs(0.9),
    p99Us: latencies.percentileUs(0.99),
    p999Us: latencies.percentileUs(0.999),
    maxUs: latencies.maxUs,
  };
}

function poison(bytes: Uint8Array): void {
  bytes.fill(POISON);
}

function wordsOf(bytes: Uint8Array): Uint32Array {
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}

/** `0x0f` */
export function hexByte(byte: number): string {
  return `0x${byte.toString(16).padStart(2, '0')}`;
}
