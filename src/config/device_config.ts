import type { Secret } from '../crypto/secret.ts';
import type { XtsKeys } from '../crypto/xts.ts';

export type IoEngine = 'io_uring' | 'sync';

/** How data gets from the kernel's requests to a ublk server, by the driver's names. */
export const ublkModes = ['zero_copy', 'copy', 'user_copy', 'need_get_data'] as const;
export type UblkMode = (typeof ublkModes)[number];

/** What becomes of a ublk device's requests when its server dies. */
export const ublkRecoveries = ['reissue', 'requeue', 'fail', 'off'] as const;
export type UblkRecovery = (typeof ublkRecoveries)[number];

export interface RawSource {
  source: 'raw';
  path: string;
}

export interface RemoteSource {
  source: 'remote';
  /** `host:port`, an IPv6 address in brackets. */
  address: string;
  psk?: { identity: string; secret: Secret };
  connections: number;
  /** Milliseconds until the server must have shaken hands and told what it has. */
  connectTimeoutMs: number;
  /** Milliseconds that one operation may be without progress. */
  operationTimeoutMs: number;
}

/** Where a stripe server listens. */
export interface ListenConfig {
  /** `host:port`, an IPv6 address in brackets. */
  address: string;
  psk?: { identity: string; secret: Secret };
  operationTimeoutMs: number;
  maxClients: number;
}

/** How the random keys of an encrypted archive are wrapped, already unwrapped from the configuration. */
export type ArchiveKek =
  | { method: 'none' }
  | { method: 'aes256-gcm'; key: Secret; initVector: Secret; authData: Secret };

export interface FilesystemArchive {
  source: 'archive';
  type: 'filesystem';
  path: string;
  archiveKek: ArchiveKek;
}

export interface S3Archive {
  source: 'archive';
  type: 's3';
  bucket: string;
  prefix?: string;
  endpoint?: string;
  region?: string;
  profile?: string;
  credentials?: { accessKeyId: Secret; secretAccessKey: Secret; sessionToken?: Secret };
  connections: number;
  connectTimeoutMs: number;
  /** Milliseconds that one attempt of an operation may take. */
  operationTimeoutMs: number;
  /** Milliseconds after which an operation that fails again and again is given up. */
  retryTimeoutMs: number;
  archiveKek: ArchiveKek;
}

export type ArchiveConfig = FilesystemArchive | S3Archive;

/** An export of an NBD server, which runs already or is started for it. */
export interface NbdSource {
  source: 'nbd';
  uri?: string;
  /** A program and its arguments. */
  command?: string[];
  connections: number;
  connectTimeoutMs: number;
  /** Milliseconds that one operation may be without progress. */
  operationTimeoutMs: number;
}

export type StripeSource = RawSource | RemoteSource | NbdSource | ArchiveConfig;

/** One device configuration file, parsed and validated (spec/config.md part A). */
export interface DeviceConfig {
  /** The file that it was read from, as the user named it. */
  file: string;
  /** The data file; like all paths relative to the working directory. */
  path: string;
  socket?: string;
  rpcSocketPath?: string;
  /** A Unix socket's path, or `host:port`. */
  metricsListen?: string;
  metadataPath?: string;
  stripeSource?: StripeSource;
  numQueues: number;
  queueSize: number;
  /** Bytes; each front end has a default of its own. */
  segSizeMax?: number;
  segCountMax: number;
  pollQueueTimeoutUs: number;
  cpus?: number[];
  copyOnRead: boolean;
  trackWritten: boolean;
  writeThrough: boolean;
  autofetch: boolean;
  /** MiB a second for stripes that no guest waits for; undefined: no limit. */
  autofetchMaxMibPerS?: number;
  deviceId: string;
  ioEngine: IoEngine;
  directIo: boolean;
  /** Undefined: what is best for the disk and the kernel. */
  ublkMode?: UblkMode;
  /** Undefined: the safest that there is. */
  ublkRecovery?: UblkRecovery;
  encryptionKey?: XtsKeys;
  /** Flushes are answered without syncing. */
  skipSync?: true;
  /** Where what guests read and write is recorded. */
  ioDebugPath?: string;
}

/** What a file gets that names only `path`. */
export const defaultTuning = {
  numQueues: 1,
  queueSize: 64,
  segCountMax: 128,
  pollQueueTimeoutUs: 1000,
  copyOnRead: false,
  trackWritten: false,
  writeThrough: false,
  autofetch: false,
  deviceId: 'ubiblk',
  ioEngine: 'io_uring',
  directIo: true,
} as const satisfies Partial<DeviceConfig>;
