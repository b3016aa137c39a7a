/** Queues answer the question whether they live, whatever they wait in. */
import { expect, test } from 'bun:test';
import { openLibrary, shim } from '../../ffi/library.ts';
import { OP_READ, Ring } from '../../ffi/ring.ts';
import { SyncEngine } from '../../src/device/sync_engine.ts';
import { Heartbeat, Pulse } from '../../src/frontend/heartbeat.ts';
import { EpollWaiter, RingWaiter } from '../../src/frontend/waiter.ts';

openLibrary();

function twoQueues() {
  const wakeFds = [shim.ubiblk_eventfd(), shim.ubiblk_eventfd()];
  const heartbeat = new Heartbeat(wakeFds);
  const pulses = wakeFds.map((_, queue) => new Pulse(heartbeat.shared, queue));
  return { wakeFds, heartbeat, pulses };
}

test('who has not answered what was asked last is silent', () => {
  const { heartbeat, pulses } = twoQueues();
  expect(heartbeat.silent).toEqual([]);
  heartbeat.ask();
  expect(heartbeat.silent).toEqual([0, 1]);
  pulses[1].answer();
  expect(heartbeat.silent).toEqual([0]);
  pulses[0].answer();
  expect(heartbeat.silent).toEqual([]);
  heartbeat.ask();
  expect(heartbeat.silent).toEqual([0, 1]);
});

test('who sleeps is woken, and who only works answers, too', () => {
  const { wakeFds, heartbeat, pulses } = twoQueues();
  const ring = new Ring(8, 16);
  const waiters = [
    new RingWaiter(ring, wakeFds[0], pulses[0]),
    new EpollWaiter(wakeFds[1], pulses[1]),
  ];
  for (const step of ['sleep', 'progress', 'progress'] as const) {
    heartbeat.ask();
    for (const waiter of waiters) waiter[step]();
    expect(heartbeat.silent).toEqual([]);
  }
  ring.close();
});

test('a batch of system calls answers between two of them', () => {
  const { heartbeat, pulses } = twoQueues();
  const engine = new SyncEngine([0], () => pulses[0].answer());
  const silentWithin: number[][] = [];
  const seen = { ringCompleted: () => silentWithin.push(heartbeat.silent) };
  const handler = engine.addHandler(seen);
  for (let call = 0; call < 2; call++) {
    heartbeat.ask();
    engine.transfer(OP_READ, 0, 0, 0, 0, 0, handler, 0);
  }
  engine.fdatasync(0, handler, 0);
  expect(silentWithin).toEqual([[1], [1], [1]]);
});
