/** The head of an archive in a folder, after every step of its replacement. */
import { afterEach, beforeEach, expect, test } from 'bun:test';
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { recoverHead, replaceHead, replacementSteps } from '../../src/archive/filesystem_head.ts';
import type { Commit } from '../../src/archive/store.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'ubiblk-head-'));
});
afterEach(() => rmSync(folder, { recursive: true }));

const MAPPING = 'stripe-mapping';
const HASHES = 'stripe-hashes.json';

function commitOf(word: string, indexName: string): Commit {
  return {
    description: `${word} ${indexName}`,
    meanwhile: null,
    indexName,
    index: Buffer.from(`index of ${word}`),
  };
}

/** What a reader finds: the description says which index it goes with. */
function found(): string {
  const description = readFileSync(join(folder, 'metadata.json'), 'utf8');
  const [word, indexName] = description.split(' ');
  const index = readFileSync(join(folder, indexName), 'utf8');
  return index === `index of ${word}` ? word : `${word} with '${index}'`;
}

const changes = [
  [HASHES, HASHES],
  [HASHES, MAPPING],
  [MAPPING, HASHES],
  [MAPPING, MAPPING],
];

test.each(changes)('between any two steps from %s to %s there is one archive', (from, to) => {
  const old = commitOf('old', from);
  const fresh = commitOf('new', to);
  replaceHead(folder, old);
  const steps = replacementSteps(folder, fresh).length;
  expect(steps).toBeGreaterThan(5);
  let before = 0;
  for (let stop = 0; stop <= steps; stop++) {
    rmSync(folder, { recursive: true });
    folder = mkdtempSync(join(tmpdir(), 'ubiblk-head-'));
    replaceHead(folder, old);
    for (const step of replacementSteps(folder, fresh).slice(0, stop)) step();
    const there = found();
    expect(['old', 'new']).toContain(there);
    if (there === 'old') before++;
    // The next run ends it, and leaves nothing else behind.
    recoverHead(folder);
    expect(found()).toBe(there);
    expect(readdirSync(folder)).toHaveLength(2);
    replaceHead(folder, commitOf('third', to));
    expect(found()).toBe('third');
  }
  expect(before).toBeGreaterThan(3);
  expect(before).toBeLessThan(steps);
});

test('the index alone is replaced where the description stays', () => {
  replaceHead(folder, commitOf('same', HASHES));
  const steps = replacementSteps(folder, commitOf('same', HASHES));
  expect(steps).toHaveLength(1);
});

test('the first archive is there with its index, and an index without a description is never taken for it', () => {
  writeFileSync(join(folder, HASHES), 'index of somebody else');
  const steps = replacementSteps(folder, commitOf('first', HASHES));
  for (const step of steps) {
    step();
    const names = readdirSync(folder);
    if (names.includes('metadata.json') && names.includes(HASHES)) expect(found()).toBe('first');
  }
  expect(found()).toBe('first');
});

test('links that lead nowhere are taken away', () => {
  replaceHead(folder, commitOf('old', HASHES));
  replaceHead(folder, commitOf('new', MAPPING));
  expect(readdirSync(folder).sort()).toEqual(['metadata.json', MAPPING]);
});
