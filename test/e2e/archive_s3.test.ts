/** Archives in S3: a server of another maker, and one in front of it that fails in every way. */
import { afterAll, beforeAll, expect, setDefaultTimeout, test } from 'bun:test';
import { existsSync, readFileSync } from 'node:fs';
import { type AddressInfo, connect } from 'node:net';
import { createServer } from 'node:tls';
import {
  archive,
  archivedDisk,
  compareLazily,
  fillDisk,
  folderPlace,
  kekFile,
  lazyDisk,
  type Place,
  S3Server,
  sizeOf,
  targetConfig,
} from './archives.ts';
import { type Fault, FaultyS3, type Plan, type SeenRequest } from './faulty_s3.ts';
import { binary, within } from './processes.ts';
import { Bed, Random, seed } from './support.ts';

setDefaultTimeout(60_000);

const STRIPES = 48;
const sizeBytes = sizeOf('partial', STRIPES);

let s3: S3Server;
let faulty: FaultyS3;
beforeAll(async () => {
  s3 = await S3Server.start();
  faulty = await FaultyS3.start(s3.url);
}, 150_000);
afterAll(async () => {
  faulty?.stop();
  await s3?.stop();
});

let buckets = 0;
interface Prepared {
  image: string;
  config: string;
  place: Place;
  target: string[];
}

/** A disk and an empty bucket behind the proxy. */
async function prepare(bed: Bed, more: Place = {}, plan: Plan = () => null): Promise<Prepared> {
  const image = bed.disk({ sizeBytes });
  fillDisk(image, 'partial', sizeBytes, seed);
  const bucket = `bucket-${buckets++}`;
  await s3.bucket(bucket);
  const place = s3.place(bucket, { endpoint: faulty.url, ...more });
  const { config } = await archivedDisk(bed, image);
  faulty.forget();
  faulty.plan = plan;
  return { image, config, place, target: ['--target-config', targetConfig(bed, place)] };
}

async function exported(bed: Bed, { image, target }: Prepared): Promise<void> {
  await archive(bed, ['export', ...target, '--force', bed.path('exported.raw')]);
  await bed.run(['cmp', image, bed.path('exported.raw')]);
}

const isData = /^debian\/12\/data\//;

const passing: [string, Fault][] = [
  [
    '429 with Retry-After',
    { kind: 'status', status: 429, code: 'TooManyRequests', headers: { 'retry-after': '1' } },
  ],
  ['500', { kind: 'status', status: 500 }],
  ['503 SlowDown', { kind: 'status', status: 503, code: 'SlowDown' }],
  ['502 of a gateway', { kind: 'status', status: 502, code: 'BadGateway' }],
  ['a connection that is cut', { kind: 'reset' }],
  ['an answer that is cut', { kind: 'cut' }],
  ['an answer that stops', { kind: 'stall' }],
  ['wrong bytes', { kind: 'wrong bytes' }],
  ['a wrong checksum', { kind: 'wrong checksum' }],
  ['an upload that is damaged on its way', { kind: 'damaged upload' }],
  ['latency', { kind: 'late', ms: 30 }],
];

test.each(passing)('what passes is tried again: %s', async (_, fault) => {
  await using bed = new Bed();
  // Each object fails once, writing and reading; what was damaged must not stay so.
  const uploads = fault.kind === 'damaged upload';
  const plan: Plan = ({ method, key }, count) => {
    const chosen = isData.test(key) && (Number.parseInt(key.slice(-2), 16) & 3) === 0;
    const fits = uploads ? method === 'PUT' : method === 'GET' || fault.kind === 'status';
    return chosen && fits && count === 0 ? fault : null;
  };
  const more = fault.kind === 'stall' ? { operation_attempt_timeout_ms: 2000 } : {};
  const prepared = await prepare(bed, more, plan);
  const { config, target } = prepared;
  const made = await archive(bed, ['--config', config, ...target, '--compress']);
  expect(made.stderr).toBe('');
  if (uploads) {
    const damaged = faulty.seen.filter((seen) => plan(seen, 0)).map(({ key }) => key);
    expect(damaged.length).toBeGreaterThan(0);
    // Each was put once more.
    expect(damaged.length).toBe(2 * new Set(damaged).size);
  }
  await exported(bed, prepared);
  faulty.plan = () => null;
  await archive(bed, ['verify', ...target]);
});

