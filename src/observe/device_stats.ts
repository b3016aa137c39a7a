/** A served disk's counters and latencies, as the RPC socket tells them. */
import { shim } from '../../ffi/library.ts';
import { OP_NAMES, type QueueCounters } from '../device/queue_counters.ts';
import { DISCARD, FLUSH, READ, WRITE, WRITE_ZEROES } from '../device/request.ts';
import type { QueueBoard, RequestBoard } from '../device/request_board.ts';
import { LatencyHistogram, percentileUs } from '../latency_histogram.ts';

/** Microseconds. */
export interface LatencySummary {
  count: number;
  mean: number;
  p50: number;
  p90: number;
  p99: number;
  p999: number;
  max: number;
}

/** By operation: `read`, `write`, `flush`, `discard`, `write_zeroes`. */
type ByOp<Value> = Record<(typeof OP_NAMES)[number], Value>;

export interface QueueStats {
  bytes_read: number;
  bytes_written: number;
  flush_ops: number;
  read_ops: number;
  write_ops: number;
  bytes_discarded: number;
  discard_ops: number;
  bytes_zeroed: number;
  write_zeroes_ops: number;
  errors: ByOp<number>;
  refused: number;
  in_flight: number;
  oldest_ms: number;
  latency_us: ByOp<LatencySummary>;
}

export interface DeviceStats {
  queues: QueueStats[];
  /** Of all queues; `buckets` has the end of each that isn't empty, and how many are in it. */
  latency_us: ByOp<LatencySummary & { buckets: [endUs: number, count: number][] }>;
}

/** @returns what all queues have done since the process began, in the answer's own names */
export function deviceStats(board: RequestBoard): DeviceStats {
  const nowNs = shim.ubiblk_clock_ns();
  const latency = byOp((op) => {
    const all = latencyOfAll(board, op);
    return { ...summary(all), buckets: all.buckets() };
  });
  return { queues: board.queues.map((queue) => queueStats(queue, nowNs)), latency_us: latency };
}

/** The latencies of one operation on all queues. */
export function latencyOfAll({ queues }: RequestBoard, op: number): LatencyHistogram {
  const all = new LatencyHistogram();
  for (const { counters } of queues) all.addAll(counters.of(op).latency);
  return all;
}

function queueStats(queue: QueueBoard, nowNs: number): QueueStats {
  const { counters } = queue;
  const [read, write, zero, discard] = [READ, WRITE, WRITE_ZEROES, DISCARD].map((op) =>
    counters.of(op),
  );
  const { count, oldestNs } = queue.inFlight(nowNs);
  return {
    bytes_read: read.bytes,
    bytes_written: write.bytes,
    flush_ops: counters.of(FLUSH).ops,
    read_ops: read.ops,
    write_ops: write.ops,
    bytes_discarded: discard.bytes,
    discard_ops: discard.ops,
    bytes_zeroed: zero.bytes,
    write_zeroes_ops: zero.ops,
    errors: byOp((op) => counters.of(op).errors),
    refused: counters.refusedRequests,
    in_flight: count,
    oldest_ms: Math.round(oldestNs / 1e3) / 1e3,
    latency_us: latencies(counters),
  };
}

function latencies(counters: QueueCounters): ByOp<LatencySummary> {
  return byOp((op) => summary(counters.of(op).latency));
}

function summary(histogram: LatencyHistogram): LatencySummary {
  const rounded = (us: number) => Math.round(us * 1000) / 1000;
  // Found once: there may be many queues, and nothing here may take long.
  const buckets = histogram.buckets();
  const { maxUs } = histogram;
  const percentile = (share: number) => rounded(Math.min(percentileUs(buckets, share), maxUs));
  const count = buckets.reduce((sum, [, each]) => sum + each, 0);
  return {
    count,
    mean: count === 0 ? 0 : rounded(histogram.sumNs / count / 1000),
    p50: percentile(0.5),
    p90: percentile(0.9),
    p99: percentile(0.99),
    p999: percentile(0.999),
    max: rounded(maxUs),
  };
}

function byOp<Value>(of: (op: number) => Value): ByOp<Value> {
  return Object.fromEntries(OP_NAMES.map((name, op) => [name, of(op)])) as ByOp<Value>;
}
