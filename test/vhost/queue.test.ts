/** A queue whose driver, disk and control thread do what they like. */
import { afterEach, expect, spyOn, test } from 'bun:test';
import { shim } from '../../ffi/library.ts';
import { SPIN_CROWDED } from '../../ffi/ring.ts';
import {
  type BlockRequest,
  DISCARD,
  FLUSH,
  READ,
  WRITE,
  WRITE_ZEROES,
} from '../../src/device/request.ts';
import { Waiting } from '../../src/frontend/vhost/queue_link.ts';
import { type BenchOptions, QueueBench, type Script } from './queue_bench.ts';

const IN = 0;
const OUT = 1;
const GET_ID = 8;
const OK = 0;
const IOERR = 1;
const UNSUPP = 2;
const EIO = -5;

let bench: QueueBench;

function run(script: (bench: QueueBench) => Script, options: BenchOptions = {}): void {
  bench = new QueueBench(options);
  bench.run(script(bench));
}

afterEach(() => bench.free());

test('used lengths are the bytes written: data and status', () => {
  run(function* (b) {
    b.offer(0, IN, 0, 2048);
    b.offer(1, OUT, 0, 2048);
    b.offer(2, 4, 0, 0);
    b.offer(3, GET_ID, 0, 32);
    b.offer(4, 77, 0, 512);
    b.offer(5, IN, 1 << 30, 512);
    yield;
    while (b.device.open.length > 0) b.device.finish(0);
    yield;
    const lengths = new Map(b.take().map(({ head, length }) => [head, length]));
    expect([0, 1, 2, 3, 4, 5].map((head) => lengths.get(head))).toEqual([2049, 1, 1, 21, 1, 1]);
    expect([0, 1, 2, 3, 4, 5].map((head) => b.statusOf(head))).toEqual([
      OK,
      OK,
      OK,
      OK,
      UNSUPP,
      IOERR,
    ]);
    expect(b.device.asked.map(({ op }) => op)).toEqual([READ, WRITE, FLUSH]);
  });
});

test('a read that fails has written its status and nothing else', () => {
  run(function* (b) {
    b.offer(0, IN, 0, 2048);
    yield;
    b.device.finish(0, EIO);
    yield;
    expect(b.take()).toEqual([{ head: 0, length: 1 }]);
    expect(b.statusOf(0)).toBe(IOERR);
  });
});

test('a chain without a status is given back with length 0 and an interrupt', () => {
  run(function* (b) {
    yield;
    expect(b.interrupted).toBe(1);
    b.prepare(3, IN, 0, 512);
    b.guest.driver.writeDescriptor(3, b.dataOf(3), 64, 0, 0);
    b.guest.driver.add(3);
    b.guest.driver.publish();
    b.guest.driver.armInterrupt();
    yield;
    expect(b.interrupted).toBe(1);
    expect(b.take()).toEqual([{ head: 3, length: 0 }]);
    // The queue goes on.
    b.offer(3, GET_ID, 0, 20);
    yield;
    expect(b.take()).toEqual([{ head: 3, length: 21 }]);
    expect(b.logged).toEqual([]);
  });
});

test('what the guest changes while a request is in flight changes nothing of its answer', () => {
  run(function* (b) {
    b.offer(2, IN, 3, 1024);
    yield;
    const [asked] = b.device.asked;
    // The descriptor, the table, the header: all point elsewhere now.
    b.prepare(2, OUT, 2000, 512);
    b.guest.driver.writeDescriptor(2, 0, 0xffff_ffff, 7, 0xffff);
    b.device.finish(0);
    yield;
    expect(asked).toMatchObject({ op: READ, offset: 3 * 512, length: 1024 });
    expect(b.take()).toEqual([{ head: 2, length: 1025 }]);
    expect(b.statusOf(2)).toBe(OK);
  });
});

test('a head made available twice breaks the ring; the first of the two is still answered at the end', () => {
  run(function* (b) {
    b.offer(1, IN, 0, 512);
    yield;
    b.offer(1, IN, 0, 512);
    yield;
    expect(b.logged).toEqual(['the queue is stopped: descriptor 1 is made available twice']);
    expect(b.errorSignalled).toBe(true);
    b.stop();
    yield;
    expect(b.answer).toBe(null);
    b.device.finish(0);
    yield;
    expect(b.answer).toBe(2);
    expect(b.take()).toEqual([{ head: 1, length: 513 }]);
  });
});

