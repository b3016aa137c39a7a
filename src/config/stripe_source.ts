import { isUtf8 } from 'node:buffer';
import { GCM_KEY_BYTES, GCM_NONCE_BYTES } from '../crypto/gcm.ts';
import type { Secret } from '../crypto/secret.ts';
import { MAX_IDENTITY_BYTES, MAX_PSK_BYTES } from '../crypto/tls_psk.ts';
import { isAddress } from './address.ts';
import type {
  ArchiveConfig,
  ArchiveKek,
  ListenConfig,
  NbdSource,
  RemoteSource,
  S3Archive,
  StripeSource,
} from './device_config.ts';
import { wrappingMethods } from './kek.ts';
import { parseNbdUri } from './nbd_uri.ts';
import type { SecretReader } from './secret_reader.ts';
import type { Mapping } from './yaml_mapping.ts';

const minPskSecretBytes = 16;
const defaultConnections = 16;
/** As nbdcopy has. */
const defaultNbdConnections = 4;
const maxConnections = 128;
const milliseconds = { min: 1, max: 3_600_000 };
const defaultConnectMs = 5000;
const defaultOperationMs = 20_000;
const defaultMaxClients = 1024;
const defaultRetryMs = 120_000;

/**
 * Reads the mapping `stripe_source` (spec/config.md A.3). What is wrong goes to the file's problems;
 * the value is only whole when there were none.
 */
export function readStripeSource(
  mapping: Mapping,
  secrets: SecretReader,
): StripeSource | undefined {
  const source = mapping.requiredChoice('source', ['raw', 'remote', 'archive', 'nbd']);
  if (source === undefined) {
    return undefined;
  }
  let read: StripeSource | undefined;
  if (source === 'raw') {
    read = { source, path: mapping.requiredPath('path') ?? '' };
  } else if (source === 'remote') {
    read = readRemote(mapping, secrets);
  } else if (source === 'nbd') {
    read = readNbd(mapping);
  } else {
    read = readArchive(mapping, secrets);
  }
  if (read !== undefined) {
    mapping.reportUnknownKeys();
  }
  return read;
}

function readNbd(mapping: Mapping): NbdSource {
  const uri = mapping.string('uri');
  const command = mapping.has('command') ? mapping.strings('command') : undefined;
  if (mapping.has('uri') === mapping.has('command')) {
    mapping.error('source', "'nbd' needs either 'uri' or 'command'");
  }
  if (uri !== undefined) {
    try {
      parseNbdUri(uri);
    } catch (error) {
      mapping.error('uri', (error as Error).message);
    }
  }
  if (command?.length === 0) {
    mapping.error('command', 'must name the program that serves NBD');
  }
  return {
    source: 'nbd',
    ...(uri !== undefined && { uri }),
    ...(command && { command: unbracketed(command) }),
    connections: readConnections(mapping, defaultNbdConnections),
    connectTimeoutMs: mapping.integer('connect_timeout_ms', milliseconds) ?? defaultConnectMs,
    operationTimeoutMs: readOperationTimeout(mapping),
  };
}

/** As nbdcopy takes it: `[ nbdkit ... ]`. */
function unbracketed(command: string[]): string[] {
  return command[0] === '[' && command.at(-1) === ']' ? command.slice(1, -1) : command;
}

/** Also the top level of `--server-config`. */
export function readRemote(mapping: Mapping, secrets: SecretReader): RemoteSource {
  const address = readAddress(mapping, 1);
  const psk = readPsk(mapping, secrets);
  return {
    source: 'remote',
    address,
    ...(psk && { psk }),
    connections: readConnections(mapping),
    connectTimeoutMs: mapping.integer('connect_timeout_ms', milliseconds) ?? defaultConnectMs,
    operationTimeoutMs: readOperationTimeout(mapping),
  };
}

/** The top level of `--listen-config`. */
export function readListen(mapping: Mapping, secrets: SecretReader): ListenConfig {
  const address = readAddress(mapping, 0);
  const psk = readPsk(mapping, secrets);
  return {
    address,
    ...(psk && { psk }),
    operationTimeoutMs: readOperationTimeout(mapping),
    maxClients: mapping.integer('max_clients', { min: 1, max: 65536 }) ?? defaultMaxClients,
  };
}

/** @param leastPort 0 where any port that is free will do */
function readAddress(mapping: Mapping, leastPort: number): string {
  const address = mapping.requiredString('address');
  if (address !== undefined && !isAddress(address, leastPort)) {
    mapping.error('address', "must be 'host:port' (an IPv6 address in brackets)");
  }
  return address ?? '';
}

function readOperationTimeout(mapping: Mapping): number {
  return mapping.integer('operation_attempt_timeout_ms', milliseconds) ?? defaultOperationMs;
}

function readPsk(mapping: Mapping, secrets: SecretReader): RemoteSource['psk'] {
  const identity = mapping.string('psk_identity');
  const secret = secrets.read(mapping, 'psk_secret');
  const hasIdentity = mapping.has('psk_identity');
  if (hasIdentity !== mapping.has('psk_secret')) {
    const [given, missing] = hasIdentity
      ? ['psk_identity', 'psk_secret']
      : ['psk_secret', 'psk_identity'];
    mapping.error(given, `needs '${missing}' beside it: give both or neither`);
  }
  const identityBytes = Buffer.byteLength(identity ?? 'x');
  if (identityBytes === 0) {
    mapping.error('psk_identity', 'must not be empty');
  } else if (identityBytes > MAX_IDENTITY_BYTES || identity?.includes('\0')) {
    mapping.error('psk_identity', `must be at most ${MAX_IDENTITY_BYTES} bytes, none of them zero`);
  }
  if (secret !== undefined && secret.lengthBytes < minPskSecretBytes) {
    mapping.error(
      'psk_secret',
      `must be at least ${minPskSecretBytes} bytes, not ${secret.lengthBytes}`,
    );
  } else if (secret !== undefined && secret.lengthBytes > MAX_PSK_BYTES) {
    mapping.error(
      'psk_secret',
      `must be at most ${MAX_PSK_BYTES} bytes, not ${secret.lengthBytes}`,
    );
  }
  return identity === undefined || secret === undefined ? undefined : { identity, secret };
}

