/** What a probe does with a disk once it is connected: checks bytes, and measures. */
import { UserError } from '../errors.ts';
import { LatencyHistogram } from '../latency_histogram.ts';
import { type BlockClient, T_IN, T_OUT } from './block_client.ts';
import { fillPattern, findDifference } from './pattern.ts';

const RANDOM_BYTES = 4096;
/** What a buffer holds before it is read into: bytes that the device leaves out are found. */
const POISON = 0xa5;

export interface Measurement {
  name: string;
  requestBytes: number;
  depth: number;
  requests: number;
  seconds: number;
  iops: number;
  bytesPerSecond: number;
  meanUs: number;
  p99Us: number;
}

/** Chunks of a span, one after the other. */
function* chunks(
  spanBytes: number,
  chunkBytes: number,
): Generator<[offset: number, length: number]> {
  for (let at = 0; at < spanBytes; at += chunkBytes) {
    yield [at, Math.min(chunkBytes, spanBytes - at)];
  }
}

/** Runs a request of `type` over each chunk of the span. */
function sweep(
  client: BlockClient,
  type: number,
  spanBytes: number,
  depth: number,
  before: (bytes: Uint8Array, offset: number) => void,
  after: (bytes: Uint8Array, offset: number) => void,
): void {
  const todo = chunks(spanBytes, client.transferBytes);
  const places = Array.from({ length: depth }, () => [0, 0]);
  const bytesOf = (slot: number) => client.data(slot).subarray(0, places[slot][1]);
  client.run({
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
 * Writes a pattern over the span, flushes, and reads every byte of it back.
 * @throws UserError where a byte differs
 */
export function writeAndCompare(
  client: BlockClient,
  spanBytes: number,
  depth: number,
  seed: number,
): void {
  const nothing = () => {};
  const fill = (bytes: Uint8Array, at: number) => fillPattern(wordsOf(bytes), at, seed);
  sweep(client, T_OUT, spanBytes, depth, fill, nothing);
  client.flush();
  sweep(client, T_IN, spanBytes, depth, poison, (bytes, offset) => {
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
export function readTwice(client: BlockClient, spanBytes: number, depth: number): void {
  const hashes = new Map<number, number | bigint>();
  sweep(client, T_IN, spanBytes, depth, poison, (bytes, offset) => {
    hashes.set(offset, Bun.hash(bytes));
  });
  sweep(client, T_IN, spanBytes, depth, poison, (bytes, offset) => {
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
  depth: number;
  durationS: number;
}

/** Requests for a while, as many at once as the depth says. @throws UserError */
export function measure(client: BlockClient, options: MeasureOptions): Measurement {
  const { name, write, random, spanBytes, depth, durationS } = options;
  const requestBytes = Math.min(random ? RANDOM_BYTES : client.transferBytes, spanBytes);
  const blocks = Math.floor(spanBytes / requestBytes);
  const type = write ? T_OUT : T_IN;
  const latencies = new LatencyHistogram();
  const startedNs = new Float64Array(depth);
  let block = 0;
  const beginNs = Bun.nanoseconds();
  const endNs = beginNs + durationS * 1e9;
  client.run({
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
    p99Us: latencies.percentileUs(0.99),
  };
}

function poison(bytes: Uint8Array): void {
  bytes.fill(POISON);
}

function wordsOf(bytes: Uint8Array): Uint32Array {
  return new Uint32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
}

function hexByte(byte: number): string {
  return `0x${byte.toString(16).padStart(2, '0')}`;
}