test('what goes on failing is given up after its time, in a sentence', async () => {
  await using bed = new Bed();
  const prepared = await prepare(bed, { retry_timeout_ms: 1500 });
  const { config, target } = prepared;
  const argv = ['--config', config, ...target];
  const sentences: [Fault, RegExp][] = [
    [
      { kind: 'status', status: 503, code: 'SlowDown' },
      /PutObject of 'debian\/12\/data\/\w{64}' in bucket 'bucket-\d+' failed, \d+ times in \d+ s: 503 SlowDown: made; lower 'connections'/,
    ],
    [
      { kind: 'reset' },
      /PutObject of 'debian\S+ in bucket 'bucket-\d+' failed, \d+ times in \d+ s: /,
    ],
  ];
  for (const [fault, sentence] of sentences) {
    faulty.plan = ({ method, key }) => (method === 'PUT' && isData.test(key) ? fault : null);
    expect((await archive(bed, argv, { expect: 1 })).stderr).toMatch(sentence);
  }
  // Longer than the time that is left.
  const headers = { 'retry-after': '3600' };
  faulty.plan = ({ method }) =>
    method === 'PUT' ? { kind: 'status', status: 429, code: 'TooManyRequests', headers } : null;
  const { stderr } = await archive(bed, argv, { expect: 1 });
  expect(stderr).toMatch(
    /failed: 429 TooManyRequests: made; lower 'connections', or try again later/,
  );
});

test('what can only fail again is not tried again', async () => {
  await using bed = new Bed();
  const { config, target } = await prepare(bed);
  faulty.plan = () => ({ kind: 'status', status: 403, code: 'AccessDenied' });
  const { stderr } = await archive(bed, ['--config', config, ...target], { expect: 1 });
  expect(stderr).toMatch(
    /GetObject of 'debian\/12\/metadata.json' in bucket 'bucket-\d+' failed: 403 AccessDenied: made; check the credentials/,
  );
  // Before anything of the disk was read.
  expect(faulty.seen).toHaveLength(1);
});

test('a server that says nothing is not waited for for ever', async () => {
  await using bed = new Bed();
  const more = { operation_attempt_timeout_ms: 300, retry_timeout_ms: 1000 };
  const { target } = await prepare(bed, more, () => ({ kind: 'silence' }));
  const { stderr } = await archive(bed, ['list', ...target], { expect: 1 });
  expect(stderr).toMatch(/GetObject of .* times in \d s: no answer in 0\.\d s/);
});

test('what is tried again takes no longer than there is time for it', async () => {
  await using bed = new Bed();
  const more = { operation_attempt_timeout_ms: 600_000, retry_timeout_ms: 1000 };
  const fails: Fault = { kind: 'status', status: 503 };
  const { target } = await prepare(bed, more, (_, count) =>
    count === 0 ? fails : { kind: 'silence' },
  );
  const { stderr } = await archive(bed, ['list', ...target], { expect: 1, deadlineMs: 30_000 });
  expect(stderr).toMatch(/GetObject of .* failed, 2 times in \d+ s: no answer in \d(\.\d)? s$/m);
});

