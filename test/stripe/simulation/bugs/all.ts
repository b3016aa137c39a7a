import type { Bug } from '../bug.ts';
import { answerBugs } from './answers.ts';
import { fetchingBugs } from './fetching.ts';
import { orderBugs } from './order.ts';
import { queueBugs } from './queues.ts';

/** Every bug that the simulation has to find. */
export const bugs: Bug[] = [...orderBugs, ...fetchingBugs, ...answerBugs, ...queueBugs];
