/** Metrics as Prometheus's own tool and its Python library read them, and the dashboard's queries. */
import { expect, test } from 'bun:test';
import { existsSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { ended, lazyDisk, qemuIo } from './lazy.ts';
import { binary, client, keyValues, root, tool } from './processes.ts';
import { ask } from './rpc.ts';
import { Bed, type Settings, testWith } from './support.ts';

const MIB = 1 << 20;
const OPEN_METRICS = 'application/openmetrics-text; version=1.0.0';

/** Prints `NAME{LABELS} VALUE` for each sample, labels sorted; refuses what the format forbids. */
const pythonParser = `
import json, sys
if sys.argv[1] == 'open':
    from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse
else:
    from prometheus_client.parser import text_string_to_metric_families as parse
samples = []
for family in parse(sys.stdin.read() if len(sys.argv) < 3 else open(sys.argv[2]).read()):
    for sample in family.samples:
        samples.append([sample.name, dict(sample.labels), sample.value, family.type])
print(json.dumps(samples))
`;

type Sample = [name: string, labels: Record<string, string>, value: number, type: string];

async function fetched(where: { unix: string } | { url: string }, open: boolean) {
  const headers: Record<string, string> = open
    ? { accept: `${OPEN_METRICS},text/plain;q=0.5` }
    : {};
  const [url, more] = 'url' in where ? [where.url, {}] : ['http://localhost/metrics', where];
  const response = await fetch(url, { headers, ...more });
  expect(response.status).toBe(200);
  const kind = open ? 'application/openmetrics-text; version=1.0.0' : 'text/plain; version=0.0.4';
  expect(response.headers.get('content-type')).toStartWith(kind);
  return await response.text();
}

async function parsed(bed: Bed, text: string, open: boolean): Promise<Sample[]> {
  writeFileSync(bed.path('metrics'), text);
  const argv = [String(python), '-c', pythonParser, open ? 'open' : 'plain', bed.path('metrics')];
  return JSON.parse((await bed.run(argv)).stdout.text);
}

function valueIn(samples: Sample[], name: string, labels: Record<string, string> = {}): number {
  const found = samples.filter(
    ([of, has]) =>
      of === name && Object.entries(labels).every(([key, value]) => has[key] === value),
  );
  expect(found.length).toBeGreaterThan(0);
  return found.reduce((sum, [, , value]) => sum + value, 0);
}

// Debian's own Python has Debian's packages, whatever else is there.
const python = ['/usr/bin/python3', 'python3'].find(hasParser);
const needsParser = python === undefined && "python3-prometheus-client isn't installed";

function hasParser(program: string): boolean {
  if (!Bun.which(program)) return false;
  const argv = [program, '-c', 'import prometheus_client.openmetrics.parser'];
  return Bun.spawnSync(argv).exitCode === 0;
}

testWith(
  "both formats are read by Prometheus's own parsers, and say what the RPC socket says",
  [needsParser],
  async () => {
    await using bed = new Bed();
    // A name that must be escaped.
    const sizes = { shift: 9, sizeBytes: 8 * MIB, imageBytes: 4 * MIB };
    const more = { copy_on_read: true, device_id: 'a"b\\c', num_queues: 2 };
    const metrics_listen = bed.path('metrics.sock');
    const lazy = await lazyDisk(bed, { ...sizes, settings: { ...more, metrics_listen } });
    const server = await bed.serve(lazy.disk, lazy.settings);
    expect(statSync(metrics_listen).mode & 0o7777).toBe(0o660);
    await bed.check(server.socket, { queues: 2, ops: 500, zero: 1, image: lazy.reference });
    const { stats } = (await ask(lazy.rpc, 'stats')) as {
      stats: { queues: Record<string, number>[]; latency_us: Record<string, { count: number }> };
    };
    for (const open of [true, false]) {
      const text = await fetched({ unix: metrics_listen }, open);
      const samples = await parsed(bed, text, open);
      stats.queues.forEach((queue, index) => {
        const labels = { queue: String(index) };
        for (const [op, ops, bytes] of [
          ['read', 'read_ops', 'bytes_read'],
          ['write', 'write_ops', 'bytes_written'],
          ['discard', 'discard_ops', 'bytes_discarded'],
          ['write_zeroes', 'write_zeroes_ops', 'bytes_zeroed'],
        ]) {
          const of = { ...labels, op };
          expect(valueIn(samples, 'ubiblk_requests_total', of)).toBe(queue[ops]);
          expect(valueIn(samples, 'ubiblk_request_bytes_total', of)).toBe(queue[bytes]);
        }
        expect(valueIn(samples, 'ubiblk_requests_in_flight', labels)).toBe(0);
      });
      for (const [op, { count }] of Object.entries(stats.latency_us)) {
        const infinite = { op, le: '+Inf' };
        expect(valueIn(samples, 'ubiblk_request_duration_seconds_count', { op })).toBe(count);
        expect(valueIn(samples, 'ubiblk_request_duration_seconds_bucket', infinite)).toBe(count);
      }
      expect(valueIn(samples, 'ubiblk_device_info', { device_id: 'a"b\\c' })).toBe(1);
      expect(valueIn(samples, 'ubiblk_device_size_bytes')).toBe(8 * MIB);
      expect(valueIn(samples, 'ubiblk_stripes_source')).toBe(16);
      expect(valueIn(samples, 'ubiblk_frontend_connected')).toBe(0);
      expect(valueIn(samples, 'process_resident_memory_bytes')).toBeGreaterThan(MIB);
      const age = Date.now() / 1000 - valueIn(samples, 'process_start_time_seconds');
      expect(age).toBeGreaterThan(0);
      expect(age).toBeLessThan(60);
    }
    await bed.stop(server);
    expect(existsSync(metrics_listen)).toBe(false);
  },
  60_000,
);

interface Panel {
  title: string;
  targets: { expr: string }[];
}

test("promtool finds no fault in the metrics, and the dashboard's queries ask for what there is", async () => {
  await using bed = new Bed();
  const sizes = { shift: 9, sizeBytes: 4 * MIB, imageBytes: 4 * MIB };
  const settings = { metrics_listen: '127.0.0.1:0', copy_on_read: true };
  const lazy = await lazyDisk(bed, { ...sizes, settings });
  const server = await bed.serve(lazy.disk, lazy.settings);
  const [, url] = await server.child.said(
    /metrics are at (http\S+)/,
    10_000,
    0,
    server.child.stderr,
  );
  await ended(qemuIo(bed, server, 'read 0 64k', 'write 1M 4k', 'flush'));
  const text = await fetched({ url }, false);
  const file = bed.path('metrics');
  writeFileSync(file, text);
  const checked = await bed.run(['sh', '-c', '"$0" check metrics < "$1"', tool('promtool'), file]);
  expect(checked.stdout.text + checked.stderr.text).toBe('');

  const dashboard = JSON.parse(readFileSync(`${root}/docs/grafana-dashboard.json`, 'utf8'));
  const queries = (dashboard.panels as Panel[]).flatMap(({ targets }) =>
    targets.map((t) => t.expr),
  );
  expect(queries.length).toBeGreaterThan(15);
  const names = new Set([...text.matchAll(/^([a-z_]+)[{ ]/gm)].map(([, name]) => name));
  const asked = new Set(queries.flatMap((query) => query.match(/\b(ubiblk|process)_\w+/g) ?? []));
  expect([...asked].filter((name) => !names.has(name))).toEqual([]);
  // Labels, too.
  const labels = new Set([...text.matchAll(/[{,]([a-z_]+)="/g)].map(([, name]) => name));
  const selected = queries.flatMap((query) =>
    [...query.matchAll(/[{,](\w+)=~?"/g), ...query.matchAll(/by \(([^)]*)\)/g)].flatMap(([, of]) =>
      of.split(/, */),
    ),
  );
  expect(selected.filter((name) => name !== 'instance' && !labels.has(name))).toEqual([]);
  // Every query is one, to those who carry it out.
  const rules = queries.map((query, i) => ({
    record: `query:${i}`,
    expr: query.replaceAll('$__rate_interval', '1m').replaceAll('$instance', '.*'),
  }));
  writeFileSync(bed.path('rules.yaml'), JSON.stringify({ groups: [{ name: 'all', rules }] }));
  const rulesRun = await bed.run([tool('promtool'), 'check', 'rules', bed.path('rules.yaml')]);
  expect(rulesRun.stdout.text).toContain(`SUCCESS: ${queries.length} rules found`);
  await bed.stop(server);
}, 300_000);

/** Starts a server that must not come up. @returns what it says */
async function refused(bed: Bed, settings: Settings): Promise<string> {
  const config = bed.config({ path: bed.disk(), socket: bed.path('other.sock'), ...settings });
  const argv = [binary, 'serve', 'vhost', '--config', config];
  const child = await bed.run(argv, { expect: 1 });
  expect(child.stderr.text).not.toMatch(/^\s+at /m);
  const checked = await bed.run([...argv, '--check'], { expect: 1 });
  expect(checked.stderr.text).toContain('[ERROR ');
  expect(child.stderr.text).toEndWith(checked.stderr.text);
  for (const name of ['other.sock', 'rpc.sock']) expect(existsSync(bed.path(name))).toBe(false);
  return child.stderr.text;
}

test('a place that can not be served at is named; a socket that was left behind is used again', async () => {
  await using bed = new Bed();
  const rpc = { rpc_socket_path: bed.path('rpc.sock') };
  writeFileSync(bed.path('file'), 'content');
  const metrics_listen = bed.path('file');
  expect(await refused(bed, { ...rpc, metrics_listen })).toContain('exists and is not a socket');
  expect(readFileSync(metrics_listen, 'utf8')).toBe('content');
  expect(await refused(bed, { ...rpc, metrics_listen: 'a:b:c' })).toContain("'host:port'");
  expect(await refused(bed, { ...rpc, metrics_listen: bed.path('rpc.sock') })).toContain(
    'they need two paths',
  );
  const socket = bed.path('metrics.sock');
  const server = await bed.serve(bed.disk(), { metrics_listen: socket });
  expect(await refused(bed, { ...rpc, metrics_listen: socket })).toContain(
    `another process listens on the socket '${socket}'`,
  );
  await bed.crash(server);
  const next = await bed.start(server.config, server.socket);
  expect(await fetched({ unix: socket }, false)).toContain('ubiblk_device_info');
  const taken = await bed.serve(bed.disk(), { metrics_listen: '127.0.0.1:0' });
  const [, port] = await taken.child.said(
    /127\.0\.0\.1:(\d+)\/metrics/,
    5000,
    0,
    taken.child.stderr,
  );
  const place = `127.0.0.1:${port}`;
  expect(await refused(bed, { ...rpc, metrics_listen: place })).toContain(
    `metrics can't be served at '${place}': EADDRINUSE`,
  );
  for (const path of ['/', '/other']) {
    const status = path === '/' ? 200 : 404;
    expect((await fetch(`http://${place}${path}`)).status).toBe(status);
  }
  expect((await fetch(`http://${place}/metrics`, { method: 'POST', body: 'x' })).status).toBe(405);
  await bed.stop(taken);
  await bed.stop(next);
}, 60_000);

test('who reads nothing, or sends nothing, keeps nobody from anything', async () => {
  await using bed = new Bed();
  const socket = bed.path('metrics.sock');
  const server = await bed.serve(bed.disk(), { metrics_listen: socket });
  const open: { terminate: () => void }[] = [];
  for (let i = 0; i < 50; i++) {
    const request = 'GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n'.repeat(i % 2 === 0 ? 0 : 200);
    const client = await Bun.connect({ unix: socket, socket: { data() {} } });
    client.pause();
    client.write(request);
    open.push(client);
  }
  const load = keyValues({ ops: 3000, depth: 32 });
  await ended(bed.spawn([client('vhost-check'), server.socket, ...load]));
  expect(await fetched({ unix: socket }, true)).toEndWith('# EOF\n');
  await bed.stop(server);
  for (const each of open) each.terminate();
}, 60_000);