/** Also the top level of `--target-config`. */
export function readArchive(mapping: Mapping, secrets: SecretReader): ArchiveConfig | undefined {
  const type = mapping.requiredChoice('type', ['filesystem', 's3']);
  if (type === undefined) {
    return undefined;
  }
  if (type === 'filesystem') {
    const path = mapping.requiredPath('path') ?? '';
    return { source: 'archive', type, path, archiveKek: readArchiveKek(mapping, secrets) };
  }
  return readS3(mapping, secrets);
}

function readS3(mapping: Mapping, secrets: SecretReader): S3Archive {
  const bucket = mapping.requiredString('bucket');
  if (bucket === '') {
    mapping.error('bucket', 'must not be empty');
  }
  const archive: S3Archive = {
    source: 'archive',
    type: 's3',
    bucket: bucket ?? '',
    connections: readConnections(mapping),
    connectTimeoutMs: mapping.integer('connect_timeout_ms', milliseconds) ?? defaultConnectMs,
    operationTimeoutMs: readOperationTimeout(mapping),
    retryTimeoutMs: mapping.integer('retry_timeout_ms', milliseconds) ?? defaultRetryMs,
    archiveKek: readArchiveKek(mapping, secrets),
  };
  const prefix = readPrefix(mapping);
  if (prefix !== undefined) {
    archive.prefix = prefix;
  }
  const endpoint = mapping.string('endpoint');
  if (endpoint !== undefined) {
    if (!/^https?:\/\//.test(endpoint) || !URL.canParse(endpoint)) {
      mapping.error('endpoint', "must be a URL that begins with 'http://' or 'https://'");
    }
    archive.endpoint = endpoint;
  }
  for (const key of ['region', 'profile'] as const) {
    const value = mapping.string(key);
    if (value !== undefined) {
      archive[key] = value;
    }
  }
  const credentials = readCredentials(mapping, secrets);
  if (credentials !== undefined) {
    archive.credentials = credentials;
  }
  return archive;
}

/** The key prefix without slashes at its ends, or undefined if nothing is left. */
function readPrefix(mapping: Mapping): string | undefined {
  const prefix = mapping.string('prefix')?.replace(/^\/+|\/+$/g, '');
  if (prefix === undefined || prefix === '') {
    return undefined;
  }
  if (prefix.split('/').some((part) => part === '' || part === '.' || part === '..')) {
    mapping.error('prefix', "must not have an empty, '.' or '..' component");
  }
  return prefix;
}

function readConnections(mapping: Mapping, usual = defaultConnections): number {
  const range = { min: 0, max: 0xffff_ffff };
  const connections = mapping.integer('connections', range) ?? usual;
  const clamped = Math.min(Math.max(connections, 1), maxConnections);
  if (clamped !== connections) {
    mapping.warn('connections', `${connections} is taken as ${clamped} (1 to ${maxConnections})`);
  }
  return clamped;
}

function readCredentials(mapping: Mapping, secrets: SecretReader): S3Archive['credentials'] {
  const credentials = mapping.mapping('credentials');
  if (credentials === undefined) {
    return undefined;
  }
  const accessKeyId = readTextSecret(credentials, 'access_key_id', secrets);
  const secretAccessKey = readTextSecret(credentials, 'secret_access_key', secrets);
  const sessionToken = credentials.has('session_token')
    ? readTextSecret(credentials, 'session_token', secrets)
    : undefined;
  credentials.reportUnknownKeys();
  if (!accessKeyId || !secretAccessKey) return undefined;
  return { accessKeyId, secretAccessKey, ...(sessionToken && { sessionToken }) };
}

function readTextSecret(mapping: Mapping, key: string, secrets: SecretReader): Secret | undefined {
  if (!mapping.has(key)) {
    mapping.error(key, 'is required');
    return undefined;
  }
  const secret = secrets.read(mapping, key);
  if (secret?.lengthBytes === 0) {
    mapping.error(key, 'must not be empty');
  } else if (secret !== undefined && !isUtf8(secret.reveal())) {
    mapping.error(key, 'is not UTF-8 text after decoding');
  }
  return secret;
}

function readArchiveKek(mapping: Mapping, secrets: SecretReader): ArchiveKek {
  const kek = mapping.mapping('archive_kek');
  if (kek === undefined) {
    return { method: 'none' };
  }
  const method = kek.requiredChoice('method', wrappingMethods);
  const key = secrets.read(kek, 'key', method === 'aes256-gcm' ? GCM_KEY_BYTES : undefined);
  const initVector = secrets.read(
    kek,
    'init_vector',
    method === 'aes256-gcm' ? GCM_NONCE_BYTES : undefined,
  );
  const authData = secrets.read(kek, 'auth_data');
  kek.reportUnknownKeys();
  if (method !== 'aes256-gcm') {
    return { method: 'none' };
  }
  for (const part of ['key', 'init_vector', 'auth_data']) {
    if (!kek.has(part)) {
      kek.error(part, "is required with method 'aes256-gcm'");
    }
  }
  return key && initVector && authData ? { method, key, initVector, authData } : { method: 'none' };
}
