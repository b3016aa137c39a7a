import { timingSafeEqual } from 'node:crypto';
import { XTS_KEY_BYTES, type XtsKeys } from '../crypto/xts.ts';
import { UserError } from '../errors.ts';
import { highestPossibleCpu } from '../processors.ts';
import { isAddress } from './address.ts';
import { type DeviceConfig, defaultTuning, ublkModes, ublkRecoveries } from './device_config.ts';
import { loadKekFile, noKek } from './kek.ts';
import { refuseLaterFeatures } from './later_features.ts';
import { Problems } from './problems.ts';
import { SecretReader } from './secret_reader.ts';
import { socketPathProblem } from './socket_path.ts';
import { readStripeSource } from './stripe_source.ts';
import { readTextFile } from './text_file.ts';
import type { VeiledText } from './veiled_text.ts';
import { type Mapping, parseMapping } from './yaml_mapping.ts';

const maxDeviceIdBytes = 20;
/** A segment holds at least a sector; Linux guests refuse disks whose segments are under a page. */
const minSegmentBytes = 512;
const guestPageBytes = 4096;

export interface LoadOptions {
  /** The KEK file; without it secrets are taken as they are. */
  kekFile?: string;
  /** Unknown keys are errors, not warnings. */
  strict?: boolean;
  /** An encryption key of two equal halves is warned of, not refused. */
  allowWeakKey?: boolean;
  /** Only the keys will be used: features that this version doesn't have are no error. */
  keysOnly?: boolean;
  /** Gets one line for each thing that is doubtful, also when the file is then refused. */
  warn?: (line: string) => void;
  /** The highest CPU that `cpus` may name; the host's by default. */
  maxCpu?: number;
}

export interface LoadedDeviceConfig {
  config: DeviceConfig;
  /** Overwrites the secrets in `config`: to be called when nothing needs them any more. */
  wipeSecrets: () => void;
}

/**
 * Reads a KEK file (if named) and a device configuration file, decrypts, validates, and refuses what
 * this version cannot do yet. Neither file is changed.
 * @throws UserError with one line for each thing that is wrong
 */
export function loadDeviceConfig(file: string, options: LoadOptions = {}): LoadedDeviceConfig {
  const { kekFile, strict = false, warn = () => {} } = options;
  const kek = kekFile === undefined ? noKek : loadKekFile(kekFile, strict, warn);
  const secrets = new SecretReader(kek);
  try {
    const config = readDeviceConfig(file, secrets, options);
    return { config, wipeSecrets: () => secrets.wipe() };
  } catch (error) {
    secrets.wipe();
    throw error;
  } finally {
    kek.wipe();
  }
}

function readDeviceConfig(file: string, secrets: SecretReader, options: LoadOptions): DeviceConfig {
  const { warn = () => {} } = options;
  const { text, openToOthers } = readTextFile(file, 'configuration file');
  try {
    refuseToml(file, text.text);
    const problems = new Problems(file);
    const config = parseDeviceConfig(text, problems, secrets, options);
    for (const line of problems.warnings()) {
      warn(line);
    }
    warnOfWeakSecrecy(file, secrets, openToOthers, warn);
    problems.throwIfAny();
    return config;
  } finally {
    text.wipe();
  }
}

function parseDeviceConfig(
  text: VeiledText,
  problems: Problems,
  secrets: SecretReader,
  options: LoadOptions,
): DeviceConfig {
  const config: DeviceConfig = { ...defaultTuning, file: problems.file, path: '' };
  const mapping = parseMapping(text, problems, options.strict ?? false);
  if (mapping === undefined) {
    return config;
  }
  config.path = mapping.requiredPath('path') ?? '';
  readSockets(mapping, config);
  readTuning(mapping, config, options);
  readFlags(mapping, config);
  readSource(mapping, config, secrets);
  const encryptionKey = readEncryptionKey(mapping, secrets, options);
  if (encryptionKey !== undefined) {
    config.encryptionKey = encryptionKey;
  }
  mapping.reportUnknownKeys();
  if (problems.count === 0 && !options.keysOnly) {
    refuseLaterFeatures(mapping);
  }
  return config;
}

