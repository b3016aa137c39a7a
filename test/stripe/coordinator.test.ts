/**
 * Who may overwrite a stripe while its source can't be read, and what many stripes at once cost. The
 * simulation has everything else.
 */
import { beforeEach, expect, test } from 'bun:test';
import { Coordinator } from '../../src/stripe/coordinator.ts';
import type { StripeBuffer } from '../../src/stripe/interfaces.ts';
import { MetadataLayout } from '../../src/stripe/metadata_layout.ts';
import {
  type Answer,
  CLAIMED,
  GRANTED,
  HAS_SOURCE,
  SharedStripes,
  sharedStripeBytes,
  Want,
} from '../../src/stripe/shared_state.ts';

const STRIPES = 1024;

/** Reads of the source that are under way, by stripe; each ends when a test says so. */
let reads: Map<number, PromiseWithResolvers<boolean>>;
let shared: SharedStripes;
let coordinator: Coordinator;
/** Queues that were woken, each time. */
let woken: number[];

beforeEach(() => {
  const layout = new MetadataLayout(1, 6, STRIPES);
  shared = new SharedStripes(new SharedArrayBuffer(sharedStripeBytes(STRIPES, 1)), STRIPES, 1);
  reads = new Map();
  woken = [];
  const options = {
    stripeBytes: layout.stripeBytes,
    diskBytes: STRIPES * layout.stripeBytes,
    trackWritten: false,
    autofetch: true,
    autofetchBytesPerSecond: 0,
  };
  const buffers: StripeBuffer[] = [0, 1].map(() => ({ address: 0, bytes: new Uint8Array(32768) }));
  coordinator = new Coordinator(options, {
    layout,
    headers: new Uint8Array(STRIPES).fill(HAS_SOURCE),
    shared,
    source: {
      description: 'a source',
      sizeBytes: options.diskBytes,
      has: () => true,
      read: (stripe) => {
        const read = Promise.withResolvers<boolean>();
        reads.set(stripe, read);
        return read.promise;
      },
      close: async () => {},
    },
    target: { write: async () => {}, zero: async () => {}, sync: async () => {} },
    store: { unitBytes: 512, write: async () => {}, sync: async () => {} },
    // No time passes: nothing is tried again.
    clock: { now: () => 0, sleep: (ms) => new Promise((go) => ms === 0 && setImmediate(go)) },
    buffers,
    wake: (queue) => woken.push(queue),
    log: { warn: () => {}, info: () => {} },
  });
  coordinator.start();
});

function ask(want: Want, first = 0, count = 1): void {
  coordinator.receive({ kind: 'ask', queue: 0, asks: [{ first, count, want }] });
}

function claimDone(first: number, count: number): void {
  coordinator.receive({ kind: 'claimDone', queue: 0, stripes: [{ first, count }], ok: true });
}

/** Whatever promises lead to has happened. @returns the answers since the last call */
async function answers(): Promise<[Want, number][]> {
  await new Promise((resolve) => setImmediate(resolve));
  const found: [Want, number][] = [];
  const answer: Answer = { stripe: 0, want: Want.LOCAL, result: 0 };
  while (shared.take(0, answer)) found.push([answer.want, answer.result]);
  return found;
}

const away = new Error('the source is away');

test('who would overwrite a stripe waits for a fetch under way, and for no other one', async () => {
  expect([...reads.keys()]).toEqual([0]);
  ask(Want.CLAIM);
  expect(await answers()).toEqual([]);
  reads.get(0)?.reject(away);
  expect(await answers()).toEqual([[Want.CLAIM, CLAIMED]]);
  expect(coordinator.status).toMatchObject({ failing: [], queued: 0, fetched: 0 });
  claimDone(0, 1);
  expect(await answers()).toEqual([[Want.CLAIM, GRANTED]]);
  expect(coordinator.status.fetched).toBe(1);
});

test('nor for a fetch that has failed', async () => {
  reads.get(0)?.reject(away);
  await answers();
  expect(coordinator.status).toMatchObject({ failing: [{ stripe: 0, attempts: 1 }], queued: 0 });
  ask(Want.CLAIM);
  expect(await answers()).toEqual([[Want.CLAIM, CLAIMED]]);
  expect(coordinator.status).toMatchObject({ failing: [], queued: 0 });
});

test('but for whoever has asked before', async () => {
  ask(Want.LOCAL);
  ask(Want.CLAIM);
  reads.get(0)?.reject(away);
  expect(await answers()).toEqual([]);
  expect(coordinator.status.failing).toMatchObject([{ stripe: 0 }]);
});

test('a stripe that was had meanwhile needs no claim', async () => {
  ask(Want.CLAIM);
  reads.get(0)?.resolve(true);
  expect(await answers()).toEqual([[Want.CLAIM, GRANTED]]);
});

test('a queue is woken once for all that it is told in one go', async () => {
  ask(Want.CLAIM, 100, 200);
  expect((await answers()).length).toBe(200);
  expect(woken).toEqual([0]);
  claimDone(100, 200);
  expect((await answers()).length).toBe(200);
  expect(woken).toEqual([0, 0]);
});

test('others get their turn while many stripes are published', async () => {
  ask(Want.CLAIM, 1, 1000);
  await answers();
  claimDone(1, 1000);
  const turns: number[] = [];
  for (let all = 0; all < 1000; all += turns.at(-1) as number) turns.push((await answers()).length);
  expect(Math.max(...turns)).toBeLessThanOrEqual(256);
});
