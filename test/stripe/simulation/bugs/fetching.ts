/** Bugs in what is fetched when, and in what is written then. */
import { FETCHED, Want } from '../../../../src/stripe/shared_state.ts';
import { type Bug, replace } from '../bug.ts';
import { insideCoordinator } from './insides.ts';

export const fetchingBugs: Bug[] = [
  {
    name: 'a stripe is fetched again when it is local',
    coordinator(coordinator) {
      const inside = insideCoordinator(coordinator);
      replace(inside, 'published', (published) => (change) => {
        published(change);
        if (change.bits & FETCHED) inside.fetcher?.request(change.stripe);
      });
    },
  },
  {
    name: 'a stripe is claimed while it is being fetched',
    coordinator(coordinator) {
      const inside = insideCoordinator(coordinator);
      replace(inside, 'join', (join) => (stripe, work, asker) => {
        const alone = work.phase === 'fetch' && work.askers.length === 0;
        if (alone && asker.want === Want.CLAIM) inside.claim(stripe, work, asker);
        else join(stripe, work, asker);
      });
    },
  },
  {
    name: 'a stripe is fetched while it is claimed',
    coordinator(coordinator) {
      const inside = insideCoordinator(coordinator);
      replace(inside, 'join', (join) => (stripe, work, asker) => {
        join(stripe, work, asker);
        if (work.phase === 'claimed') inside.fetcher?.request(stripe);
      });
    },
  },
  {
    name: 'a stripe is claimed by two requests at once',
    coordinator(coordinator) {
      const inside = insideCoordinator(coordinator);
      replace(inside, 'join', (join) => (stripe, work, asker) => {
        if (work.phase !== 'claimed' || asker.want !== Want.CLAIM) join(stripe, work, asker);
        else inside.claim(stripe, work, asker);
      });
    },
  },
  {
    name: 'a claim is granted past those who wait for the stripe',
    coordinator(coordinator) {
      const inside = insideCoordinator(coordinator);
      const { fetcher } = inside;
      if (!fetcher) return;
      replace(inside, 'join', (join) => (stripe, work, asker) => {
        const late = asker.want === Want.CLAIM && work.phase === 'fetch';
        if (!late || fetcher.running.has(stripe)) {
          join(stripe, work, asker);
          return;
        }
        fetcher.awaited.delete(stripe);
        fetcher.retries.delete(stripe);
        inside.claim(stripe, work, asker);
      });
    },
  },
  {
    name: 'the last, partial stripe keeps what its buffer held',
    parts(parts) {
      const { source, layout } = parts;
      if (!source) return;
      replace(source, 'read', (read) => async (stripe, buffer, signal) => {
        const own = Math.max(source.sizeBytes - stripe * layout.stripeBytes, 0);
        const stale = buffer.bytes.slice(own);
        const data = await read(stripe, buffer, signal);
        if (data) buffer.bytes.set(stale, Math.min(own, buffer.bytes.length));
        return data;
      });
    },
  },
  {
    name: 'the last stripe is written beyond the end of the disk',
    coordinator(coordinator) {
      const { fetcher } = insideCoordinator(coordinator);
      if (fetcher) fetcher.options = { ...fetcher.options, diskBytes: Number.MAX_SAFE_INTEGER };
    },
  },
  {
    name: 'stripes that are all zeroes are left as the disk is',
    parts({ target }) {
      target.zero = async () => {};
    },
  },
  {
    name: 'a stripe that could not be fetched is never tried again',
    coordinator(coordinator) {
      const { fetcher } = insideCoordinator(coordinator);
      if (fetcher) fetcher.retryOrForget = () => {};
    },
  },
  {
    name: 'autofetch does not come back to a stripe that could not be fetched',
    coordinator(coordinator) {
      insideCoordinator(coordinator).idle.leave = () => {};
    },
  },
  {
    name: 'autofetch goes on while nothing succeeds',
    coordinator(coordinator) {
      const { fetcher } = insideCoordinator(coordinator);
      if (fetcher) fetcher.noteFailure = () => {};
    },
  },
  {
    name: 'autofetch does not wait until something is recorded',
    coordinator(coordinator) {
      const { fetcher } = insideCoordinator(coordinator);
      if (fetcher) fetcher.options = { ...fetcher.options, mostUnrecorded: 1_000_000 };
    },
  },
  {
    name: 'what is wished for is fetched as if somebody waited for it',
    coordinator(coordinator) {
      const { fetcher, work } = insideCoordinator(coordinator);
      if (!fetcher) return;
      fetcher.wish = (stripe) => {
        const begun = { phase: 'fetch', askers: [], holder: null, wished: true };
        if (!work.has(stripe)) work.set(stripe, begun);
        fetcher.request(stripe);
      };
    },
  },
  {
    name: 'a wish is forgotten when its stripe could not be fetched',
    coordinator(coordinator) {
      const inside = insideCoordinator(coordinator);
      replace(inside, 'leave', (leave) => (stripe, work) => {
        work.wished = false;
        leave(stripe, work);
      });
    },
  },
  {
    name: 'stripes of zeroes come one after the other, and nobody else has a turn',
    parts(parts) {
      const { clock } = parts;
      const sleep = (ms: number, signal?: AbortSignal) =>
        ms > 0 ? clock.sleep(ms, signal) : Promise.resolve();
      parts.clock = { now: () => clock.now(), sleep };
    },
  },
  {
    name: 'autofetch does not come back to a stripe whose claim failed',
    coordinator(coordinator) {
      const inside = insideCoordinator(coordinator);
      const { idle } = inside;
      const { leave } = idle;
      replace(inside, 'claimFailed', (claimFailed) => (stripe, work, waiting) => {
        idle.leave = () => {};
        claimFailed(stripe, work, waiting);
        idle.leave = leave;
      });
    },
  },
  {
    name: 'autofetch is on where it is to be off',
    coordinator(coordinator) {
      const { fetcher } = insideCoordinator(coordinator);
      if (fetcher) fetcher.autofetch = true;
    },
  },
  {
    name: 'autofetch takes the last buffer',
    coordinator(coordinator) {
      const { fetcher } = insideCoordinator(coordinator);
      if (fetcher) fetcher.buffers = 1;
    },
  },
  {
    name: 'autofetch keeps to no rate',
    coordinator(coordinator) {
      const { fetcher } = insideCoordinator(coordinator);
      if (fetcher) fetcher.options = { ...fetcher.options, autofetchBytesPerSecond: 0 };
    },
  },
  {
    name: 'the source stays open when all is local',
    coordinator(coordinator) {
      insideCoordinator(coordinator).closeSourceIfDone = () => {};
    },
  },
  {
    name: 'the disk is called quiet when some of it is missing',
    coordinator(coordinator) {
      const { parts } = insideCoordinator(coordinator);
      replace(insideCoordinator(coordinator), 'published', (published) => (change) => {
        published(change);
        parts.shared.quiet = true;
      });
    },
  },
];