function warnOfWeakSecrecy(
  file: string,
  secrets: SecretReader,
  openToOthers: boolean,
  warn: (line: string) => void,
): void {
  if (secrets.fieldCount > 0 && openToOthers) {
    warn(
      `the configuration file '${file}' holds secrets but is open to its group or to others; ` +
        'chmod it to 600',
    );
  }
  if (secrets.wrapped && secrets.fieldCount > 1) {
    warn(
      `the KEK wraps ${secrets.fieldCount} fields of '${file}' with one nonce: who knows one of ` +
        'them can read the beginning of the others',
    );
  }
}

/** The TOML generation's files begin with a table or an assignment, which no YAML mapping does. */
function refuseToml(file: string, text: string): void {
  const first = text.split('\n').find((line) => !/^\s*(?:#.*)?$/.test(line)) ?? '';
  const looksLikeToml =
    /^\s*\[{1,2}\s*[\w."'-]+\s*\]{1,2}\s*(?:#.*)?$/.test(first) || /^\s*[\w."'-]+\s*=/.test(first);
  if (looksLikeToml || file.endsWith('.toml')) {
    throw new UserError(
      `'${file}' is a TOML file, the newer format of this configuration; this version of ubiblk ` +
        'reads YAML only (docs/configuration.md lists the fields)',
    );
  }
}

function readSockets(mapping: Mapping, config: DeviceConfig): void {
  const socket = readSocketPath(mapping, 'socket');
  if (socket !== undefined) {
    config.socket = socket;
  }
  const rpcSocketPath = readSocketPath(mapping, 'rpc_socket_path');
  if (rpcSocketPath !== undefined) {
    config.rpcSocketPath = rpcSocketPath;
  }
  const metricsListen = mapping.path('metrics_listen');
  if (metricsListen !== undefined) {
    config.metricsListen = metricsListen;
    const isPlace = isAddress(metricsListen, 0) || !metricsListen.includes(':');
    const problem = isPlace
      ? socketPathProblem(metricsListen)
      : "must be a Unix socket's path or 'host:port' (an IPv6 address in brackets)";
    if (problem !== undefined) mapping.error('metrics_listen', problem);
  }
}

function readSocketPath(mapping: Mapping, key: string): string | undefined {
  const path = mapping.path(key);
  const problem = path === undefined ? undefined : socketPathProblem(path);
  if (problem !== undefined) {
    mapping.error(key, problem);
  }
  return path;
}

/** The ranges are the newer generation's (spec/config.md B.4), wider for queues. */
function readTuning(mapping: Mapping, config: DeviceConfig, options: LoadOptions): void {
  const numQueues = mapping.integer('num_queues', { min: 1, max: 64 });
  config.numQueues = numQueues ?? config.numQueues;
  config.queueSize =
    mapping.integer('queue_size', { min: 1, max: 32768, powerOfTwo: true }) ?? config.queueSize;
  const segSizeMax = mapping.integer('seg_size_max', { min: minSegmentBytes, max: 1048576 });
  if (segSizeMax !== undefined) config.segSizeMax = segSizeMax;
  if (segSizeMax !== undefined && segSizeMax < guestPageBytes) {
    mapping.warn('seg_size_max', `Linux guests refuse a disk with less than ${guestPageBytes}`);
  }
  config.segCountMax = mapping.integer('seg_count_max', { min: 1, max: 256 }) ?? config.segCountMax;
  config.pollQueueTimeoutUs =
    mapping.integer('poll_queue_timeout_us', { min: 0, max: 10_000_000 }) ??
    config.pollQueueTimeoutUs;
  config.ioEngine = mapping.choice('io_engine', ['io_uring', 'sync']) ?? config.ioEngine;
  const numQueuesIsKnown = numQueues !== undefined || !mapping.has('num_queues');
  const cpus = readCpus(mapping, numQueuesIsKnown ? config.numQueues : undefined, options);
  if (cpus !== undefined) {
    config.cpus = cpus;
  }
}

function readCpus(
  mapping: Mapping,
  numQueues: number | undefined,
  options: LoadOptions,
): number[] | undefined {
  if (!mapping.has('cpus')) {
    return undefined;
  }
  const max = options.maxCpu ?? highestPossibleCpu();
  const cpus = mapping.integers('cpus', { min: 0, max });
  if (cpus === undefined) {
    return undefined;
  }
  const repeated = cpus.find((cpu, index) => cpus.indexOf(cpu) !== index);
  if (repeated !== undefined) {
    mapping.error('cpus', `names CPU ${repeated} twice; each queue needs its own`);
  }
  if (numQueues !== undefined && cpus.length !== numQueues) {
    mapping.error('cpus', `has ${cpus.length} entries, but num_queues is ${numQueues}`);
  }
  return cpus;
}

function readFlags(mapping: Mapping, config: DeviceConfig): void {
  config.copyOnRead = mapping.boolean('copy_on_read') ?? config.copyOnRead;
  config.trackWritten = mapping.boolean('track_written') ?? config.trackWritten;
  config.writeThrough = mapping.boolean('write_through') ?? config.writeThrough;
  config.autofetch = mapping.boolean('autofetch') ?? config.autofetch;
  const rate = mapping.integer('autofetch_max_mib_per_s', { min: 1, max: 1_000_000 });
  if (rate !== undefined) config.autofetchMaxMibPerS = rate;
  config.directIo = mapping.boolean('direct_io') ?? config.directIo;
  const ublkMode = mapping.choice('ublk_mode', ublkModes);
  if (ublkMode !== undefined) config.ublkMode = ublkMode;
  const ublkRecovery = mapping.choice('ublk_recovery', ublkRecoveries);
  if (ublkRecovery !== undefined) config.ublkRecovery = ublkRecovery;
  config.deviceId = mapping.string('device_id') ?? config.deviceId;
  const deviceIdBytes = Buffer.byteLength(config.deviceId);
  if (deviceIdBytes > maxDeviceIdBytes) {
    mapping.error('device_id', `must be at most ${maxDeviceIdBytes} bytes, not ${deviceIdBytes}`);
  }
  if (mapping.boolean('skip_sync')) config.skipSync = true;
  const ioDebugPath = mapping.path('io_debug_path');
  if (ioDebugPath !== undefined) config.ioDebugPath = ioDebugPath;
  // Known from older files, with a feature that later_features.ts refuses: only its type counts.
  mapping.path('status_path');
}

/** The rules between fields are those of spec/config.md A.5. */
function readSource(mapping: Mapping, config: DeviceConfig, secrets: SecretReader): void {
  const metadataPath = mapping.path('metadata_path');
  if (metadataPath !== undefined) {
    config.metadataPath = metadataPath;
  }
  const imagePath = mapping.path('image_path');
  const sourceMapping = mapping.mapping('stripe_source');
  const source = sourceMapping === undefined ? undefined : readStripeSource(sourceMapping, secrets);
  if (mapping.has('image_path')) {
    if (mapping.has('stripe_source')) {
      mapping.error('image_path', "cannot be used together with 'stripe_source'; keep one of them");
    } else {
      mapping.warn('image_path', 'is deprecated; write stripe_source: {source: raw, path: ...}');
    }
  }
  const effective = source ?? (imagePath && { source: 'raw' as const, path: imagePath });
  if (effective) {
    config.stripeSource = effective;
  }
  if (source !== undefined && source.source !== 'raw' && !config.copyOnRead) {
    mapping.error('stripe_source', `source '${source.source}' needs 'copy_on_read: true'`);
  }
  for (const key of ['stripe_source', 'image_path']) {
    if (mapping.has(key) && !mapping.has('metadata_path')) {
      mapping.error(key, "needs 'metadata_path'");
    }
  }
}

function readEncryptionKey(
  mapping: Mapping,
  secrets: SecretReader,
  options: LoadOptions,
): XtsKeys | undefined {
  const texts = mapping.base64List('encryption_key');
  if (texts === undefined) {
    return undefined;
  }
  if (texts.length !== 2) {
    mapping.error('encryption_key', `must be a list of exactly 2 strings, not ${texts.length}`);
    return undefined;
  }
  const [data, tweak] = texts.map((text, index) => {
    return secrets.decode(mapping, `encryption_key[${index}]`, text, XTS_KEY_BYTES);
  });
  if (data === undefined || tweak === undefined) {
    return undefined;
  }
  if (timingSafeEqual(data.reveal(), tweak.reveal())) {
    const reason = 'both halves are equal, with which AES-XTS is insecure (IEEE 1619 forbids it)';
    if (options.allowWeakKey) {
      mapping.warn('encryption_key', reason);
    } else {
      const way = "make a key with 'ubiblk keys generate', or allow this one with --allow-weak-key";
      mapping.error('encryption_key', `${reason}; ${way}`);
    }
  }
  return [data, tweak];
}
