/** `ubiblk probe` on servers that do well, badly, or nothing. */
import { expect, test } from 'bun:test';
import {
  closeSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  readSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { watch } from 'node:fs/promises';
import { createServer, type Server } from 'node:net';
import { cpus, release } from 'node:os';
import { dirname } from 'node:path';
import { type CommandSpec, commands } from '../../src/commands/table.ts';
import { CONFIG_BYTES, F } from '../../src/frontend/vhost/block_config.ts';
import { Request } from '../../src/frontend/vhost/protocol.ts';
import { configPayload, messageBytes, u64Payload } from '../../src/probe/frontend_connection.ts';
import { binary, type Child, client } from './processes.ts';
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
      stdout.text.match(
        /: \d+ IOPS, \d+ MiB\/s, mean [\d.]+ us, p50 .*, p99 [\d.]+, .*max [\d.]+$/gm,
      )?.length,
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
  const queues = await probe(bed, server.socket, ['--queues', '2'], 1);
  expect(queues.stderr.text).toContain('the disk has only one queue, not 2');
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

/** A server that says of its disk what it is told to, and knows nothing more. */
function liar(path: string, config: Uint8Array, features: bigint): Promise<Server> {
  const VERSION_REPLY = 5;
  const CONFIG_FEATURE = 1n << 9n;
  const answers = new Map<number, Uint8Array>([
    [Request.GET_FEATURES, u64Payload(features)],
    [Request.GET_PROTOCOL_FEATURES, u64Payload(CONFIG_FEATURE)],
    [Request.GET_CONFIG, configPayload(0, config.length, config)],
  ]);
  const server = createServer((socket) => {
    let got = Buffer.alloc(0);
    socket.on('data', (bytes: Buffer) => {
      got = Buffer.concat([got, bytes]);
      while (got.length >= 12 && got.length >= 12 + got.readUInt32LE(8)) {
        const request = got.readUInt32LE(0);
        got = got.subarray(12 + got.readUInt32LE(8));
        const answer = answers.get(request);
        if (answer) socket.write(messageBytes(request, answer, VERSION_REPLY));
      }
    });
    socket.on('error', () => {});
  });
  return new Promise((resolve) => server.listen(path, () => resolve(server)));
}

test.each([
  ['blocks of no bytes', { 20: 0 }, 'blocks of 0 bytes'],
  ['blocks of all bytes that there are', { 20: 0xffffffff }, 'blocks of 4294967295 bytes'],
  ['a capacity beyond all numbers', { 4: 0xffffffff }, 'beyond any disk'],
  ['segments that hold no block', { 8: 100, 12: 1 }, 'no request can hold a block'],
])(
  'a server is not believed that claims %s',
  async (_, words, sentence) => {
    await using bed = new Bed();
    const config = new Uint8Array(CONFIG_BYTES);
    const view = new DataView(config.buffer);
    for (const [at, word] of Object.entries({ 0: 2048, 8: 4096, 12: 16, 20: 512, ...words })) {
      view.setUint32(Number(at), word, true);
    }
    const path = bed.path('liar.sock');
    const bits = [F.VERSION_1, F.VHOST_PROTOCOL_FEATURES, F.BLK_SIZE, F.SIZE_MAX, F.SEG_MAX];
    const features = bits.reduce((all, bit) => all | (1n << BigInt(bit)), 0n);
    const server = await liar(path, config, features);
    try {
      const { stderr } = await probe(bed, path, ['--timeout', '1'], 1);
      expect(stderr.text).toContain(sentence);
      expect(stderr.text).not.toContain('internal error');
    } finally {
      server.close();
    }
  },
  60_000,
);

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
  [['--socket', 'x', '--queues', '65'], /--queues must be a whole number from 1 to 64/],
  [
    ['--socket', 'x', '--stage', '5'],
    /--stage must be one of setup, .*, or a number from 0 to 4, not '5'/,
  ],
  [['--socket', 'x', '--stage', 'copy'], /stage 'copy' needs '--output FILE'/],
  [['--socket', 'x', '--stage', 'verify'], /stage 'verify' needs '--verify FILE'/],
  [['--socket', 'x', '--stage', '1', '--output', 'y'], /'--output' is not for stage 'config'/],
  [['--socket', 'x', '--output', 'y', '--write'], /'--write' is not for stage 'copy'/],
  [['--socket', 'x', '--output', ''], /'--output' needs a path that is not empty/],
])('wrong arguments %j', async (more, sentence) => {
  await using bed = new Bed();
  const { stderr } = await bed.run([binary, 'probe', ...more], { expect: 2 });
  expect(stderr.text).toMatch(sentence);
});

