/** Lines about a server, which may say anything of itself. */
import { expect, test } from 'bun:test';
import { queueLines } from '../../src/probe/report.ts';

test('an id does nothing to a terminal', () => {
  expect(queueLines(1, 1, 'a\x1b[2J\nb\u009bc')).toEndWith("'a?[2J?b?c'\n");
  expect(queueLines(1, 1, '')).toEndWith('(empty)\n');
});
