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
  threads[0].show(7, request(WRITE, 0, 16));
  threads[0].show(0, request(READ, 2048, 8));
  // A flush leaves the range of the request before it alone.
  threads[0].show(3, request(FLUSH, 77, 5));
  threads[0].show(4, request(DISCARD, 1, 2));
  threads[0].show(5, request(WRITE_ZEROES, 3, 4));
  expect(board.list()).toEqual([
    [['read', 2048, 8], ['flush'], ['discard', 1, 2], ['write_zeroes', 3, 4], ['write', 0, 16]],
  ]);
});

test('queues have places of their own, up to the last one', () => {
  const { board, threads } = boards(3, 4);
  threads[0].show(3, request(READ, 1, 1));
  threads[2].show(0, request(WRITE, 2, 2));
  expect(board.list()).toEqual([[['read', 1, 1]], [], [['write', 2, 2]]]);
  threads[0].wipe(3);
  expect(board.list()).toEqual([[], [], [['write', 2, 2]]]);
});

test('the largest disk and the largest request there can be are shown exactly', () => {
  const { board, threads } = boards(1, 1);
  for (const op of [READ, WRITE_ZEROES] as const) {
    threads[0].show(0, request(op, 2 ** 44 - 1, 2 ** 33));
    expect(board.list()[0][0].slice(1)).toEqual([2 ** 44 - 1, 2 ** 33]);
  }
});

test('a ring that stops leaves nothing behind, and a smaller one shows its places alone', () => {
  const { board, threads } = boards(1, 16);
  threads[0].show(15, request(READ, 1, 1));
  threads[0].reset(0);
  expect(board.list()).toEqual([[]]);
  threads[0].reset(4);
  threads[0].show(3, request(READ, 9, 1));
  expect(board.list()).toEqual([[['read', 9, 1]]]);
});

test('places that are not there are shown by nobody, and hurt nobody', () => {
  const { board, threads } = boards(2, 4);
  threads[0].reset(400);
  threads[0].show(4, request(READ, 1, 1));
  threads[0].wipe(399);
  expect(board.list()).toEqual([[], []]);
});