test('the page names every option', () => {
  const page = readFileSync('docs/probe.md', 'utf8');
  const { options } = commands.find(({ name }) => name === 'probe') as CommandSpec;
  expect(options.map(({ long }) => long).filter((long) => !page.includes(`\`--${long}`))).toEqual(
    [],
  );
});

/** What each stage adds to the JSON object, and to the lines. */
const stages = [
  ['setup', ['socket', 'stage', 'features', 'protocolFeatures'], /^protocol features/m],
  ['config', ['capacityBytes', 'readOnly', 'logicalBlockBytes', 'queues'], /^capacity +5 MiB$/m],
  ['memory', ['memoryBytes'], /^memory +.* shared$/m],
  ['virtqueue', ['inUse', 'id'], /^in use +queues 0 to 1, each with up to 4 requests in flight$/m],
  ['check', ['checked'], /^checked +5 MiB read twice/m],
] as const;

test('a stage does what the ones before it do, and no more, by its name or number', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk({ sizeBytes: 5 * MIB }), { num_queues: 2 });
  const argv = [binary, 'probe', '-s', server.socket, '--queues', '2', '--depth', '4'];
  for (const [number, [stage]] of stages.entries()) {
    const names = number < 4 ? [stage, String(number)] : [stage];
    for (const name of names) {
      const json = await bed.run([...argv, '--stage', name, '--json']);
      const report = JSON.parse(json.stdout.text);
      expect(report.stage).toBe(stage);
      stages.forEach(([, fields], at) => {
        for (const field of fields) expect(field in report).toBe(at <= number);
      });
    }
    const { stdout } = await bed.run([...argv, '--stage', stage]);
    stages.forEach(([, , line], at) => {
      if (at <= number) expect(stdout.text).toMatch(line);
      else expect(stdout.text).not.toMatch(line);
    });
  }
  await bed.stop(server);
}, 60_000);

