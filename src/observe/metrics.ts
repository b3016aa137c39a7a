/**
 * A served disk's metrics as text, in the format of Prometheus (0.0.4) or OpenMetrics (1.0.0): names
 * end in their unit, which is a base unit (seconds, bytes), and counters in `_total`.
 */
import { shim } from '../../ffi/library.ts';
import { OP_NAMES, type OpCounts } from '../device/queue_counters.ts';
import type { ServedDevice } from './device_commands.ts';
import { latencyOfAll } from './device_stats.ts';
import { MetricText } from './metric_text.ts';
import { processMetrics } from './process_metrics.ts';

/** Ends of a histogram's buckets are powers of two of nanoseconds: from 4 us to 69 s. */
const FIRST_POWER = 12;
const LAST_POWER = 36;

/** @param openMetrics false: the older format, which every reader knows */
export function metricsText(device: ServedDevice, openMetrics: boolean): string {
  const text = new MetricText(openMetrics);
  deviceMetrics(text, device);
  requestMetrics(text, device);
  stripeMetrics(text, device);
  processMetrics(text);
  return text.end();
}

function deviceMetrics(text: MetricText, { version, description, frontend }: ServedDevice): void {
  const { connected, writeback, blockDevice = '' } = frontend();
  const { deviceId, path, ioEngine, directIo, encrypted, readOnly } = description;
  text.gauge('ubiblk_device_info', 'What the device is; always 1.', 1, {
    version,
    frontend: description.frontend,
    device_id: deviceId,
    path,
    block_device: blockDevice,
    io_engine: ioEngine,
    direct_io: String(directIo),
    encrypted: String(encrypted),
    read_only: String(readOnly),
  });
  text.gauge('ubiblk_device_size_bytes', 'Size of the device.', description.sizeBytes);
  text.gauge(
    'ubiblk_frontend_connected',
    'Whether a virtual machine is connected, or the block device is there.',
    Number(connected),
  );
  text.gauge(
    'ubiblk_write_cache_enabled',
    'Whether writes may be answered before they are durable.',
    Number(writeback),
  );
}

function requestMetrics(text: MetricText, { board }: ServedDevice): void {
  const perOp = (name: string, help: string, of: (counts: OpCounts) => number) => {
    const family = text.family(name, 'counter', help);
    board.queues.forEach(({ counters }, queue) => {
      OP_NAMES.forEach((op, i) => {
        family.sample(of(counters.of(i)), { queue: String(queue), op });
      });
    });
  };
  perOp('ubiblk_requests', 'Requests taken.', ({ ops }) => ops);
  perOp('ubiblk_request_bytes', 'Bytes of requests taken.', ({ bytes }) => bytes);
  perOp('ubiblk_request_errors', 'Requests that the disk failed.', ({ errors }) => errors);
  const nowNs = shim.ubiblk_clock_ns();
  const refused = text.family(
    'ubiblk_requests_refused',
    'counter',
    'Requests that broke a rule and never reached the disk.',
  );
  const flying = text.family('ubiblk_requests_in_flight', 'gauge', 'Requests in work.');
  const oldest = text.family(
    'ubiblk_oldest_request_age_seconds',
    'gauge',
    'For how long the oldest request has been in work; 0 where there is none.',
  );
  board.queues.forEach((each, queue) => {
    const labels = { queue: String(queue) };
    const { count, oldestNs } = each.inFlight(nowNs);
    refused.sample(each.counters.refusedRequests, labels);
    flying.sample(count, labels);
    oldest.sample(oldestNs / 1e9, labels);
  });
  const durations = text.family(
    'ubiblk_request_duration_seconds',
    'histogram',
    'From when a request is taken to when it is answered.',
  );
  OP_NAMES.forEach((op, i) => {
    const latency = latencyOfAll(board, i);
    const below: [endS: number, count: number][] = [];
    for (let power = FIRST_POWER; power <= LAST_POWER; power++) {
      below.push([2 ** power / 1e9, latency.below(power)]);
    }
    durations.histogram(below, latency.count, latency.sumNs / 1e9, { op });
  });
}

/** What is told of a lazy disk; see `StripeStatus`. */
interface LazyStatus {
  failingCount: number;
  slow: unknown[];
  queued: number;
  inFlight: number;
  autofetch: boolean;
  metadata: { attempts: number; pending: number };
  origin: {
    failures: number;
    bytesRead: number;
    bytesShared: number;
    bytesZero: number;
    bytesFromImage: number;
    connections: { open: number } | null;
  } | null;
}

function stripeMetrics(text: MetricText, device: ServedDevice): void {
  const counts = device.status();
  if (!counts) return;
  const status = counts as typeof counts & LazyStatus;
  text.gauge('ubiblk_stripes', 'Stripes of the disk.', status.total);
  text.gauge('ubiblk_stripes_source', 'Stripes that the source holds.', status.source);
  text.gauge('ubiblk_stripes_fetched', 'Of these, those that are here.', status.fetched);
  text.gauge('ubiblk_stripes_failing', 'Stripes that could not be fetched.', status.failingCount);
  text.gauge('ubiblk_stripes_queued', 'Stripes that wait for their fetch.', status.queued);
  text.gauge('ubiblk_fetches_in_flight', 'Fetches under way.', status.inFlight);
  text.gauge('ubiblk_fetches_slow', 'Fetches that take five seconds or more.', status.slow.length);
  text.gauge(
    'ubiblk_autofetch_enabled',
    'Whether stripes are fetched that no request needs.',
    Number(status.autofetch),
  );
  text.gauge(
    'ubiblk_metadata_failed_tries',
    'Tries in vain since the metadata file was last written.',
    status.metadata.attempts,
  );
  text.gauge(
    'ubiblk_metadata_pending_changes',
    'Changes of stripes that are not on record yet.',
    status.metadata.pending,
  );
  const { origin } = status;
  if (!origin) return;
  const bytes = text.family(
    'ubiblk_source_bytes',
    'counter',
    'Bytes that came from the source: read, shared blocks, zeroes, or read past the disk.',
  );
  bytes.sample(origin.bytesRead, { how: 'read' });
  bytes.sample(origin.bytesShared, { how: 'shared' });
  bytes.sample(origin.bytesZero, { how: 'zero' });
  bytes.sample(origin.bytesFromImage, { how: 'direct' });
  text.counter('ubiblk_fetch_errors', 'Fetches that failed.', origin.failures);
  text.gauge(
    'ubiblk_source_connections',
    'Connections to the source; 0 for one that has none.',
    origin.connections?.open ?? 0,
  );
}
