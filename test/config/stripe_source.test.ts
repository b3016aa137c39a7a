import { expect, test } from 'bun:test';
import { join } from 'node:path';
import { type Kek, loadKekFile, noKek } from '../../src/config/kek.ts';
import { Problems } from '../../src/config/problems.ts';
import { SecretReader } from '../../src/config/secret_reader.ts';
import { readStripeSource } from '../../src/config/stripe_source.ts';
import { VeiledText } from '../../src/config/veiled_text.ts';
import { parseMapping } from '../../src/config/yaml_mapping.ts';
import { Secret } from '../../src/crypto/secret.ts';

function read(text: string, kek: Kek = noKek) {
  const problems = new Problems('source.yaml');
  const source = new VeiledText(Secret.taking(Buffer.from(text)));
  const mapping = parseMapping(source, problems, true);
  problems.throwIfAny();
  if (mapping === undefined) {
    throw new Error('no mapping');
  }
  const secrets = new SecretReader(kek);
  const stripeSource = readStripeSource(mapping, secrets);
  problems.throwIfAny();
  return { source: stripeSource, secrets };
}

function text(secret: Secret | undefined): string {
  return Buffer.from(secret?.reveal() ?? []).toString();
}

test('a raw source', () => {
  expect(read('{source: raw, path: /i}').source).toEqual({ source: 'raw', path: '/i' });
});

test.each(['10.0.0.1:4555', '[::1]:1', '[fe80::1%eth0]:65535', 'stripes.example.net:4555'])(
  'a remote source at %s',
  (address) => {
    expect(read(`{source: remote, address: "${address}"}`).source).toEqual({
      source: 'remote',
      address,
      connections: 16,
      connectTimeoutMs: 5000,
      operationTimeoutMs: 20_000,
    });
  },
);

test.each(['10.0.0.1', ':1', 'a:0', 'a:65536', 'a:', '::1:5', '[::1]', 'a b:1', ''])(
  'a remote source is not at %j',
  (address) => {
    expect(() => read(`{source: remote, address: "${address}"}`)).toThrow(
      "source.yaml:1:18: address: must be 'host:port'",
    );
  },
);

test('the PSK of a remote source is unwrapped, and wiped at the end', () => {
  const kek = loadKekFile(join(import.meta.dir, 'fixtures/wrapping.kek'), true, () => {});
  const { source, secrets } = read(
    `source: remote
address: 10.0.0.1:4555
psk_identity: me
psk_secret: J8Y1evT6qWjdBp9+C+Ksk+PlMD0fR8CD0cfV0dppTOs=`,
    kek,
  );
  if (source?.source !== 'remote') {
    throw new Error('not a remote source');
  }
  expect(source.psk?.identity).toBe('me');
  expect(text(source.psk?.secret)).toBe('0123456789ABCDEF');
  secrets.wipe();
  expect(() => text(source.psk?.secret)).toThrow('a secret was used after it was wiped');
});

test('a filesystem archive', () => {
  expect(read('{source: archive, type: filesystem, path: a}').source).toEqual({
    source: 'archive',
    type: 'filesystem',
    path: 'a',
    archiveKek: { method: 'none' },
  });
});

test('an S3 archive with what it cannot do without', () => {
  expect(read('{source: archive, type: s3, bucket: b, prefix: ///}').source).toEqual({
    source: 'archive',
    type: 's3',
    bucket: 'b',
    connections: 16,
    connectTimeoutMs: 5000,
    operationTimeoutMs: 20_000,
    retryTimeoutMs: 120_000,
    archiveKek: { method: 'none' },
  });
});

test('an S3 archive with every key', () => {
  const { source } = read(`source: archive
type: s3
bucket: images
prefix: /debian/12/
endpoint: https://objects.example.net
region: auto
profile: backup
connections: 128
connect_timeout_ms: 1
operation_attempt_timeout_ms: 2
retry_timeout_ms: 3
credentials: {access_key_id: QUtJQQ==, secret_access_key: c2VzYW1l, session_token: dG9rZW4=}
archive_kek:
  method: aes256-gcm
  key: AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=
  init_vector: AAECAwQFBgcICQoL
  auth_data: ""
`);
  if (source?.source !== 'archive' || source.type !== 's3') {
    throw new Error('not an S3 archive');
  }
  const { credentials, archiveKek, ...plain } = source;
  expect(plain).toEqual({
    source: 'archive',
    type: 's3',
    bucket: 'images',
    prefix: 'debian/12',
    endpoint: 'https://objects.example.net',
    region: 'auto',
    profile: 'backup',
    connections: 128,
    connectTimeoutMs: 1,
    operationTimeoutMs: 2,
    retryTimeoutMs: 3,
  });
  expect(text(credentials?.accessKeyId)).toBe('AKIA');
  expect(text(credentials?.secretAccessKey)).toBe('sesame');
  expect(text(credentials?.sessionToken)).toBe('token');
  if (archiveKek.method !== 'aes256-gcm') {
    throw new Error('the archive KEK is lost');
  }
  expect([...archiveKek.key.reveal()]).toEqual([...Array(32).keys()]);
  expect([...archiveKek.initVector.reveal()]).toEqual([...Array(12).keys()]);
  expect(archiveKek.authData.lengthBytes).toBe(0);
});