for (const [queues, depth, kind] of [
  [1, 1, 'ubiblk'],
  [3, 16, 'ubiblk'],
  [2, 8, 'qemu'],
] as const) {
  test(`a disk is copied to its last sector, and verified: ${queues}x${depth}, ${kind}`, async () => {
    await using bed = new Bed();
    // Not a whole number of requests; zeroes in the middle.
    const sizeBytes = 70 * MIB + 7 * 512;
    const disk = bed.disk({ sizeBytes });
    bed.fill(disk, 20 * MIB + 512);
    await bed.run([
      'dd',
      'if=/dev/urandom',
      `of=${disk}`,
      'conv=notrunc',
      'bs=512',
      'count=9',
      `seek=${sizeBytes / 512 - 9}`,
    ]);
    const socket = bed.path('disk.sock');
    const server =
      kind === 'qemu'
        ? bed.spawn([
            ...[client('qemu-storage-daemon'), '--blockdev'],
            ...[`driver=file,node-name=f,filename=${disk},read-only=on`, '--export'],
            `type=vhost-user-blk,id=e,node-name=f,num-queues=${queues},addr.type=unix,addr.path=${socket}`,
          ])
        : (await bed.serve(disk, { num_queues: queues, socket })).child;
    await appeared(socket, server);
    const copy = bed.path('copy.raw');
    const load = ['--queues', String(queues), '--depth', String(depth)];
    const argv = [binary, 'probe', '--socket', socket, ...load];
    const { stdout } = await bed.run([...argv, '--output', copy]);
    expect(stdout.text).toMatch(/^copied +70.0 MiB to '.*', 20.\d MiB of them not zeroes$/m);
    expect(statSync(copy).mode & 0o777).toBe(0o600);
    expect(statSync(copy).blocks * 512).toBeLessThan(30 * MIB);
    await bed.run(['cmp', disk, copy]);
    const verified = await bed.run([...argv, '--verify', disk]);
    expect(verified.stdout.text).toMatch(/^verified +70.0 MiB: every byte as in '/m);

    // One byte, in the last sector.
    const fd = openSync(copy, 'r+');
    const last = bytesOf(copy, sizeBytes)[sizeBytes - 1];
    writeSync(fd, Buffer.of(last ^ 0xff), 0, 1, sizeBytes - 1);
    closeSync(fd);
    const differs = await bed.run([...argv, '--verify', copy], { expect: 1 });
    expect(differs.stderr.text).toContain(
      `differs from '${copy}': at offset ${sizeBytes - 1} it has 0x`,
    );
    const same = await bed.run([...argv, '--verify', copy, '--size', '70M']);
    expect(same.stdout.text).toContain('70 MiB: every byte as in');
    truncateSync(copy, sizeBytes - 512);
    const shorter = await bed.run([...argv, '--verify', copy], { expect: 1 });
    expect(shorter.stderr.text).toContain(
      `compare what both begin with (--size ${sizeBytes - 512})`,
    );
  }, 120_000);
}

/** Waits for a socket that its maker says nothing of. */
async function appeared(path: string, maker: Child): Promise<void> {
  const folder = new AbortController();
  try {
    const events = watch(dirname(path), { signal: folder.signal });
    if (existsSync(path)) return;
    for await (const _ of events) if (existsSync(path) || !maker.running) return;
  } finally {
    folder.abort();
  }
}

test('a copy that fails leaves no file, and what was there as it was', async () => {
  await using bed = new Bed();
  const disk = bed.disk({ sizeBytes: 8 * MIB });
  bed.fill(disk, 8 * MIB);
  const server = await bed.serve(disk, { direct_io: false });
  const copy = bed.path('copy.raw');
  writeFileSync(copy, 'what was there');
  truncateSync(disk, MIB);
  const before = readdirSync(bed.folder);
  const failed = await bed.run([binary, 'probe', '-s', server.socket, '-o', copy], { expect: 1 });
  expect(failed.stderr.text).toMatch(/answered a read of \d+ bytes at \d+ with an I\/O error/);
  expect(readFileSync(copy, 'utf8')).toBe('what was there');
  expect(readdirSync(bed.folder)).toEqual(before);
  const full = await bed.run([binary, 'probe', '-s', server.socket, '-o', '/dev/full'], {
    expect: 1,
  });
  expect(full.stderr.text).toContain("'/dev/full' is no regular file");
  const nowhere = await bed.run([binary, 'probe', '-s', server.socket, '-o', `${copy}/x`], {
    expect: 1,
  });
  expect(nowhere.stderr.text).toContain(`'${copy}/x' cannot be written: ENOTDIR`);
  // The server would go on with a file that has no name any more.
  const { ino } = statSync(disk);
  const served = await bed.run([binary, 'probe', '-s', server.socket, '-o', disk], { expect: 1 });
  expect(served.stderr.text).toContain(`'${disk}' is in use by another process`);
  expect(statSync(disk).ino).toBe(ino);
  await bed.stop(server);
}, 60_000);

/** Waits until a process has a file in a folder open that has no name. */
async function hasUnnamedFile(pid: number, folder: string): Promise<void> {
  const isThere = () =>
    readdirSync(`/proc/${pid}/fd`).some((fd) => {
      try {
        const link = readlinkSync(`/proc/${pid}/fd/${fd}`);
        return link.startsWith(folder) && link.endsWith(' (deleted)');
      } catch {
        return false;
      }
    });
  for (const deadline = Date.now() + 10_000; !isThere(); await Bun.sleep(10)) {
    if (Date.now() > deadline) throw new Error(`process ${pid} writes no file`);
  }
}

test('a copy that a signal ends leaves no file', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk({ sizeBytes: 2 ** 38 }));
  const copy = bed.path('copy.raw');
  const before = readdirSync(bed.folder);
  const probe = bed.spawn([binary, 'probe', '-s', server.socket, '-o', copy]);
  await hasUnnamedFile(probe.pid, bed.folder);
  probe.signal('SIGTERM');
  expect(await probe.exit(20_000)).toBe(143);
  expect(probe.stderr.text).toContain('SIGTERM: ended before the copy was complete');
  expect(readdirSync(bed.folder)).toEqual(before);
  await bed.stop(server);
}, 60_000);

