/** Many changes at once, and metadata that fails. The simulation has everything else. */
import { beforeEach, expect, test } from 'bun:test';
import { defaultJournalOptions, Journal } from '../../src/stripe/journal.ts';
import { MetadataLayout } from '../../src/stripe/metadata_layout.ts';
import { FETCHED } from '../../src/stripe/shared_state.ts';

const STRIPES = 1_500_000;

let published: number;
/** The most that were published in one turn of the event loop. */
let mostInTurn: number;
let headers: Uint8Array;
let journal: Journal;

beforeEach(() => {
  [published, mostInTurn] = [0, 0];
  headers = new Uint8Array(STRIPES);
  const nothing = () => {};
  journal = new Journal(
    new MetadataLayout(1, 6, STRIPES),
    headers,
    { unitBytes: 4096, write: async () => {}, sync: async () => {} },
    { sync: async () => {} },
    {
      now: () => performance.now(),
      sleep: (ms) => new Promise((wake) => (ms > 0 ? setTimeout(wake, ms) : setImmediate(wake))),
    },
    {
      published: () => published++,
      dataLost: nothing,
      dataFailed: nothing,
      metadataFailed: nothing,
      unrecorded: nothing,
    },
    defaultJournalOptions,
  );
});

test('a change for each stripe of a large disk is recorded, a few in each turn of the event loop', async () => {
  for (let stripe = 0; stripe < STRIPES; stripe++)
    journal.add({ stripe, bits: FETCHED, afterData: true }, false);
  let done = false;
  journal.end().then(() => {
    done = true;
  });
  while (!done) {
    const before = published;
    await new Promise((wake) => setImmediate(wake));
    mostInTurn = Math.max(mostInTurn, published - before);
  }
  expect(published).toBe(STRIPES);
  expect(headers.every((header) => header === FETCHED)).toBe(true);
  expect(mostInTurn).toBeLessThan(1000);
});
