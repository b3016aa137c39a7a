/** The manual pages: what a reader of another maker makes of them, and that nothing is missing. */
import { expect, test } from 'bun:test';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type ManPage, manPages } from '../../scripts/man_pages.ts';
import { escaped, roffOf } from '../../scripts/roff.ts';
import { commands } from '../../src/commands/table.ts';

const pages = manPages({ version: '1.2.3', date: '2026-01-02' });
const man = Bun.which('man');
const lexgrog = Bun.which('lexgrog');

/** A page as man(1) shows it, and what it complains of. */
function shown({ file, roff }: Pick<ManPage, 'file' | 'roff'>): { text: string; warnings: string } {
  const folder = mkdtempSync(join(tmpdir(), 'ubiblk-man-'));
  try {
    writeFileSync(join(folder, file), roff);
    const { stdout, stderr } = Bun.spawnSync(
      [man as string, '--warnings=w', '-l', join(folder, file)],
      {
        env: { ...process.env, MANWIDTH: '80', LC_ALL: 'C.UTF-8', MANROFFSEQ: '' },
      },
    );
    return { text: stdout.toString(), warnings: stderr.toString() };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test('every command has a page of its name', () => {
  const names = pages.flatMap(({ file, links }) => [file, ...links]);
  expect(new Set(names).size).toBe(names.length);
  const missing = commands
    .map(({ name }) => `ubiblk-${name.replaceAll(' ', '-')}.1`)
    .filter((name) => !names.includes(name));
  expect(missing).toEqual([]);
});

test('every option is in the page of its command', () => {
  const missing = commands.flatMap(({ name, options }) => {
    const page = pages.find(({ file, links }) =>
      [file, ...links].includes(`ubiblk-${name.replaceAll(' ', '-')}.1`),
    );
    return options
      .filter(({ long }) => !page?.roff.includes(escaped(`--${long}`)))
      .map(({ long }) => `${name}: --${long}`);
  });
  expect(missing).toEqual([]);
});

const needs = man ? '' : " ['man' is not installed]";
for (const page of pages) {
  test.skipIf(!man)(`man reads ${page.file} without a complaint${needs}`, () => {
    const { text, warnings } = shown(page);
    expect(warnings).toBe('');
    expect(text).toMatch(/^UBIBLK\S*\(\d\) +ubiblk +UBIBLK/);
    expect(text).toContain('ubiblk 1.2.3');
    // No markdown is left, but what is in a command.
    expect(text).not.toMatch(/^ {7}\| |\]\(\w+\.md/m);
  });
}

test.skipIf(!lexgrog)(
  `what a page is about can be found${lexgrog ? '' : " ['lexgrog' is not installed]"}`,
  () => {
    const folder = mkdtempSync(join(tmpdir(), 'ubiblk-man-'));
    try {
      const files = pages.map(({ file, roff }) => {
        writeFileSync(join(folder, file), roff);
        return join(folder, file);
      });
      const { exitCode, stdout } = Bun.spawnSync([lexgrog as string, ...files]);
      expect({ exitCode, output: stdout.toString().match(/parse failed/g) }).toEqual({
        exitCode: 0,
        output: null,
      });
    } finally {
      rmSync(folder, { recursive: true });
    }
  },
);

test.skipIf(!man)(`what roff could take for its own stays as it is${needs}`, () => {
  const markdown = [
    '## It',
    ".dot begins, `'quote'` too, \\\\n, -dash, `--long-option`, ^hat ~ and 5 µs",
    '',
    '    .nf in code',
    "    'x' \\n",
    '',
    '| A | B | C |',
    '| --- | --- | --- |',
    '| `term` | one | two |',
    '| `other` | | [there](x.md) |',
    '',
    '1. first',
    '2. **second**, which is [the web](https://example.org)',
  ].join('\n');
  const roff = `.TH T 1\n${roffOf(markdown, (href) => (href === 'x.md' ? 'page(7)' : undefined))}`;
  const { text, warnings } = shown({ file: 't.1', roff });
  expect(warnings).toBe('');
  const lines = text.split('\n').map((line) => line.trim());
  expect(lines).toContain('IT');
  expect(text).toMatch(/\.dot begins, 'quote' too, \\n, -dash, --long-option, \^hat ~\s+and 5 µs/);
  expect(lines).toContain('.nf in code');
  expect(lines).toContain("'x' \\n");
  expect(text).toMatch(/term {3}B: one\n +C: two\n/);
  expect(text).toMatch(/other {2}C: there \(page\(7\)\)/);
  expect(text).toMatch(/1\. +first\n\n? *2\. +second, which is the web \(https:\/\/example\.org\)/);
});
