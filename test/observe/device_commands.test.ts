/** What a served disk answers. */
import { expect, test } from 'bun:test';
import { openLibrary, shim } from '../../ffi/library.ts';
import { BlockRequest, FLUSH, READ, WRITE } from '../../src/device/request.ts';
import { QueueBoard, RequestBoard } from '../../src/device/request_board.ts';
import { deviceCommands, type ServedDevice } from '../../src/observe/device_commands.ts';
import { RpcBed } from './support.ts';

openLibrary();

const description = {
  frontend: 'vhost',
  deviceId: 'vm7',
  path: '/srv/vm7.img',
  sizeBytes: 1 << 30,
  queues: 2,
  readOnly: false,
  encrypted: true,
  directIo: true,
  writeThrough: false,
  ioEngine: 'sync',
} as const;

function served(more: Partial<ServedDevice> = {}): ServedDevice {
  return {
    version: '1.2.3',
    description,
    frontend: () => ({ connected: true, writeback: true }),
    status: () => null,
    board: new RequestBoard(1, 1),
    actions: { flush: async () => {}, shutdown: () => {}, stripes: null },
    ...more,
  };
}

async function ask(command: string, more: Partial<ServedDevice> = {}): Promise<string> {
  using bed = new RpcBed();
  bed.serve(deviceCommands(served(more)));
  const client = await bed.connect();
  client.send(`{"command":"${command}"}\n`);
  return (await client.line()) ?? '';
}

function request(op: 0 | 1 | 2, offset: number, length: number, result = 0): BlockRequest {
  const made = new BlockRequest(0, { completed: () => {} }, undefined as never);
  return Object.assign(made, { op, offset, length, result });
}

test('the version', async () => {
  expect(await ask('version')).toBe('{"version":"1.2.3"}');
});

test('the status of a disk without metadata is null, and beside it is what the device is', async () => {
  const { status, device } = JSON.parse(await ask('status'));
  expect(status).toBeNull();
  expect(device).toMatchObject({
    device_id: 'vm7',
    size_bytes: 1 << 30,
    encrypted: true,
    direct_io: true,
    io_engine: 'sync',
    cache: 'writeback',
    connected: true,
    pid: process.pid,
  });
  expect(device.block_device).toBeUndefined();
  expect(device.uptime_s).toBeGreaterThan(0);
  expect(Date.parse(device.started_at)).toBeLessThan(Date.now());
  const frontend = () => ({ connected: false, writeback: false, blockDevice: '/dev/ublkb3' });
  expect(JSON.parse(await ask('status', { frontend })).device).toMatchObject({
    connected: false,
    cache: 'writethrough',
    block_device: '/dev/ublkb3',
  });
});

test('stripes are counted with and without a source; what else there is stands beside them', async () => {
  const counts = { total: 64, source: 40, fetched: 12 };
  expect(JSON.parse(await ask('status', { status: () => counts })).status).toEqual({
    stripes: { fetched: 12, no_source: 24, source: 40, total: 64 },
  });
  const more = {
    ...counts,
    metadataFailing: false,
    inFlight: 2,
    failing: [{ lastError: 'x' }],
    origin: { bytesRead: 7 },
  };
  expect(JSON.parse(await ask('status', { status: () => more })).status).toEqual({
    stripes: { fetched: 12, no_source: 24, source: 40, total: 64 },
    metadata_failing: false,
    in_flight: 2,
    failing: [{ last_error: 'x' }],
    source: { bytes_read: 7 },
  });
});

test('requests in flight by queue', async () => {
  const board = new RequestBoard(2, 4);
  const queue = new QueueBoard(board.shared, 1, 4);
  queue.reset(4);
  queue.begin(2, request(READ, 2048 * 512, 8 * 512), 0);
  expect(await ask('queues', { board })).toBe('{"queues":[[],[["read",2048,8]]]}');
});

