/**
 * What the stripe coordinator works with: a source, the disk, the metadata file, a clock. All of it runs
 * on the main thread; each has a real implementation and one in the simulation.
 */

/** What a source's `knownZeroes` has for a stripe that is known to be zeroes. */
export const KNOWN_ZERO = 2;

/** Where stripes come from. Its bytes are plain; stripes that it doesn't have are not asked for. */
export interface StripeSource {
  /** In words, for messages and status: `raw (path: P, size: N bytes)`. */
  readonly description: string;
  /** Bytes; the last stripe may be partial. */
  readonly sizeBytes: number;
  /** Bytes that a disk of the same content has at least, where it isn't known exactly; else `sizeBytes`. */
  readonly leastDiskBytes?: number;
  /** Stripes that it is best asked for at once, where it says so. */
  readonly parallel?: number;
  /** Whether it holds anything for a stripe. */
  has(stripe: number): boolean;
  /**
   * Fills a buffer with a stripe's bytes, and with zeroes behind the source's end.
   * @param buffer as long as the part of the stripe that is on the disk
   * @returns false where all of it is zeroes, and then the buffer isn't touched
   * @throws Error where it can't be read now; it is tried again later
   */
  read(stripe: number, buffer: StripeBuffer, signal: AbortSignal): Promise<boolean>;
  /**
   * Puts a stripe onto the disk by itself, where that is cheaper than to carry its bytes there.
   * @param length of its part on the disk, at `offset`
   * @returns false where it can't, and then nothing has been done
   */
  copy?(stripe: number, offset: number, length: number): Promise<boolean>;
  /** Has a listener told when the source was away and can be asked again, where it finds out by itself. */
  whenBack?(listener: () => void): void;
  /** Where it has connections: how many there are, of how many at most, and why there is none. */
  readonly connections?: SourceConnections;
  /** Tries at once to have again what it has lost. */
  reconnect?(): void;
  /** For each stripe a byte, KNOWN_ZERO where that is known; it is filled in as it becomes known. */
  readonly knownZeroes?: SharedArrayBuffer;
  /** Learns what it can in a moment, before it is used. */
  prepare?(): Promise<void>;
  /** Gives up connections and files; nothing is asked for afterwards. */
  close(): Promise<void>;
}

export interface SourceConnections {
  open: number;
  most: number;
  /** Why there is none at all; null where there are some, or none has been needed yet. */
  problem: string | null;
}

/** Page-aligned native memory, and a window over it. */
export interface StripeBuffer {
  readonly address: number;
  readonly bytes: Uint8Array;
}

/** The disk's data, plain, in bytes from its start; what is below may encrypt. */
export interface TargetDisk {
  /** @throws Error with a `code` (`EIO`, `ENOSPC`) */
  write(offset: number, data: StripeBuffer): Promise<void>;
  /** Makes a range read as zeroes. */
  zero(offset: number, length: number): Promise<void>;
  /**
   * Everything written before the call is on stable storage when it resolves.
   * @throws Error where some of what was written since the last sync may be lost. Of writes that the
   *   kernel could not carry out it tells also where somebody else was told before; of a device that
   *   fails to flush its own cache, only whoever asked for that flush hears
   */
  sync(): Promise<void>;
}

/** The metadata file, plain, in bytes from its start. */
export interface MetadataStore {
  /** Writes are whole units of this many bytes, at multiples of it. */
  readonly unitBytes: number;
  write(offset: number, data: Uint8Array): Promise<void>;
  sync(): Promise<void>;
}

export interface Clock {
  /** Milliseconds. */
  now(): number;
  /** Resolves after so many milliseconds, or at once when the signal is aborted. */
  sleep(ms: number, signal?: AbortSignal): Promise<void>;
}
