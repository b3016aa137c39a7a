/** Runs what the pages in docs/ show. Those that need a kernel with ublk are run by test/vm/pages.test.ts. */
import { expect, test } from 'bun:test';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { commands } from '../../src/commands/table.ts';
import { patternOf, runPage, runsOf } from '../tools/page_runs.ts';
import { root } from './processes.ts';
import { ublkPages } from './ublk_pages.ts';

const pages = readdirSync(join(root, 'docs'))
  .filter((name) => name.endsWith('.md'))
  .map((name) => `docs/${name}`)
  .filter((page) => runsOf(readFileSync(join(root, page), 'utf8')).length > 0);

test('every command is shown in a run of its page', () => {
  const missing = commands.filter(({ name, short, docs }) => {
    const runs = runsOf(readFileSync(join(root, docs), 'utf8'));
    const words = [name, ...(short ? [`${short} -`] : [])].map((word) => `ubiblk ${word}`);
    return !runs.some(({ command }) => words.some((word) => command.includes(word)));
  });
  expect(missing.map(({ name, docs }) => `${docs}: no '$ ubiblk ${name} ...'`)).toEqual([]);
});

test('what a page prints is looked for as it is, but for three dots', () => {
  const pattern = patternOf(['a (b)', '...', 'c ... d']);
  expect(pattern.test('a (b)\nc 17 d\n')).toBe(true);
  expect(pattern.test('a (b)\nx\ny\nc  d\n')).toBe(true);
  expect(pattern.test('a b\nc 17 d\n')).toBe(false);
  expect(pattern.test('a (b)\nc 17 d\nmore\n')).toBe(false);
  expect(patternOf([]).test('x\n')).toBe(false);
});

for (const page of pages.filter((each) => !ublkPages.includes(each))) {
  test(`${page} shows what happens`, async () => runPage(join(root, page)), 180_000);
}