test('ctrl-C is heard at once, also where the server answers nothing any more', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk({ sizeBytes: 2 ** 38 }));
  const argv = [binary, 'probe', '-s', server.socket, '-o', bed.path('copy.raw')];
  const probe = bed.spawn([...argv, '--timeout', '3600']);
  await hasUnnamedFile(probe.pid, bed.folder);
  server.child.signal('SIGSTOP');
  probe.signal('SIGINT');
  expect(await probe.exit(20_000)).toBe(130);
  expect(probe.stderr.text).toContain('SIGINT: ended before the copy was complete');
  server.child.signal('SIGCONT');
  await bed.stop(server);
}, 60_000);

test('a measurement says how long requests took, and where', async () => {
  await using bed = new Bed();
  const server = await bed.serve(bed.disk(), { num_queues: 2 });
  const { stdout } = await probe(bed, server.socket, ['--json', '--queues', '2', '--depth', '3']);
  const { measurements, host, inUse } = JSON.parse(stdout.text);
  expect(inUse).toEqual({ queues: 2, depth: 3 });
  for (const { depth, p50Us, p90Us, p99Us, p999Us, maxUs } of measurements) {
    expect(depth).toBe(6);
    const rising = [0.1, p50Us, p90Us, p99Us, p999Us, maxUs];
    expect(rising.toSorted((a, b) => a - b)).toEqual(rising);
  }
  const version = await bed.run([binary, '--version']);
  expect(version.stdout.text).toContain(`ubiblk ${host.version}\ncommit: ${host.commit}\n`);
  expect(host).toMatchObject({ kernel: release(), processors: cpus().length });
  expect(host.processor.length).toBeGreaterThan(3);
  await bed.stop(server);
}, 60_000);

test("under the reference system's name it takes that program's options, and prints its lines", async () => {
  await using bed = new Bed();
  const program = bed.path('vhost-frontend');
  symlinkSync(binary, program);
  const disk = bed.disk({ sizeBytes: 3 * MIB + 512 });
  bed.fill(disk, 3 * MIB + 512);
  const server = await bed.serve(disk);
  const copy = bed.path('copy.raw');
  const { stdout } = await bed.run([program, '-s', server.socket, '-o', copy]);
  expect(stdout.text).toMatch(
    /^Features \(0x[0-9a-f]+\): VIRTIO_F_VERSION_1 \| .*VIRTIO_BLK_F_FLUSH/,
  );
  expect(stdout.text).toContain('\nDevice capacity: 3 MiB\nNumber of queues: 1\n');
  expect(stdout.text).toEndWith('\nProgress: Done!\n');
  await bed.run(['cmp', disk, copy]);
  // Before anything is connected to.
  const missing = await bed.run([program, '--socket', bed.path('none.sock')], { expect: 2 });
  expect(missing.stderr.text).toContain("vhost-frontend: stage 'copy' needs '--output FILE'\n");
  const config = await bed.run([program, '--socket', server.socket, '--stage', 'config']);
  expect(config.stdout.text).not.toContain('memory');
  await bed.stop(server);
}, 60_000);
