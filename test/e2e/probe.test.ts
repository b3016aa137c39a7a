/** `ubiblk probe` on servers that do well, badly, or nothing. */
import { expect, test } from 'bun:test';
import { closeSync, openSync, readFileSync, readSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { binary } from './processes.ts';
import { Bed, need, testWith } from './support.ts';

const MIB = 1 << 20;

function bytesOf(path: string, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  const fd = openSync(path, 'r');
  readSync(fd, bytes, 0, length, 0);
  closeSync(fd);
  return bytes;
}

async function probe(bed: Bed, socket: string, more: string[] = [], expect = 0) {
  const argv = [binary, 'probe', '--socket', socket, '--seconds', '0.1', ...more];
  return await bed.run(argv, { expect });
}

for (const engine of ['io_uring', 'sync']) {
  test(`a disk is written, compared and measured, and only its start: ${engine}`, async () => {
    await using bed = new Bed();
    const disk = bed.disk();
    bed.fill(disk, 64 * MIB);
    const before = bytesOf(disk, 64 * MIB);
    const server = await bed.serve(disk, { io_engine: engine, device_id: 'probed' });
    const { stdout } = await probe(bed, server.socket, ['--write', '--size', '5M', '--depth', '9']);
    expect(stdout.text).toContain("id                 'probed'\n");
    expect(stdout.text).toContain('5 MiB written, flushed, read back: every byte the same');
    expect(
      stdout.text.match(/: \d+ IOPS, \d+ MiB\/s, mean [\d.]+ us, p99 [\d.]+ us$/gm)?.length,
    ).toBe(4);
    const after = bytesOf(disk, 64 * MIB);
    expect(after.subarray(5 * MIB).equals(before.subarray(5 * MIB))).toBe(true);
    expect(after.subarray(0, 4096).equals(before.subarray(0, 4096))).toBe(false);
    await bed.stop(server);
  }, 60_000);
}

const hugePagesSetting = '/proc/sys/vm/nr_hugepages';

/** Makes sure of 32 huge pages for the body, where this machine can. */
async function withHugePages(body: () => Promise<void>): Promise<void> {
  const before = readFileSync(hugePagesSetting, 'utf8');
  try {
    writeFileSync(hugePagesSetting, String(Number(before) + 32));
    await body();
  } finally {
    writeFileSync(hugePagesSetting, before);
  }
}

testWith(
  'memory of huge pages is registered with the ring, and data is the same',
  [need.root(), need.diskFolder()],
  () =>
    withHugePages(async () => {
      await using bed = new Bed();
      const disk = bed.disk();
      const server = await bed.serve(disk, {}, { env: { UBIBLK_LOG: 'debug' } });
      await probe(bed, server.socket, ['--write', '--size', '32M', '--huge-pages']);
      await bed.stop(server);
      expect(server.child.stderr.text).toMatch(/the ring starts .*registered=[1-9]/);
    }),
  60_000,
);

test('without --write the disk is not changed; the JSON says what was found', async () => {
  await using bed = new Bed();
  const disk = bed.disk({ sizeBytes: 3 * MIB + 512 });
  bed.fill(disk, 3 * MIB + 512);
  const before = bytesOf(disk, 3 * MIB + 512);
  const server = await bed.serve(disk, { num_queues: 3, seg_size_max: 8192, seg_count_max: 2 });
  const { stdout } = await probe(bed, server.socket, ['--json', '--depth', '256']);
  const report = JSON.parse(stdout.text);
  expect(report).toMatchObject({
    socket: server.socket,
    capacityBytes: 3 * MIB + 512,
    readOnly: false,
    queues: 3,
    segmentsMax: 2,
    segmentBytesMax: 8192,
    checked: { bytes: 3 * MIB + 512, written: false },
    measurements: [
      { name: 'random read', requestBytes: 4096, depth: 256 },
      { name: 'sequential read', requestBytes: 16384, depth: 256 },
    ],
  });
  expect(report.features).toContain('event_idx');
  expect(report.measurements[0].requests).toBeGreaterThan(0);
  expect(bytesOf(disk, 3 * MIB + 512).equals(before)).toBe(true);
  await bed.stop(server);
}, 60_000);

test('a disk of one sector is enough', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk({ sizeBytes: 512 }));
  const { stdout } = await probe(bed, server.socket, ['--write']);
  expect(stdout.text).toContain('512 bytes written, flushed, read back: every byte the same');
  await bed.stop(server);
}, 60_000);

