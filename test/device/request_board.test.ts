/** What a queue thread shows of its requests in flight, and what the main thread reads of it. */
import { expect, test } from 'bun:test';
import {
  type BlockOp,
  BlockRequest,
  DISCARD,
  FLUSH,
  READ,
  WRITE,
  WRITE_ZEROES,
} from '../../src/device/request.ts';
import { QueueBoard, RequestBoard } from '../../src/device/request_board.ts';

const SECTOR = 512;

function request(op: BlockOp, firstSector: number, sectors: number): BlockRequest {
  const made = new BlockRequest(0, { completed: () => {} }, undefined as never);
  made.op = op;
  made.offset = firstSector * SECTOR;
  made.length = sectors * SECTOR;
  return made;
}

/** A board as main has it, and what its queue threads make of the same memory. */
function boards(queues: number, places: number) {
  const board = new RequestBoard(queues, places);
  const threads = Array.from(
    { length: queues },
    (_, queue) => new QueueBoard(board.shared, queue, places),
  );
  for (const thread of threads) thread.reset(places);
  return { board, threads };
}

test('every kind of request, by place and not by time; a flush has no range', () => {
  const { board, threads } = boards(1, 8);
  threads[0].begin(7, request(WRITE, 0, 16), 0);
  threads[0].begin(0, request(READ, 2048, 8), 0);
  // A flush leaves the range of the request before it alone.
  threads[0].begin(3, request(FLUSH, 77, 5), 0);
  threads[0].begin(4, request(DISCARD, 1, 2), 0);
  threads[0].begin(5, request(WRITE_ZEROES, 3, 4), 0);
  expect(board.list()).toEqual([
    [['read', 2048, 8], ['flush'], ['discard', 1, 2], ['write_zeroes', 3, 4], ['write', 0, 16]],
  ]);
});

test('queues have places of their own, up to the last one', () => {
  const { board, threads } = boards(3, 4);
  threads[0].begin(3, request(READ, 1, 1), 0);
  threads[2].begin(0, request(WRITE, 2, 2), 0);
  expect(board.list()).toEqual([[['read', 1, 1]], [], [['write', 2, 2]]]);
  threads[0].drop(3);
  expect(board.list()).toEqual([[], [], [['write', 2, 2]]]);
});

test('the largest disk and the largest request there can be are shown exactly', () => {
  const { board, threads } = boards(1, 1);
  for (const op of [READ, WRITE_ZEROES] as const) {
    threads[0].begin(0, request(op, 2 ** 44 - 1, 2 ** 33), 0);
    expect(board.list()[0][0].slice(1)).toEqual([2 ** 44 - 1, 2 ** 33]);
  }
});

test('a ring that stops leaves nothing behind, and a smaller one shows its places alone', () => {
  const { board, threads } = boards(1, 16);
  threads[0].begin(15, request(READ, 1, 1), 0);
  threads[0].reset(0);
  expect(board.list()).toEqual([[]]);
  threads[0].reset(4);
  threads[0].begin(3, request(READ, 9, 1), 0);
  expect(board.list()).toEqual([[['read', 9, 1]]]);
});

test('places that are not there are shown by nobody, and hurt nobody', () => {
  const { board, threads } = boards(2, 4);
  threads[0].reset(400);
  threads[0].begin(4, request(READ, 1, 1), 0);
  threads[0].drop(399);
  expect(board.list()).toEqual([[], []]);
});

test('requests are counted when they are taken, and timed when they are answered', () => {
  const { board, threads } = boards(2, 4);
  const [queue, other] = threads;
  const read = request(READ, 0, 8);
  const zeroes = request(WRITE_ZEROES, 0, 8);
  queue.begin(0, read, 1000);
  queue.begin(1, zeroes, 1000);
  zeroes.length = 16 * SECTOR;
  queue.goOn(1, zeroes);
  queue.begin(2, request(FLUSH, 3, 9), 1000);
  expect(board.queues[0].inFlight(6000)).toEqual({ count: 3, oldestNs: 5000 });
  const { counters } = board.queues[0];
  expect(counters.of(READ)).toMatchObject({ ops: 1, bytes: 8 * SECTOR, errors: 0 });
  expect(counters.of(WRITE_ZEROES)).toMatchObject({ ops: 1, bytes: 24 * SECTOR });
  expect(counters.of(FLUSH)).toMatchObject({ ops: 1, bytes: 0 });
  expect(counters.of(READ).latency.count).toBe(0);
  read.result = -5;
  queue.end(0, read, 3000);
  // What was never shown, or was given back, has no end.
  queue.end(0, read, 4000);
  queue.drop(1);
  queue.end(1, zeroes, 4000);
  expect(counters.of(READ)).toMatchObject({ ops: 1, errors: 1 });
  expect(counters.of(READ).latency.sumNs).toBe(2000);
  expect(counters.of(WRITE_ZEROES).latency.count).toBe(0);
  other.counters.refused();
  expect(counters.refusedRequests).toBe(0);
  expect(board.queues[1].counters.refusedRequests).toBe(1);
  // The ring's stop takes requests off, and leaves what was counted.
  queue.reset(4);
  expect(board.queues[0].inFlight(6000)).toEqual({ count: 0, oldestNs: 0 });
  expect(counters.of(READ).ops).toBe(1);
});
