/** How many requests a queue waits for, by how many its client sends in a row. */
import { expect, test } from 'bun:test';
import { Gathering } from '../../src/frontend/ublk/gathering.ts';

/** What was waited for in each turn, with a client that has so many requests to send in one. */
function waitedFor(gathering: Gathering, available: number, turns: number): number[] {
  return Array.from({ length: turns }, () => {
    const { wanted } = gathering;
    gathering.turned(Math.max(1, Math.min(wanted, available)));
    return wanted;
  });
}

test('nearly every request is taken at once from a client that sends one at a time', () => {
  const waited = waitedFor(new Gathering(16), 1, 10_000);
  expect(waited.filter((count) => count > 1).length).toBeWithin(1, 25);
});

test('a client that sends many at a time is soon waited for, and stays so', () => {
  const waited = waitedFor(new Gathering(16), 100, 1000);
  expect(waited[0]).toBe(1);
  expect(Math.min(...waited.slice(10))).toBe(16);
  expect(Math.max(...waited)).toBe(16);
});

test('what comes in a row is waited for, and seldom more', () => {
  const waited = waitedFor(new Gathering(16), 5, 10_000);
  expect(waited.filter((count) => count === 4).length).toBeGreaterThan(9900);
});

test('waiting ends soon where a client sends fewer, and begins again', () => {
  const gathering = new Gathering(16);
  waitedFor(gathering, 100, 100);
  expect(waitedFor(gathering, 1, 1000).filter((count) => count > 1).length).toBeLessThan(25);
  expect(waitedFor(gathering, 100, 2000).at(-1)).toBe(16);
});