test('a disk that loses what is written is found out', async () => {
  await using bed = new Bed();
  const socket = bed.path('null.sock');
  const server = bed.spawn([binary, 'serve', 'vhost', '--null', '1G', '--socket', socket]);
  await bed.listening(server, 10_000);
  const { stdout, stderr } = await probe(bed, socket, ['--write'], 1);
  expect(stdout.text).not.toContain('checked');
  expect(stderr.text).toMatch(/returns other data than was written: at offset 0 it has 0xa5 /);
  expect(stderr.text.split('\n').length).toBe(2);
}, 60_000);

test('what the disk can not do is said in a sentence', async () => {
  await using bed = new Bed();
  const disk = bed.disk({ sizeBytes: MIB });
  await bed.run(['chmod', '444', disk]);
  const server = await bed.serve(disk);
  const readOnly = await probe(bed, server.socket, ['--write'], 1);
  expect(readOnly.stderr.text).toContain('the disk is read-only; leave --write out');
  const small = await probe(bed, server.socket, ['--size', '2M'], 1);
  expect(small.stderr.text).toContain(`the disk has only ${MIB} bytes; give a smaller --size`);
  await probe(bed, server.socket);
  await bed.stop(server);
}, 60_000);

test('a socket without a server, and a server without an answer', async () => {
  await using bed = new Bed();
  const missing = await probe(bed, bed.path('none.sock'), [], 1);
  expect(missing.stderr.text).toContain(`there is no socket '${bed.path('none.sock')}'`);

  const path = bed.path('silent.sock');
  const silent = createServer();
  await new Promise<void>((resolve) => silent.listen(path, resolve));
  try {
    const { stderr } = await probe(bed, path, ['--timeout', '1'], 1);
    expect(stderr.text).toContain(`the server at '${path}' did not answer GET_FEATURES`);
    silent.on('connection', (socket) => socket.end('HTTP/1.1 400 Bad Request\r\n\r\n'));
    const wrong = await probe(bed, path, [], 1);
    expect(wrong.stderr.text).toContain('did not answer GET_FEATURES as a vhost-user server does');
  } finally {
    silent.close();
  }
}, 60_000);

test('a server that another frontend uses, and one that dies under the probe', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk());
  const first = bed.spawn([binary, 'probe', '--socket', server.socket, '--seconds', '100']);
  await first.said(/checked/, 20_000);
  const second = await probe(bed, server.socket, [], 1);
  expect(second.stderr.text).toContain('is a virtual machine connected?');
  await bed.crash(server);
  expect(await first.exit(10_000)).toBe(1);
  expect(first.stderr.text).toContain('closed the connection; its log says why');
}, 60_000);

test.each([
  [[], /option '--socket' is required/],
  [['--socket', 'x', '--depth', '257'], /--depth must be a whole number from 1 to 256/],
  [['--socket', 'x', '--seconds', '0'], /--seconds must be a number from 0.1 to 3600/],
  [['--socket', 'x', '--timeout', '1e1'], /--timeout must be a number/],
  [['--socket', 'x', '--size', '1000'], /--size must be a multiple of 512/],
])('wrong arguments %j', async (more, sentence) => {
  await using bed = new Bed();
  const { stderr } = await bed.run([binary, 'probe', ...more], { expect: 2 });
  expect(stderr.text).toMatch(sentence);
});

test('the page names every option', () => {
  const page = readFileSync('docs/probe.md', 'utf8');
  for (const option of ['socket', 'write', 'size', 'depth', 'seconds', 'timeout', 'json']) {
    expect(page).toContain(`\`--${option}`);
  }
});
