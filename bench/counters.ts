/** What counters and histograms cost a queue's thread, of the processor time that a request takes. */

import { openLibrary, shim } from '../ffi/library.ts';
import { IovecTable } from '../ffi/ring.ts';
import { BlockRequest, READ } from '../src/device/request.ts';
import { RequestBoard } from '../src/device/request_board.ts';
import type { Figure } from './lazy.ts';
import { measure, median } from './measure.ts';
import type { Row } from './rows.ts';
import { type Served, startOurs, stop } from './servers.ts';

const DEPTH = 32;
const MEASURED_NS = 2e8;
/** Requests of a turn, and looks at the clock: of a driver with one request, and of one with many. */
const ALONE = [1, 2] as const;
const MANY = [16, 1] as const;

/**
 * Nanoseconds a request of all that is done to count and time it.
 * @param batch requests that one turn of the queue's loop takes, and answers
 * @param looks at the clock in a turn
 */
function countingNs(batch: number, looks: number): number {
  const [board] = new RequestBoard(1, DEPTH).queues;
  board.reset(DEPTH);
  const request = new BlockRequest(0, { completed: () => {} }, new IovecTable(1));
  Object.assign(request, { op: READ, length: 4096 });
  const fromNs = shim.ubiblk_clock_ns();
  let endNs = fromNs;
  let turns = 0;
  while (endNs - fromNs < MEASURED_NS) {
    const nowNs = looks > 1 ? shim.ubiblk_clock_ns() : endNs;
    for (let place = 0; place < batch; place++) {
      request.offset = place * 4096;
      board.begin(place, request, nowNs);
    }
    endNs = shim.ubiblk_clock_ns();
    for (let place = 0; place < batch; place++) board.end(place, request, endNs);
    turns++;
  }
  return (endNs - fromNs) / (turns * batch);
}

/**
 * @param rows of random reads from the page cache, of one request at a time and of many
 * @param served what is read
 */
export async function counterFigures(
  rows: readonly Row[],
  served: Served,
  runs: number,
  seconds: number,
): Promise<Figure[]> {
  openLibrary();
  // Code is compiled, and the clock settles on its way of counting.
  for (const [batch, looks] of [ALONE, MANY, ALONE, MANY]) countingNs(batch, looks);
  const figures: Figure[] = [];
  for (const row of rows) {
    const server = await startOurs(served);
    await measure(server, row, 1);
    const request: number[] = [];
    const counting: number[] = [];
    const [batch, looks] = row.depth === 1 ? ALONE : MANY;
    for (let run = 0; run < runs; run++) {
      request.push((await measure(server, row, seconds)).cpuUs * 1000);
      counting.push(countingNs(batch, looks));
    }
    await stop(server);
    const [value, whole] = [median(counting), median(request)];
    figures.push({
      name: `counters ${row.name}`,
      value,
      unit: 'ns a request',
      against: `its ${Math.round(whole)} ns of CPU time`,
      ratio: value / whole,
      atMost: 0.01,
    });
  }
  return figures;
}
