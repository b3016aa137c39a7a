/** Bugs in who is told what, and when. */
import { EIO } from '../../../../ffi/errno.ts';
import { type Bug, replace } from '../bug.ts';
import { insideCoordinator, insideLayer } from './insides.ts';

/** What happens now and then happens once in so many times. */
const NOW_AND_THEN = 10;

export const answerBugs: Bug[] = [
  {
    name: 'now and then, a queue is not woken for an answer',
    parts(parts, { world }) {
      replace(parts, 'wake', (wake) => (queue) => {
        if (!world.dice.chance(NOW_AND_THEN)) wake(queue);
      });
    },
  },
  {
    name: 'now and then, an answer is lost',
    parts({ shared }, { world }) {
      replace(shared, 'put', (put) => (queue, answer) => {
        return world.dice.chance(NOW_AND_THEN) || put(queue, answer);
      });
    },
  },
  {
    name: 'answers are lost when a queue has room for no more',
    coordinator(coordinator) {
      insideCoordinator(coordinator).delay = () => {};
    },
  },
  {
    name: 'nobody is told of metadata that fails for good',
    coordinator(coordinator) {
      insideCoordinator(coordinator).unrecorded = () => {};
    },
  },
  {
    name: 'a claim of a request that fails is not given back',
    layer(layer) {
      replace(insideLayer(layer), 'post', (post) => (message) => {
        if (message.kind !== 'claimDone' || message.ok) post(message);
      });
    },
  },
  {
    name: 'a request goes on when one of its stripes is there',
    layer(layer) {
      replace(insideLayer(layer), 'answered', (answered) => (parked, result) => {
        parked.missing = 1;
        answered(parked, result);
      });
    },
  },
  {
    name: 'who waits for a record is content with a local stripe',
    layer(layer) {
      replace(insideLayer(layer), 'waitAnswered', (waitAnswered) => (stripe, _, result) => {
        waitAnswered(stripe, 0, result);
        waitAnswered(stripe, 1, result);
      });
    },
  },
  {
    name: 'when main gives up, it answers those behind a claim before its holder',
    coordinator(coordinator) {
      const inside = insideCoordinator(coordinator);
      inside.giveUp = () => {
        inside.givenUp = true;
        for (const [stripe, work] of inside.work) inside.failAskers(stripe, work, -EIO);
      };
    },
  },
  {
    name: 'a claim granted to a request that was given up is kept',
    layer(layer) {
      insideLayer(layer).giveBack = () => {};
    },
  },
  {
    name: 'a record that somebody waits for takes its time',
    coordinator(coordinator) {
      const { journal } = insideCoordinator(coordinator);
      replace(journal, 'add', (add) => (change) => add(change, false));
    },
  },
  {
    name: 'main goes on when it has stopped',
    coordinator(coordinator) {
      insideCoordinator(coordinator).journal.end = async () => {};
    },
  },
  {
    name: 'fetches go on when main has stopped',
    coordinator(coordinator) {
      const { fetcher } = insideCoordinator(coordinator);
      if (fetcher) fetcher.end = async () => {};
    },
  },
];