test('a broken ring is left alone until it is started anew', () => {
  run(function* (b) {
    yield;
    b.guest.driver.available[1] = 1000;
    yield;
    expect(b.logged.length).toBe(1);
    expect(b.logged[0]).toContain('the available index 1000 is 1000 ahead');
    expect(b.errorSignalled).toBe(true);
    // It is not looked at again, whatever is in it.
    b.guest.driver.available[1] = 0;
    b.offer(0, GET_ID, 0, 20);
    yield;
    expect(b.take()).toEqual([]);
    b.stop();
    yield;
    expect(b.answer).toBe(0);
    b.start();
    yield;
    expect(b.take()).toEqual([{ head: 0, length: 21 }]);
    expect(b.logged.length).toBe(1);
    expect(b.errorSignalled).toBe(false);
  });
});

test('a head outside the table breaks the ring, and what came before is answered', () => {
  run(function* (b) {
    b.prepare(0, GET_ID, 0, 20);
    b.guest.driver.add(0);
    b.guest.driver.add(999);
    b.guest.driver.publish();
    yield;
    expect(b.logged[0]).toContain('names descriptor 999');
    b.stop();
    yield;
    expect(b.take()).toEqual([{ head: 0, length: 21 }]);
  });
});

test('a request of several ranges is answered once, after the last; the first failure ends it', () => {
  run(function* (b) {
    const list = (head: number, ...ranges: [number, number][]) => {
      b.prepare(head, 1, 0, ranges.length * 16);
      b.guest.header(b.dataOf(head) - 0x200, head === 0 ? 13 : 11, 0);
      const view = b.guest.memory.view(b.dataOf(head), ranges.length * 16);
      ranges.forEach(([sector, sectors], i) => {
        view.setBigUint64(i * 16, BigInt(sector), true);
        view.setUint32(i * 16 + 8, sectors, true);
        view.setUint32(i * 16 + 12, 0, true);
      });
      b.guest.driver.add(head);
      b.guest.driver.publish();
    };
    list(0, [0, 8], [16, 8], [32, 8]);
    yield;
    // What it points to may change after it was read.
    b.guest.memory.at(b.dataOf(0), 48).fill(0xff);
    for (let i = 0; i < 3; i++) {
      expect(b.take()).toEqual([]);
      b.device.finish(0);
      yield;
    }
    expect(b.take()).toEqual([{ head: 0, length: 1 }]);
    expect(b.device.asked.map(({ op, offset, length }) => [op, offset, length])).toEqual([
      [WRITE_ZEROES, 0, 4096],
      [WRITE_ZEROES, 16 * 512, 4096],
      [WRITE_ZEROES, 32 * 512, 4096],
    ]);
    list(1, [0, 8], [16, 8]);
    yield;
    b.device.finish(0, EIO);
    yield;
    expect(b.take()).toEqual([{ head: 1, length: 1 }]);
    expect(b.statusOf(1)).toBe(IOERR);
    expect(b.device.asked.slice(3).map(({ op }) => op)).toEqual([DISCARD]);
  });
});

test('without write-back every write is durable before it is answered', () => {
  run(function* (b) {
    b.offer(0, OUT);
    yield;
    b.shared.writeback = false;
    b.offer(1, OUT);
    b.offer(2, IN);
    yield;
    b.shared.writeback = true;
    b.offer(3, OUT);
    yield;
    const durable = b.device.asked.filter(({ op }) => op === WRITE).map((asked) => asked.durable);
    expect(durable).toEqual([false, true, false]);
  });
});

test('of a full ring no more is taken, and the queue sleeps until a completion', () => {
  run(
    function* (b) {
      for (let head = 0; head < 4; head++) b.offer(head);
      yield;
      expect(b.device.open.length).toBe(4);
      // No driver may say that there is more; spinning on it would burn a processor.
      b.guest.driver.add(0);
      b.guest.driver.publish();
      yield;
      expect(b.device.open.length).toBe(4);
      b.device.finish(0);
      yield;
      expect(b.device.open.length).toBe(4);
      expect(b.take().map(({ head }) => head)).toEqual([0]);
      expect(b.logged).toEqual([]);
    },
    { size: 4 },
  );
});

test('a spin that others had to wait for is the last for a while', () => {
  let now = 1000;
  const clock = spyOn(performance, 'now').mockImplementation(() => now);
  try {
    run(
      function* (b) {
        expect(b.spins).toBe(1);
        b.offer(0, GET_ID, 0, 20);
        yield;
        expect(b.spins).toBe(2);
        b.spinResult = SPIN_CROWDED;
        b.offer(1, GET_ID, 0, 20);
        yield;
        expect(b.spins).toBe(3);
        b.offer(2, GET_ID, 0, 20);
        yield;
        expect(b.spins).toBe(3);
        now += 1000;
        b.offer(3, GET_ID, 0, 20);
        yield;
        expect(b.spins).toBe(4);
        expect(b.take().length).toBe(4);
      },
      { pollTimeoutUs: 50 },
    );
  } finally {
    clock.mockRestore();
  }
});

