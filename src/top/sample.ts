/** One look at a running server, over its RPC socket. */
import { UserError } from '../errors.ts';
import { askRpc } from '../observe/rpc_client.ts';

/** End of a bucket in microseconds, and how many requests are in it. */
export type Bucket = readonly [endUs: number, count: number];

/** Numbers that only grow as long as the server lives. */
export interface Counters {
  readBytes: number;
  writtenBytes: number;
  readOps: number;
  writeOps: number;
  flushOps: number;
  errors: number;
  /** Of all queues, by operation; empty where the server tells none. */
  buckets: Readonly<Record<string, readonly Bucket[]>>;
  fetchedBytes: number;
}

export interface Stripes {
  total: number;
  source: number;
  fetched: number;
  failing: number;
  /** Why one of them fails; empty where none does. */
  failure: string;
  queued: number;
  inFlight: number;
  autofetch: boolean;
}

export interface QueueSample {
  readBytes: number;
  writtenBytes: number;
  readOps: number;
  writeOps: number;
  inFlight: number;
  oldestMs: number;
}

export interface Sample {
  /** When it was taken: milliseconds of the looker's own clock. */
  atMs: number;
  /** Of the server; null for one that doesn't tell. */
  uptimeS: number | null;
  /** Which process it was; null for one that doesn't tell. */
  pid: number | null;
  name: string;
  /** Null where nothing is known of it. */
  connected: boolean | null;
  counters: Counters;
  queues: QueueSample[];
  stripes: Stripes | null;
}

type Fields = Record<string, unknown>;

/**
 * Asks a server. Of one that doesn't know a command, what is missing is 0 or null.
 * @param path of its socket
 * @throws UserError where there is none, or it doesn't answer in time
 */
export async function takeSample(path: string, timeoutMs: number): Promise<Sample> {
  const ask = async (command: string): Promise<Fields> => {
    const answer = await askRpc(path, command, timeoutMs);
    return fields(answer[command]);
  };
  const stats = await ask('stats').catch(orNothing);
  const atMs = performance.now();
  const whole = await askRpc(path, 'status', timeoutMs);
  const lists = 'queues' in stats ? null : (await askRpc(path, 'queues', timeoutMs)).queues;
  return sampleOf(path, atMs, stats, whole, Array.isArray(lists) ? lists : []);
}

/** An older server knows no `stats`. */
function orNothing(error: unknown): Fields {
  if (error instanceof UserError && error.message.includes('unknown command')) return {};
  throw error;
}

function sampleOf(
  path: string,
  atMs: number,
  stats: Fields,
  whole: Fields,
  lists: unknown[],
): Sample {
  const device = fields(whole.device);
  const queues = Array.isArray(stats.queues)
    ? stats.queues.map(queueOf)
    : lists.map((list) => ({ ...queueOf({}), inFlight: Array.isArray(list) ? list.length : 0 }));
  const sum = (of: (queue: QueueSample) => number) => queues.reduce((all, q) => all + of(q), 0);
  const raw = Array.isArray(stats.queues) ? stats.queues.map(fields) : [];
  const source = fields(fields(whole.status).source);
  return {
    atMs,
    uptimeS: typeof stats.uptime_s === 'number' ? stats.uptime_s : null,
    pid: typeof device.pid === 'number' ? device.pid : null,
    name: path,
    connected: typeof device.connected === 'boolean' ? device.connected : null,
    counters: {
      readBytes: sum((queue) => queue.readBytes),
      writtenBytes: sum((queue) => queue.writtenBytes),
      readOps: sum((queue) => queue.readOps),
      writeOps: sum((queue) => queue.writeOps),
      flushOps: raw.reduce((all, queue) => all + number(queue.flush_ops), 0),
      errors: raw.reduce(
        (all, { errors }) => all + Object.values(fields(errors)).reduce(plus, 0),
        0,
      ),
      buckets: bucketsOf(fields(stats.latency_us)),
      fetchedBytes:
        number(source.bytes_read) + number(source.bytes_shared) + number(source.bytes_zero),
    },
    queues,
    stripes: stripesOf(whole.status),
  };
}

function queueOf(queue: unknown): QueueSample {
  const of = fields(queue);
  return {
    readBytes: number(of.bytes_read),
    writtenBytes: number(of.bytes_written),
    readOps: number(of.read_ops),
    writeOps: number(of.write_ops),
    inFlight: number(of.in_flight),
    oldestMs: number(of.oldest_ms),
  };
}

function bucketsOf(latencies: Fields): Record<string, Bucket[]> {
  return Object.fromEntries(
    Object.entries(latencies).map(([op, of]) => {
      const { buckets } = fields(of);
      return [op, Array.isArray(buckets) ? (buckets as Bucket[]) : []];
    }),
  );
}

function stripesOf(status: unknown): Stripes | null {
  const of = fields(status);
  const counts = fields(of.stripes);
  if (typeof counts.total !== 'number') return null;
  const failing = Array.isArray(of.failing) ? of.failing.map(fields) : [];
  const first = failing[0];
  return {
    total: counts.total,
    source: number(counts.source),
    fetched: number(counts.fetched),
    failing: number(of.failing_count),
    failure: first ? `stripe ${first.stripe}: ${first.message}` : '',
    queued: number(of.queued),
    inFlight: number(of.in_flight),
    autofetch: of.autofetch === true,
  };
}

function fields(value: unknown): Fields {
  return typeof value === 'object' && value !== null ? (value as Fields) : {};
}

function number(value: unknown): number {
  return typeof value === 'number' ? value : 0;
}

function plus(sum: number, value: unknown): number {
  return sum + number(value);
}