test('statistics by queue, in the names that clients know, and latencies of all queues', async () => {
  const board = new RequestBoard(2, 4);
  const nowNs = shim.ubiblk_clock_ns();
  const queues = [0, 1].map((queue) => new QueueBoard(board.shared, queue, 4));
  for (const queue of queues) {
    queue.reset(4);
    queue.begin(0, request(READ, 0, 4096), nowNs);
    queue.end(0, request(READ, 0, 4096), nowNs + 50_000);
  }
  const write = request(WRITE, 0, 512, -5);
  queues[1].begin(1, write, nowNs);
  queues[1].end(1, write, nowNs + 1_000_000);
  queues[1].begin(2, request(FLUSH, 0, 77), nowNs - 3e9);
  queues[1].counters.refused();
  const { stats } = JSON.parse(await ask('stats', { board }));
  expect(stats.queues.length).toBe(2);
  expect(stats.queues[0]).toMatchObject({
    ...{ bytes_read: 4096, bytes_written: 0, flush_ops: 0, read_ops: 1, write_ops: 0 },
    ...{ in_flight: 0, oldest_ms: 0, refused: 0 },
  });
  expect(stats.queues[1]).toMatchObject({
    ...{ bytes_read: 4096, bytes_written: 512, flush_ops: 1, read_ops: 1, write_ops: 1 },
    ...{ in_flight: 1, refused: 1 },
    errors: { read: 0, write: 1, flush: 0, discard: 0, write_zeroes: 0 },
  });
  expect(stats.queues[1].oldest_ms).toBeGreaterThanOrEqual(3000);
  expect(stats.queues[1].latency_us.write).toMatchObject({ count: 1, mean: 1000, max: 1000 });
  const { count, buckets, p50 } = stats.latency_us.read;
  expect(count).toBe(2);
  // The bucket ends a little later than the longest of its requests.
  expect(p50).toBe(50);
  const [[endUs, inBucket]] = buckets;
  expect(inBucket).toBe(2);
  expect(endUs).toBeGreaterThan(50);
  expect(endUs).toBeLessThan(52);
});

test('commands are carried out, or say with a code why they are not', async () => {
  const done: string[] = [];
  const stripes = {
    set autofetch(on: boolean) {
      done.push(`autofetch ${on}`);
    },
    retryFailed: () => 3,
  } as { autofetch: boolean; retryFailed: () => number };
  const flush = async () => void done.push('flush');
  const stopped = Promise.withResolvers<void>();
  const actions = { flush, shutdown: () => stopped.resolve(), stripes };
  const answers = [
    ['flush', '{"flushed":true}'],
    ['pause_autofetch', '{"autofetch":false}'],
    ['resume_autofetch', '{"autofetch":true}'],
    ['retry_failed', '{"retried":3}'],
    ['shutdown', '{"shutting_down":true}'],
  ];
  for (const [command, answer] of answers) expect(await ask(command, { actions })).toBe(answer);
  expect(done).toEqual(['flush', 'autofetch false', 'autofetch true']);
  await stopped.promise;
  const failing = async () => {
    throw new Error('EIO: i/o error, fdatasync');
  };
  expect(await ask('flush', { actions: { ...actions, flush: failing } })).toBe(
    '{"code":"flush_failed","error":"the flush failed: EIO: i/o error, fdatasync"}',
  );
  for (const command of ['pause_autofetch', 'resume_autofetch', 'retry_failed']) {
    expect(JSON.parse(await ask(command)).code).toBe('no_metadata');
  }
});

test('clients that ask for a flush while one is under way share the next one', async () => {
  const begun: PromiseWithResolvers<void>[] = [];
  const flush = () => {
    const one = Promise.withResolvers<void>();
    begun.push(one);
    return one.promise;
  };
  const actions = { flush, shutdown: () => {}, stripes: null };
  const commands = deviceCommands(served({ actions }));
  const answers = [1, 2, 3, 4].map(() => Promise.resolve(commands.flush()));
  expect(begun.length).toBe(1);
  begun[0].reject(new Error('EIO'));
  await expect(answers[0]).rejects.toThrow('the flush failed: EIO');
  expect(begun.length).toBe(2);
  const later = commands.flush();
  begun[1].resolve();
  expect(await Promise.all(answers.slice(1))).toEqual(Array(3).fill({ flushed: true }));
  expect(begun.length).toBe(3);
  begun[2].resolve();
  expect(await later).toEqual({ flushed: true });
  const last = commands.flush();
  expect(begun.length).toBe(4);
  begun[3].resolve();
  await last;
});

test('a disk that hangs in a flush lets go of the client', async () => {
  const actions = { flush: () => new Promise<void>(() => {}), shutdown: () => {}, stripes: null };
  const answer = deviceCommands(served({ actions }), 20).flush();
  await expect(answer).rejects.toMatchObject({ code: 'flush_slow' });
});
