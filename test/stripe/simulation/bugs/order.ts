/** Bugs in the order of data, bits, and what guests see; and in what becomes of failures. */
import type { Change } from '../../../../src/stripe/journal.ts';
import { FETCHED, WRITTEN } from '../../../../src/stripe/shared_state.ts';
import { type Bug, replace } from '../bug.ts';
import { insideCoordinator } from './insides.ts';

const ignoreFailure = (work: () => Promise<void>) => () => work().catch(() => {});

export const orderBugs: Bug[] = [
  {
    name: 'bits are recorded before the data is written',
    parts({ target }) {
      replace(target, 'write', (write) => async (offset, data) => {
        write(offset, data).catch(() => {});
      });
    },
  },
  {
    name: 'the data is not synced',
    parts({ target }) {
      target.sync = async () => {};
    },
  },
  {
    name: 'the metadata is not synced',
    parts({ store }) {
      store.sync = async () => {};
    },
  },
  {
    name: 'a failed sync of the data counts as done',
    parts({ target }) {
      replace(target, 'sync', ignoreFailure);
    },
  },
  {
    name: 'a failed write of the metadata counts as done',
    parts({ store }) {
      replace(store, 'write', (write) => (offset, data) => write(offset, data).catch(() => {}));
    },
  },
  {
    name: 'a failed sync of the metadata counts as done',
    parts({ store }) {
      replace(store, 'sync', ignoreFailure);
    },
  },
  {
    name: 'what a failed sync of the metadata was for is not written again',
    coordinator(coordinator) {
      const { journal } = insideCoordinator(coordinator);
      replace(journal, 'failed', (failed) => (error) => {
        journal.dirty.clear();
        return failed(error);
      });
    },
  },
  {
    name: 'data that was written while a sync failed is believed',
    coordinator(coordinator) {
      const inside = insideCoordinator(coordinator);
      const { journal, parts } = inside;
      let kept: Change[] = [];
      replace(
        parts.target,
        'sync',
        (sync) => () =>
          sync().catch((error) => {
            kept = journal.pending;
            journal.pending = [];
            throw error;
          }),
      );
      replace(inside, 'dataLost', (dataLost) => (error, changes) => {
        dataLost(error, changes);
        journal.pending.unshift(...kept);
      });
    },
  },
  {
    name: 'a fetch that is under way while a sync fails is believed',
    coordinator(coordinator) {
      const { fetcher } = insideCoordinator(coordinator);
      if (fetcher) fetcher.doubtRunning = () => {};
    },
  },
  {
    name: 'a claim that is under way while a sync fails is believed',
    coordinator(coordinator) {
      const inside = insideCoordinator(coordinator);
      inside.dataLost = () => inside.fetcher?.doubtRunning();
    },
  },
  {
    name: 'main is not told of lost writes that a queue was told of',
    parts({ target }, { opening }) {
      Object.assign(target, { opening });
    },
  },
  { name: 'the metadata is believed as it is in the cache', trustsCache: true },
  {
    name: 'a stripe is shown before its bits are durable',
    coordinator(coordinator) {
      const inside = insideCoordinator(coordinator);
      replace(inside, 'commit', (commit) => (stripe, work) => {
        commit(stripe, work);
        Atomics.or(inside.states, stripe, FETCHED);
      });
    },
  },
  {
    name: 'a claim is answered before its bits are durable',
    coordinator(coordinator) {
      const inside = insideCoordinator(coordinator);
      replace(inside, 'claimDone', (claimDone) => (stripe, ok) => {
        const work = inside.work.get(stripe);
        const holder = work?.holder;
        claimDone(stripe, ok);
        if (!ok || !work || !holder || work.phase !== 'commit') return;
        work.holder = null;
        inside.answer(stripe, holder, 0);
      });
    },
  },
  {
    name: 'a claimed stripe is recorded as fetched, and as written only then',
    coordinator(coordinator) {
      const { journal } = insideCoordinator(coordinator);
      replace(journal, 'add', (add) => (change, urgent) => {
        add({ ...change, bits: change.afterData ? FETCHED : WRITTEN }, urgent);
      });
    },
  },
  {
    name: 'a stripe that is read is recorded as written to',
    coordinator(coordinator) {
      const { journal } = insideCoordinator(coordinator);
      replace(journal, 'add', (add) => (change, urgent) => {
        add({ ...change, bits: change.bits | WRITTEN }, urgent);
      });
    },
  },
  {
    name: 'sectors of the metadata keep the CRC that they had',
    parts(parts) {
      const { layout, store, headers } = parts;
      if (layout.version === 1) return;
      const before = new Uint8Array(8192);
      layout.encode(headers, 0, before);
      replace(store, 'write', (write) => (offset, data) => {
        for (let at = 508; at < data.length; at += 512) {
          data.set(before.subarray(offset + at, offset + at + 4), at);
        }
        return write(offset, data);
      });
    },
  },
];