test('a stop waits for what is in flight and says where the ring goes on', () => {
  run(function* (b) {
    b.offer(0);
    b.offer(1);
    yield;
    b.stop();
    yield;
    b.offer(2);
    expect(b.answer).toBe(null);
    b.device.finish(1);
    yield;
    expect(b.answer).toBe(null);
    b.device.finish(0);
    yield;
    expect(b.answer).toBe(2);
    expect(b.take().map(({ head }) => head)).toEqual([1, 0]);
    b.start({ nextAvailable: 2 });
    yield;
    expect(b.device.asked.length).toBe(3);
    b.device.finish(0);
    yield;
    expect(b.take().map(({ head }) => head)).toEqual([2]);
  });
});

/** A device whose requests all wait for another thread, and can be given up. */
function waitingDevice(b: QueueBench): void {
  const { device } = b;
  const giveUp = (end: (request: BlockRequest) => void) => () => {
    for (const request of device.open.splice(0)) end(request);
  };
  Object.assign(device, {
    abandon: giveUp((request) => request.owner.abandoned?.(request)),
    failWaiting: giveUp((request) => {
      request.result = EIO;
      request.owner.completed(request);
    }),
  });
}

const { FINISH, LEAVE, RECORD, FAIL } = Waiting;

test.each([
  ['left to its record', true, RECORD, undefined],
  ['left to its record, however long that took', true, RECORD | FAIL, undefined],
  ['left when the frontend has gone', true, FINISH, LEAVE],
  ['left when the frontend goes, without a record', false, FINISH, LEAVE],
  ['left by a frontend that is gone', false, LEAVE, undefined],
])('what waits at a stop is %s', (_, inflight, waiting, later) => {
  run(
    function* (b) {
      waitingDevice(b);
      b.offer(0);
      yield;
      b.stop(waiting);
      yield;
      if (later !== undefined) {
        expect(b.answer).toBe(null);
        b.hurry(later);
        yield;
      }
      expect(b.answer).toBe(1);
      expect(b.take()).toEqual([]);
      expect(b.statusOf(0)).toBe(0xf8);
      if (!inflight) return;
      b.start();
      yield;
      expect(b.device.asked.length).toBe(2);
      b.device.finish(0);
      yield;
      expect(b.take().map(({ head }) => head)).toEqual([0]);
      expect(b.statusOf(0)).toBe(OK);
    },
    { inflight },
  );
});

test.each([
  ['its ring is taken back', true, FINISH],
  ['there is no record', false, RECORD],
])(
  'what waits at a stop is waited for, and fails when that takes too long: %s',
  (_, inflight, waiting) => {
    run(
      function* (b) {
        waitingDevice(b);
        b.offer(0);
        b.offer(1);
        yield;
        b.stop(waiting);
        yield;
        b.device.finish(1);
        yield;
        expect(b.answer).toBe(null);
        b.hurry(waiting | FAIL);
        yield;
        expect(b.answer).toBe(2);
        expect(b.take().map(({ head }) => head)).toEqual([1, 0]);
        expect([0, 1].map((head) => b.statusOf(head))).toEqual([IOERR, OK]);
      },
      { inflight },
    );
  },
);

test('what other threads have told is taken in before a sleep, whenever the wake-up was seen', () => {
  run(
    function* (b) {
      // The thread is told something at any time, the wake-up comes right after.
      b.onProgress = () => b.told++;
      b.offer(0);
      yield;
      expect(b.told).toBeGreaterThan(0);
      expect(b.received).toBe(b.told);
      b.stop();
      yield;
      expect(b.answer).toBe(null);
      expect(b.received).toBe(b.told);
      b.device.finish(0);
      yield;
      expect(b.answer).toBe(1);
    },
    { listens: true },
  );
});