test('no server, no bucket, no credentials: a sentence each, and no secret in it', async () => {
  await using bed = new Bed();
  const gone = s3.place('none', { endpoint: 'http://127.0.0.1:9', retry_timeout_ms: 500 });
  const absent = s3.place('absent');
  const { credentials: _, ...bare } = s3.place('none');
  const list = async (place: Place, env: Record<string, string> = {}) => {
    const argv = [binary, 'archive', 'list', '--target-config', targetConfig(bed, place)];
    return (await bed.run(argv, { expect: 1, env })).stderr.text;
  };
  expect(await list(gone)).toMatch(/metadata.json' in bucket 'none' failed/);
  expect(await list(absent)).toMatch(/failed: 404 NoSuchBucket: .*; check 'bucket', 'region'/);
  const alone = { HOME: bed.folder, AWS_EC2_METADATA_DISABLED: 'true' };
  expect(await list(bare, alone)).toMatch(/credentials/i);
  const secret = 'a secret of the tests';
  for (const text of [await list(gone), await list(absent)]) expect(text).not.toContain(secret);
});

test('credentials come from the environment, or a profile, where the configuration has none', async () => {
  await using bed = new Bed();
  const { place, config } = await prepare(bed);
  const { credentials: _, ...bare } = place;
  const target = ['--target-config', targetConfig(bed, bare)];
  const env = {
    AWS_ACCESS_KEY_ID: 'FROMENVIRONMENT',
    AWS_SECRET_ACCESS_KEY: 'x',
    HOME: bed.folder,
  };
  await bed.run([binary, 'archive', '--config', config, ...target], { env });
  const authorization = () => String(faulty.seen.at(-1)?.headers.authorization);
  expect(authorization()).toContain('Credential=FROMENVIRONMENT/');
  const file = bed.path('credentials');
  await Bun.write(file, '[backup]\naws_access_key_id=FROMPROFILE\naws_secret_access_key=y\n');
  const profile = ['--target-config', targetConfig(bed, { ...bare, profile: 'backup' })];
  const more = { AWS_SHARED_CREDENTIALS_FILE: file, HOME: bed.folder };
  await bed.run([binary, 'archive', 'list', ...profile], { env: more });
  expect(authorization()).toContain('Credential=FROMPROFILE/');
});

test('a server with TLS is asked where its certificate is known, and where it is not, that is said at once', async () => {
  await using bed = new Bed();
  const prepared = await prepare(bed);
  const [key, cert] = [bed.path('key.pem'), bed.path('cert.pem')];
  const self = ['req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-subj', '/CN=s3', '-days', '2'];
  const names = ['-addext', 'subjectAltName=IP:127.0.0.1'];
  await bed.run(['openssl', ...self, ...names, '-keyout', key, '-out', cert]);
  const identity = { key: readFileSync(key), cert: readFileSync(cert) };
  const server = createServer(identity, (socket) => {
    const behind = connect(Number(new URL(s3.url).port), '127.0.0.1');
    socket.on('error', () => behind.destroy());
    socket.pipe(behind).pipe(socket);
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  using stack = new DisposableStack();
  stack.defer(() => server.close());
  const endpoint = `https://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const place = { ...prepared.place, endpoint };
  const target = ['--target-config', targetConfig(bed, place)];
  const create = [binary, 'archive', '--config', prepared.config, ...target, '--quiet'];
  const refused = await bed.run(create, { expect: 1 });
  expect(refused.stderr.text).toMatch(
    /failed: DEPTH_ZERO_SELF_SIGNED_CERT: .*; .* name the file of who issued it in NODE_EXTRA_CA_CERTS$/m,
  );
  const env = { NODE_EXTRA_CA_CERTS: cert };
  await bed.run(create, { env });
  await bed.run([binary, 'archive', 'export', ...target, bed.path('exported.raw')], { env });
  await bed.run(['cmp', prepared.image, bed.path('exported.raw')]);
});

test('credentials that a KEK wraps, a session token, and parts of paths for addresses', async () => {
  await using bed = new Bed();
  const { place, config } = await prepare(bed);
  const kek = kekFile(bed);
  const plain = {
    ...(place.credentials as Record<string, string>),
    session_token: Buffer.from('a token').toString('base64'),
  };
  const { method, ...parts } = place.archive_kek as Record<string, string>;
  const wrapped = {
    ...place,
    credentials: kek.wrap(plain),
    archive_kek: { method, ...kek.wrap(parts) },
  };
  const target = ['--target-config', targetConfig(bed, wrapped), '--kek', kek.file];
  await archive(bed, ['--config', config, ...target, '--encrypt']);
  // The same keys, as they are.
  const there = targetConfig(bed, { ...place, credentials: plain });
  await archive(bed, ['verify', '--target-config', there]);
  const { headers, key } = faulty.seen.at(-1) as SeenRequest;
  expect(headers['x-amz-security-token']).toBe('a token');
  expect(String(headers.authorization)).toContain('Credential=AKIAEXAMPLE/');
  expect(key).toStartWith('debian/12/');
});

test('as many requests are under way as there are connections, and no object is put twice', async () => {
  await using bed = new Bed();
  const late: Fault = { kind: 'late', ms: 50 };
  const prepared = await prepare(bed, { connections: 5 }, () => late);
  await archive(bed, ['--config', prepared.config, ...prepared.target]);
  expect(faulty.most).toBe(5);
  const keys = faulty.seen.filter(({ method }) => method === 'PUT').map(({ key }) => key);
  expect(new Set(keys).size).toBe(keys.length);
  faulty.forget();
  await exported(bed, prepared);
  expect(faulty.most).toBe(5);
});

test('a lazy disk asks once for equal objects, and waits for a server that is away', async () => {
  await using bed = new Bed();
  const prepared = await prepare(bed);
  const { image, config, target, place } = prepared;
  fillDisk(image, 'zero', sizeBytes, seed);
  await archive(bed, ['--config', config, ...target]);
  faulty.forget();
  let failures = 0;
  faulty.plan = ({ key }) => {
    if (!isData.test(key)) return null;
    return failures++ < 3 ? { kind: 'reset' } : { kind: 'late', ms: 200 };
  };
  await compareLazily(bed, place, image, sizeBytes, { autofetch: true });
  // One object for all of the disk: transfers that are under way are shared.
  expect(faulty.count('GET', isData)).toBeLessThan(STRIPES);
});

test('an archive is replaced by one of the same kind, whose keys stay, and by no other', async () => {
  await using bed = new Bed();
  const prepared = await prepare(bed);
  const { config, target, image } = prepared;
  for (const options of [[], ['--encrypt'], ['--format', '2', '--encrypt']]) {
    const bucket = `replaced-${buckets++}`;
    await s3.bucket(bucket);
    const own = ['--target-config', targetConfig(bed, s3.place(bucket))];
    await archive(bed, ['--config', config, ...own, ...options]);
    const { stderr } = await archive(bed, ['--config', config, ...own, ...options], { expect: 1 });
    expect(stderr).toMatch(/there is an archive in 's3:\/\/replaced-\d+\/debian\/12' already/);
    const other = [...options, '--compress', '--force'];
    const refused = await archive(bed, ['--config', config, ...own, ...other], { expect: 1 });
    expect(refused.stderr).toMatch(
      /can only be replaced by one of the same kind: choose another prefix/,
    );
    fillDisk(image, 'partial', sizeBytes, seed + buckets);
    await archive(bed, ['--config', config, ...own, ...options, '--force']);
    await exported(bed, { ...prepared, target: own });
    const gc = await archive(bed, ['gc', ...own, '--delete', '--json']);
    expect(JSON.parse(gc.stdout).unused).toBeGreaterThan(0);
    await exported(bed, { ...prepared, target: own });
  }
  expect(target).toHaveLength(2);
});

test('at whatever request a replacement is killed, the old archive is there or the new one', async () => {
  await using bed = new Bed();
  const prepared = await prepare(bed);
  const { config, target, image, place } = prepared;
  const options = ['--encrypt'];
  await archive(bed, ['--config', config, ...target, ...options]);
  const old = readFileSync(image);
  fillDisk(image, 'partial', sizeBytes, seed + 1);
  const fresh = readFileSync(image);
  const argv = [binary, 'archive', '--config', config, ...target, ...options, '--force'];
  const direct = ['--target-config', targetConfig(bed, { ...place, endpoint: s3.url })];
  const data = (most: number) => {
    let put = 0;
    return ({ key }: SeenRequest) => isData.test(key) && ++put > most;
  };
  const head = (name: string, nth: number) => {
    return ({ key }: SeenRequest, count: number) =>
      key.startsWith(`debian/12/${name}`) && count >= nth;
  };
  const moments: [(request: SeenRequest, count: number) => boolean, Buffer][] = [
    [data(0), old],
    [data(new Random(seed).below(STRIPES)), old],
    [head('metadata.json', 0), old],
    [head('stripe-hashes.json', 0), old],
    [head('metadata.json', 1), fresh],
  ];
  for (const [hangs, expected] of moments) {
    faulty.forget();
    const reached = Promise.withResolvers<void>();
    faulty.plan = (request, count) => {
      if (request.method !== 'PUT' || !hangs(request, count)) return null;
      reached.resolve();
      return { kind: 'silence' };
    };
    const child = bed.spawn(argv);
    await within(reached.promise, 20_000, () => child.report());
    child.signal('SIGKILL');
    await child.reaped(10_000);
    await archive(bed, ['export', ...direct, '--force', bed.path('exported.raw')]);
    expect(readFileSync(bed.path('exported.raw')).equals(expected)).toBe(true);
  }
  faulty.plan = () => null;
  await archive(bed, ['--config', config, ...target, ...options, '--force', '--resume']);
  await exported(bed, prepared);
}, 120_000);

test('a run that was killed goes on: what is there is not put again', async () => {
  await using bed = new Bed();
  const prepared = await prepare(bed, { connections: 2 });
  const { config, target } = prepared;
  for (const options of [[], ['--encrypt'], ['--format', '2']]) {
    await s3.bucket(`resumed-${buckets}`);
    const own = [
      '--target-config',
      targetConfig(bed, { ...prepared.place, bucket: `resumed-${buckets++}` }),
    ];
    let put = 0;
    const half = Promise.withResolvers<void>();
    faulty.plan = ({ method, key }) => {
      if (method !== 'PUT' || !isData.test(key)) return null;
      if (++put > STRIPES / 2) half.resolve();
      return put > STRIPES / 2 ? { kind: 'silence' } : null;
    };
    const child = bed.spawn([binary, 'archive', '--config', config, ...own, ...options]);
    await half.promise;
    child.signal('SIGKILL');
    await child.reaped(10_000);
    faulty.plan = () => null;
    faulty.forget();
    const argv = ['--config', config, ...own, ...options, '--resume', '--json'];
    const { objects, kept } = JSON.parse((await archive(bed, argv)).stdout);
    expect(kept).toBe(STRIPES / 2);
    expect(faulty.count('PUT', isData)).toBe(objects - kept);
    await exported(bed, { ...prepared, target: own });
  }
  expect(target).toHaveLength(2);
}, 60_000);

test('servers that know no conditions, and whoever may not list, are no obstacle', async () => {
  await using bed = new Bed();
  const prepared = await prepare(bed);
  faulty.plan = ({ method, key, headers }) => {
    if (method === 'GET' && key.startsWith('?')) {
      return { kind: 'status', status: 403, code: 'AccessDenied' };
    }
    return headers['if-none-match']
      ? { kind: 'status', status: 501, code: 'NotImplemented' }
      : null;
  };
  await archive(bed, ['--config', prepared.config, ...prepared.target]);
  await exported(bed, prepared);
});

test('whoever may not delete completes a run, and what stays of it holds up nobody', async () => {
  await using bed = new Bed();
  const prepared = await prepare(bed);
  const { config, target } = prepared;
  faulty.plan = ({ method }) =>
    method === 'DELETE' ? { kind: 'status', status: 403, code: 'AccessDenied' } : null;
  const argv = ['--config', config, ...target];
  for (const options of [['--encrypt'], ['--encrypt', '--force']]) {
    const { stdout, stderr } = await archive(bed, [...argv, ...options]);
    expect(stdout).toMatch(/^archived /);
    expect(stderr).toMatch(
      /^\[WARN archive-create] an empty 'debian\/12\/resume.json' stays in bucket .*: DeleteObject .* 403 AccessDenied.*\n$/,
    );
  }
  await exported(bed, prepared);
  faulty.plan = () => null;
  const { stderr } = await archive(bed, [...argv, '--encrypt', '--force', '--resume', '--quiet']);
  expect(stderr).toBe('');
  await archive(bed, ['gc', ...target, '--delete']);
  await archive(bed, ['verify', ...target]);
});

test('who may not delete is told so by gc, and runs need not wait for it', async () => {
  await using bed = new Bed();
  const prepared = await prepare(bed);
  const { config, image, target } = prepared;
  const argv = ['--config', config, ...target, '--force'];
  await archive(bed, argv);
  fillDisk(image, 'partial', sizeBytes, seed + 1);
  await archive(bed, argv);
  faulty.plan = ({ method }) =>
    method === 'DELETE' ? { kind: 'status', status: 403, code: 'AccessDenied' } : null;
  const { stderr } = await archive(bed, ['gc', ...target, '--delete'], { expect: 1 });
  expect(stderr).toMatch(
    /\[ERROR archive-gc\] DeleteObject of 'debian\/12\/data\/\w+' in .* 403 AccessDenied/,
  );
  await archive(bed, argv);
  await exported(bed, prepared);
  // A request without an answer may be carried out later.
  faulty.plan = ({ method, key }) =>
    method === 'DELETE' && isData.test(key) ? { kind: 'status', status: 503 } : null;
  const hasty = targetConfig(bed, { ...prepared.place, retry_timeout_ms: 500 });
  await archive(bed, ['gc', '--target-config', hasty, '--delete'], { expect: 1 });
  await archive(bed, argv, { expect: 1 });
  faulty.plan = () => null;
  await archive(bed, ['gc', ...target, '--delete']);
  await archive(bed, ['verify', ...target]);
});

test('a signal ends a run that waits for a server, and the KEK stays for whoever goes on', async () => {
  await using bed = new Bed();
  const { config, target } = await prepare(bed);
  const kek = kekFile(bed, 'none');
  const argv = [binary, 'archive', '--config', config, ...target, '--kek', kek.file, '-u'];
  const moments = [() => true, ({ key }: SeenRequest) => isData.test(key)];
  for (const moment of moments) {
    const reached = Promise.withResolvers<void>();
    faulty.plan = (request) => {
      if (!moment(request)) return null;
      reached.resolve();
      return { kind: 'silence' };
    };
    const child = bed.spawn(argv);
    await within(reached.promise, 20_000, () => child.report());
    child.signal('SIGINT');
    expect(await child.exit(10_000)).toBe(130);
    expect(child.stderr.text).toMatch(/SIGINT: ended before everything was done; to go on, give/);
    expect(existsSync(kek.file)).toBe(true);
  }
  faulty.plan = () => null;
  await bed.run(argv);
  expect(existsSync(kek.file)).toBe(false);
});

test('a signal ends a run whose disk waits for its own source', async () => {
  await using bed = new Bed();
  const { config, target, place } = await prepare(bed);
  await archive(bed, ['--config', config, ...target]);
  const { disk, settings } = await lazyDisk(bed, place, sizeBytes);
  const lazy = bed.config({ path: disk, ...settings });
  const reached = Promise.withResolvers<void>();
  faulty.plan = ({ key }) => {
    if (!isData.test(key)) return null;
    reached.resolve();
    return { kind: 'silence' };
  };
  const folder = ['--target-config', targetConfig(bed, folderPlace(bed))];
  const child = bed.spawn([binary, 'archive', '--config', lazy, ...folder]);
  await within(reached.promise, 20_000, () => child.report());
  child.signal('SIGINT');
  expect(await child.exit(10_000)).toBe(130);
});

test('a server of a disk ends though its archive does not answer', async () => {
  await using bed = new Bed();
  const { config, target, place } = await prepare(bed);
  await archive(bed, ['--config', config, ...target]);
  const reached = Promise.withResolvers<void>();
  faulty.plan = ({ key }) => {
    if (!isData.test(key)) return null;
    reached.resolve();
    return { kind: 'silence' };
  };
  const { disk, settings } = await lazyDisk(bed, place, sizeBytes, { autofetch: true });
  const server = await bed.serve(disk, settings);
  await within(reached.promise, 20_000, () => server.child.report());
  await bed.stop(server);
});

test('large objects are put at once, without asking whether they may', async () => {
  await using bed = new Bed();
  const { place } = await prepare(bed);
  const image = bed.disk({ sizeBytes: 8 << 20 });
  fillDisk(image, 'random', 8 << 20, seed);
  const config = bed.config({ path: image, metadata_path: `${image}.meta` });
  await bed.run([binary, 'metadata', 'init', '--config', config, '-s', '13']);
  const target = ['--target-config', targetConfig(bed, place)];
  await archive(bed, ['--config', config, ...target]);
  expect(faulty.count('PUT', isData)).toBe(2);
  expect(faulty.seen.filter(({ headers }) => headers.expect)).toEqual([]);
});

test('a run whose note was taken, though the answer was lost, is not another one', async () => {
  await using bed = new Bed();
  const { config, target } = await prepare(bed);
  faulty.plan = ({ method, key }, count) =>
    method === 'PUT' && key.includes('/resume.json') && count === 0
      ? { kind: 'lost answer' }
      : null;
  await archive(bed, ['--config', config, ...target, '--encrypt']);
  expect(faulty.count('PUT', /\/resume.json/)).toBe(2);
});

test('of two runs that write at once, the one that came first leaves the archive alone', async () => {
  await using bed = new Bed();
  const { config, target } = await prepare(bed);
  const [reached, goOn] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  faulty.plan = ({ method, key }) => {
    if (method !== 'PUT' || !isData.test(key)) return null;
    reached.resolve();
    return { kind: 'held', until: goOn.promise };
  };
  const argv = ['--config', config, ...target, '--encrypt'];
  const first = bed.spawn([binary, 'archive', ...argv]);
  await within(reached.promise, 20_000, () => first.report());
  faulty.plan = () => null;
  await archive(bed, argv);
  goOn.resolve();
  expect(await first.exit(20_000)).toBe(1);
  expect(first.stderr.text).toMatch(/another run has begun to write to the archive .* meanwhile/);
  await archive(bed, ['verify', ...target]);
});

test('nothing is deleted that a run counts on', async () => {
  await using bed = new Bed();
  const { config, target, image } = await prepare(bed);
  const argv = ['--config', config, ...target, '--force'];
  await archive(bed, argv);
  fillDisk(image, 'partial', sizeBytes, seed + 1);
  await archive(bed, argv);
  const [reached, goOn] = [Promise.withResolvers<void>(), Promise.withResolvers<void>()];
  const hold = (held: string): Plan => {
    return ({ method, key }) => {
      if (method !== held || !isData.test(key)) return null;
      reached.resolve();
      return { kind: 'held', until: goOn.promise };
    };
  };
  faulty.plan = hold('DELETE');
  const sweep = bed.spawn([binary, 'archive', 'gc', ...target, '--delete']);
  await within(reached.promise, 20_000, () => sweep.report());
  // The same content again: its objects are there still.
  fillDisk(image, 'partial', sizeBytes, seed);
  const refused = await archive(bed, argv, { expect: 1 });
  expect(refused.stderr).toMatch(/what is unused in .* is being deleted; wait for the end of that/);
  sweep.signal('SIGKILL');
  await sweep.reaped(10_000);
  goOn.resolve();
  faulty.plan = () => null;
  await archive(bed, argv, { expect: 1 });
  await archive(bed, ['gc', ...target, '--delete']);
  await archive(bed, argv);
  await archive(bed, ['verify', ...target]);
});

test('verify ends where the server is away, and blames no object', async () => {
  await using bed = new Bed();
  const { config, target } = await prepare(bed, { retry_timeout_ms: 1000 });
  await archive(bed, ['--config', config, ...target]);
  faulty.plan = ({ key }) => (isData.test(key) ? { kind: 'status', status: 503 } : null);
  const { stdout, stderr } = await archive(bed, ['verify', ...target], { expect: 1 });
  expect(stdout).toBe('');
  expect(stderr).toMatch(/^\[ERROR archive-verify\] GetObject of .* 503 .*\n$/);
});
