/** A lazy disk in the main thread: its metadata, its source, and the coordinator over the real files. */
import { NativeBuffer } from '../../ffi/memory.ts';
import type { StripeSource as SourceConfig } from '../config/device_config.ts';
import type { Disk, DiskFacts } from '../device/disk.ts';
import { UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { Coordinator, type StripeStatus } from './coordinator.ts';
import { DiskTarget } from './disk_target.ts';
import { buffersFor } from './fetcher.ts';
import type { Clock, StripeBuffer, StripeSource } from './interfaces.ts';
import type { LazyOptions } from './lazy_layer.ts';
import { type OpenMetadata, openMetadata } from './metadata_file.ts';
import {
  FETCHED,
  HAS_SOURCE,
  type QueueMessage,
  SharedStripes,
  sharedStripeBytes,
} from './shared_state.ts';
import { RawSource } from './sources/raw.ts';

/** What of a device's configuration a lazy disk needs. */
export interface LazyConfig {
  metadataPath: string;
  stripeSource?: SourceConfig;
  directIo: boolean;
  writeThrough: boolean;
  copyOnRead: boolean;
  trackWritten: boolean;
  autofetch: boolean;
  /** MiB a second for stripes that nobody waits for; undefined: no limit. */
  autofetchMaxMibPerS?: number;
}

/** What queues need to know of a lazy disk; plain data. */
export interface LazyStart {
  /** Of `SharedStripes`. */
  shared: SharedArrayBuffer;
  stripes: number;
  queues: number;
  /** The image that unfetched stripes may be read from. */
  image: DiskFacts | null;
  options: Omit<LazyOptions, 'queue'>;
  /** Of the source: which stripes are known to be zeroes. */
  knownZeroes: SharedArrayBuffer | null;
}

/** Memory for stripes under way. */
const BUFFERS_BYTES = 64 << 20;
/** For a source that doesn't say how many are best. */
const BUFFERS = 16;
const MIN_BUFFERS = 2;

const systemClock: Clock = {
  now: () => performance.now(),
  sleep: (ms, signal) =>
    new Promise((resolve) => {
      if (signal?.aborted) return resolve();
      // Only for others to get their turn, which a timer would make a millisecond of.
      if (ms <= 0) return void setImmediate(resolve);
      const timer = setTimeout(end, ms);
      function end() {
        clearTimeout(timer);
        signal?.removeEventListener('abort', end);
        resolve();
      }
      signal?.addEventListener('abort', end);
    }),
};

export class LazyDisk {
  private wake: (queue: number) => void = () => {};
  private readonly coordinator: Coordinator;
  private readonly target: DiskTarget;
  private readonly shared: SharedStripes;
  /** Queues that may still read the image. */
  private readers: number;

  /**
   * @param image what queues read themselves as long as stripes aren't fetched
   * @param source null where nothing is left to fetch
   */
  constructor(
    readonly start: LazyStart,
    private readonly metadata: OpenMetadata,
    disk: Disk,
    private image: RawSource | null,
    source: StripeSource | null,
    config: LazyConfig,
    log: Log,
  ) {
    const { stripes, queues, options } = start;
    this.target = new DiskTarget(disk.facts);
    this.shared = new SharedStripes(start.shared, stripes, queues);
    this.readers = queues;
    if (image) {
      image.onClose = () => this.askForImage();
      if (disk.facts.xts === 0 && !disk.facts.isBlockDevice) image.shareWith(disk.facts.fd);
    }
    this.coordinator = new Coordinator(
      {
        stripeBytes: options.stripeBytes,
        diskBytes: options.diskBytes,
        trackWritten: config.trackWritten,
        autofetch: config.autofetch,
        autofetchBytesPerSecond: (config.autofetchMaxMibPerS ?? 0) * 2 ** 20,
      },
      {
        layout: metadata.layout,
        headers: metadata.headers,
        shared: this.shared,
        source,
        target: this.target,
        store: metadata.store,
        clock: systemClock,
        buffers: source ? stripeBuffers(options.stripeBytes, source.parallel) : [],
        wake: (queue) => this.wake(queue),
        log,
      },
    );
  }

  /** Called once, before any queue runs. @param wake tells a queue that it has answers */
  connect(wake: (queue: number) => void): void {
    this.wake = wake;
    this.coordinator.start();
  }

  receive(message: QueueMessage): void {
    if (message.kind !== 'imageReleased') this.coordinator.receive(message);
    else if (--this.readers === 0) this.closeImage();
  }

  get status(): StripeStatus {
    return this.coordinator.status;
  }

  /** Whether stripes are fetched that no request needs. */
  set autofetch(on: boolean) {
    this.coordinator.autofetch = on;
  }

  /** Has all stripes that could not be fetched tried at once. @returns how many those are */
  retryFailed(): number {
    return this.coordinator.retryFailed();
  }

  /** Fails what waits for stripes, and whatever will, so that queues can end. */
  giveUp(): void {
    this.coordinator.giveUp();
  }

  /** Ends fetching and records what is done; no queue may run any more. */
  async close(): Promise<void> {
    await this.coordinator.stop();
    this.target.close();
    this.closeImage();
    await this.metadata.close();
  }

  /** Nothing is left to fetch: the queues are to let go of the image. */
  private askForImage(): void {
    this.shared.imageDone = true;
    for (let queue = 0; queue < this.start.queues; queue++) this.wake(queue);
  }

  private closeImage(): void {
    // Nobody waits for it: a source that hangs may hang in this, too.
    this.image?.release();
    this.image = null;
  }
}

function stripeBuffers(stripeBytes: number, parallel?: number): StripeBuffer[] {
  const fitting = Math.floor(BUFFERS_BYTES / stripeBytes);
  const wanted = parallel === undefined ? BUFFERS : buffersFor(parallel);
  const count = Math.max(MIN_BUFFERS, Math.min(wanted, fitting));
  const memory = new NativeBuffer(count * stripeBytes);
  return Array.from({ length: count }, (_, i) => ({
    address: memory.address + i * stripeBytes,
    bytes: new Uint8Array(memory.window(i * stripeBytes, stripeBytes)),
  }));
}

/** Opens the source of a configuration for a disk of such stripes. @throws UserError */
export type OpenSource = (
  source: SourceConfig,
  disk: { stripeBytes: number; directIo: boolean },
  log: Log,
) => Promise<StripeSource>;

/**
 * Opens a lazy disk's metadata and, where something is left to fetch, its source.
 * @param queues how many threads will ask
 * @throws UserError where disk, metadata and source don't go together
 */
export async function openLazyDisk(
  disk: Disk,
  config: LazyConfig,
  queues: number,
  openSource: OpenSource,
  log: Log,
): Promise<LazyDisk> {
  const { directIo, writeThrough, metadataPath } = config;
  const { sizeBytes, xts, readOnly } = disk.facts;
  const metadata = await openMetadata(
    metadataPath,
    { directIo, writeThrough, xts, diskBytes: sizeBytes, use: 'serve' },
    log,
  );
  try {
    const { stripes, stripeBytes } = metadata.layout;
    const missing = missingStripes(metadata.headers);
    if (missing.count > 0 && readOnly) {
      throw new UserError(
        `'${disk.path}' may not be written, but ${missing.count} of its stripes are still to be ` +
          'fetched; allow it',
      );
    }
    const source =
      missing.count > 0 ? await openConfigured(config, stripeBytes, openSource, log) : null;
    if (source) await checkSource(source, missing.last, stripes);
    await source?.prepare?.();
    const image = source instanceof RawSource ? source : null;
    const start: LazyStart = {
      shared: new SharedArrayBuffer(sharedStripeBytes(stripes, queues)),
      stripes,
      queues,
      image: image?.disk.facts ?? null,
      options: {
        stripeBytes,
        diskBytes: sizeBytes,
        trackWritten: config.trackWritten,
        imageBytes: image?.sizeBytes ?? 0,
        copyOnRead: config.copyOnRead,
      },
      knownZeroes: source?.knownZeroes ?? null,
    };
    return new LazyDisk(start, metadata, disk, image, source, config, log);
  } catch (error) {
    await metadata.close();
    throw error;
  }
}

function missingStripes(headers: Uint8Array): { count: number; last: number } {
  let count = 0;
  let last = -1;
  for (let i = 0; i < headers.length; i++) {
    if ((headers[i] & (HAS_SOURCE | FETCHED)) === HAS_SOURCE) {
      count++;
      last = i;
    }
  }
  return { count, last };
}

async function openConfigured(
  { stripeSource, directIo, metadataPath }: LazyConfig,
  stripeBytes: number,
  openSource: OpenSource,
  log: Log,
): Promise<StripeSource> {
  if (stripeSource) return await openSource(stripeSource, { stripeBytes, directIo }, log);
  throw new UserError(
    `'${metadataPath}' says that stripes are still to be fetched, but no source is configured; add ` +
      "the 'stripe_source' that it was made for",
  );
}

async function checkSource(source: StripeSource, last: number, stripes: number): Promise<void> {
  const problem = source.has(stripes)
    ? 'is larger than the disk'
    : source.has(last)
      ? null
      : `has no stripe ${last}, which is still to be fetched from it`;
  if (!problem) return;
  // An image that queues would read as well is not closed by its source.
  await (source instanceof RawSource ? source.release() : source.close());
  throw new UserError(`the stripe source ${source.description} ${problem}; is it the right one?`);
}