test('an error of our own stops the ring, never its stop; what was open is answered by the next', () => {
  run(
    function* (b) {
      b.offer(0);
      yield;
      let resets = 0;
      Object.assign(b.device, { reset: () => resets++ });
      b.device.throwNext = true;
      b.offer(1);
      yield;
      expect(b.logged.join()).toContain('internal error: made to fail');
      b.stop();
      yield;
      expect(b.answer).toBe(null);
      b.device.finish(0);
      yield;
      expect(b.answer).toBe(2);
      expect(resets).toBe(0);
      b.start({ nextAvailable: 2 });
      yield;
      expect(resets).toBe(1);
      expect(b.device.open.length).toBe(1);
      b.device.finish(0);
      yield;
      expect(b.take().map(({ head }) => head)).toEqual([0, 1]);
    },
    { inflight: true },
  );
});

test('the board shows the requests that are with the disk, and nothing else', () => {
  run(function* (b) {
    b.offer(3, IN, 8, 2048);
    b.offer(1, OUT, 3, 512);
    b.offer(2, GET_ID, 0, 32);
    b.offer(4, 4, 0, 0);
    b.offer(0, IN, 1 << 30, 512);
    yield;
    expect(b.board.list()).toEqual([['write', 3, 1], ['read', 8, 4], ['flush']]);
    b.device.finish(0, EIO);
    yield;
    expect(b.board.list()).toEqual([['write', 3, 1], ['flush']]);
    // A ring that stops waits for its requests, which are shown until then.
    b.stop();
    yield;
    expect(b.board.list().length).toBe(2);
    while (b.device.open.length > 0) b.device.finish(0);
    yield;
    expect(b.board.list()).toEqual([]);
  });
});

test('of a request of several ranges the board shows the one in hand', () => {
  run(function* (b) {
    b.prepare(0, OUT, 0, 32);
    b.guest.header(b.dataOf(0) - 0x200, 13, 0);
    const ranges = b.guest.memory.view(b.dataOf(0), 32);
    [0, 8, 16, 24].forEach((value, i) => {
      ranges.setUint32([0, 8, 16, 24][i], value, true);
    });
    for (const at of [4, 12, 20, 28]) ranges.setUint32(at, 0, true);
    b.guest.driver.add(0);
    b.guest.driver.publish();
    yield;
    expect(b.board.list()).toEqual([['write_zeroes', 0, 8]]);
    b.device.finish(0);
    yield;
    expect(b.board.list()).toEqual([['write_zeroes', 16, 24]]);
    b.device.finish(0);
    yield;
    const zeroed = b.board.counters.of(WRITE_ZEROES);
    expect(zeroed).toMatchObject({ ops: 1, bytes: 32 * 512, errors: 0 });
    expect(zeroed.latency.count).toBe(1);
  });
});

test('requests are counted and timed; what is refused, and what is no I/O, is not', () => {
  run(
    function* (b) {
      const from = shim.ubiblk_clock_ns();
      b.offer(3, IN, 8, 2048);
      b.offer(1, OUT, 3, 512);
      b.offer(2, GET_ID, 0, 32);
      b.offer(4, 4, 0, 0);
      b.offer(0, IN, 1 << 30, 512);
      yield;
      const { counters } = b.board;
      expect(counters.refusedRequests).toBe(1);
      expect(counters.of(READ)).toMatchObject({ ops: 1, bytes: 2048, errors: 0 });
      expect(counters.of(READ).latency.count).toBe(0);
      b.device.finish(0, EIO);
      while (b.device.open.length > 0) b.device.finish(0);
      yield;
      const tookNs = shim.ubiblk_clock_ns() - from;
      for (const [op, ops, bytes, errors] of [
        [READ, 1, 2048, 1],
        [WRITE, 1, 512, 0],
        [FLUSH, 1, 0, 0],
      ]) {
        const counted = counters.of(op);
        expect(counted).toMatchObject({ ops, bytes, errors });
        expect(counted.latency.count).toBe(ops);
        expect(counted.latency.sumNs).toBeGreaterThan(0);
        expect(counted.latency.sumNs).toBeLessThanOrEqual(tookNs);
      }
    },
    { inflight: true },
  );
});

test('a ring that starts again long after its last answer takes requests at their own time', () => {
  run(function* (b) {
    b.offer(0, IN);
    yield;
    // The answer is the last that this ring does.
    b.device.finish(0);
    b.stop();
    yield;
    expect(b.answer).toBe(1);
    Bun.sleepSync(20);
    const fromNs = shim.ubiblk_clock_ns();
    b.start({ nextAvailable: 1 });
    b.offer(1, OUT);
    yield;
    b.device.finish(0);
    yield;
    const { count, sumNs } = b.board.counters.of(WRITE).latency;
    expect(count).toBe(1);
    expect(sumNs).toBeLessThanOrEqual(shim.ubiblk_clock_ns() - fromNs);
  });
});
