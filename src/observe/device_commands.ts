/** The RPC commands that every served disk answers. */
import type { RequestBoard } from '../device/request_board.ts';
import { deviceStats } from './device_stats.ts';
import { type RpcCommands, RpcError } from './rpc_protocol.ts';

/** How many stripes a lazy disk has, how many of them came with a source, and how many are fetched. */
export interface StripeCounts {
  fetched: number;
  source: number;
  total: number;
  /** What is known of the source; null where nothing is fetched from it. */
  origin?: object | null;
}

/** What stays as it is as long as the server runs. */
export interface DeviceDescription {
  frontend: 'vhost' | 'ublk' | 'nbd';
  deviceId: string;
  /** Of the data file; empty for the null disk. */
  path: string;
  sizeBytes: number;
  queues: number;
  readOnly: boolean;
  encrypted: boolean;
  directIo: boolean;
  writeThrough: boolean;
  ioEngine: string;
}

/** What may change at any time. */
export interface FrontendState {
  /** A virtual machine or a client is connected, or the block device is there. */
  connected: boolean;
  /** Writes may be answered before they are durable. */
  writeback: boolean;
  /** `/dev/ublkbN`. */
  blockDevice?: string;
}

/** What a client can have done. */
export interface DeviceActions {
  /** Has all that was answered on stable storage. @throws Error where that fails */
  flush: () => Promise<void>;
  shutdown: () => void;
  /** Null for a disk without metadata. */
  stripes: StripeActions | null;
}

export interface StripeActions {
  autofetch: boolean;
  /** @returns how many stripes failed */
  retryFailed: () => number;
}

export interface ServedDevice {
  version: string;
  description: DeviceDescription;
  frontend: () => FrontendState;
  /** The counts, and whatever else there is to say; null for a disk without metadata. */
  status: () => StripeCounts | null;
  board: RequestBoard;
  actions: DeviceActions;
}

/** A disk that hangs must not keep all connections occupied, so that nobody can ask what it does. */
const FLUSH_PATIENCE_MS = 60_000;

/**
 * @param flushPatienceMs how long a client is kept waiting for a flush
 * @returns the table of commands (docs/rpc.md)
 */
export function deviceCommands(
  device: ServedDevice,
  flushPatienceMs = FLUSH_PATIENCE_MS,
): RpcCommands {
  const { version, board, actions } = device;
  const flush = oneAtATime(actions.flush);
  const setAutofetch = (on: boolean) => {
    stripesOf(actions).autofetch = on;
    return { autofetch: on };
  };
  return {
    version: () => ({ version }),
    status: () => ({ device: deviceAnswer(device), status: statusAnswer(device.status()) }),
    queues: () => ({ queues: board.list() }),
    stats: () => ({ stats: { ...deviceStats(board), uptime_s: uptimeS() } }),
    flush: async () => {
      await inTime(flush(), flushPatienceMs);
      return { flushed: true };
    },
    pause_autofetch: () => setAutofetch(false),
    resume_autofetch: () => setAutofetch(true),
    retry_failed: () => ({ retried: stripesOf(actions).retryFailed() }),
    shutdown: () => {
      // The answer is on its way before anything ends.
      setImmediate(actions.shutdown);
      return { shutting_down: true };
    },
  };
}

/**
 * Who asks while it is being done gets the next one, with all others who do: what it does begins after
 * it was asked for, and however many ask, no more than one waits.
 */
function oneAtATime(work: () => Promise<void>): () => Promise<void> {
  let running: Promise<void> | null = null;
  let next: Promise<void> | null = null;
  const begin = () => {
    const done = work();
    running = done;
    next = null;
    const over = () => {
      if (running === done) running = null;
    };
    done.then(over, over);
    return done;
  };
  return () => {
    if (next) return next;
    if (!running) return begin();
    next = running.then(begin, begin);
    return next;
  };
}

/** @throws RpcError where a flush fails, or isn't done in time */
async function inTime(flush: Promise<void>, patienceMs: number): Promise<void> {
  const late = Promise.withResolvers<never>();
  const timer = setTimeout(() => {
    const message = `the flush is not done after ${patienceMs / 1000} s, and goes on`;
    late.reject(new RpcError('flush_slow', message));
  }, patienceMs);
  try {
    await Promise.race([flush, late.promise]);
  } catch (error) {
    if (error instanceof RpcError) throw error;
    throw new RpcError('flush_failed', `the flush failed: ${(error as Error).message}`);
  } finally {
    clearTimeout(timer);
  }
}

/** Seconds since the process began, with milliseconds. */
export function uptimeS(): number {
  return Math.round(performance.now()) / 1000;
}

function stripesOf({ stripes }: DeviceActions): StripeActions {
  if (stripes) return stripes;
  throw new RpcError('no_metadata', 'the disk has no metadata: nothing is fetched');
}

function deviceAnswer({ description, frontend }: ServedDevice): object {
  const { connected, writeback, blockDevice } = frontend();
  const { frontend: kind, ...others } = description;
  return snakeCased({
    ...others,
    frontend: kind,
    ...(blockDevice !== undefined && { blockDevice }),
    connected,
    cache: writeback ? 'writeback' : 'writethrough',
    pid: process.pid,
    startedAt: new Date(performance.timeOrigin).toISOString(),
    uptimeS: uptimeS(),
  }) as object;
}

function statusAnswer(status: StripeCounts | null): object | null {
  if (!status) return null;
  const { fetched, source, total, origin, ...others } = status;
  // Older releases gave the complement of `source`; clients of both are served.
  const stripes = { fetched, no_source: total - source, source, total };
  const told = origin === undefined ? others : { ...others, source: origin };
  return { ...(snakeCased(told) as object), stripes };
}

/** The same value with keys as this protocol spells them: `inFlight` is `in_flight`. */
function snakeCased(value: unknown): unknown {
  if (typeof value !== 'object' || value === null) return value;
  if (Array.isArray(value)) return value.map(snakeCased);
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [
      key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`),
      snakeCased(inner),
    ]),
  );
}
