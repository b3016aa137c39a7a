/** The link that gives a device a name of the user's choice. */
import { afterEach, expect, test } from 'bun:test';
import {
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { UserError } from '../../src/errors.ts';
import { checkLinkPlace, makeLink, removeLink } from '../../src/frontend/ublk/symlink.ts';

const folders: string[] = [];
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

function folder(): string {
  const made = mkdtempSync(join(tmpdir(), 'ubiblk-link-'));
  folders.push(made);
  return made;
}

test('folders above it are made', () => {
  const where = folder();
  makeLink(join(where, 'a/b/link'), '/dev/ublkb3');
  expect(readlinkSync(join(where, 'a/b/link'))).toBe('/dev/ublkb3');
  expect(readdirSync(join(where, 'a/b'))).toEqual(['link']);
});

test('a link that leads elsewhere, or nowhere, is replaced, and what it led to stays', () => {
  const where = folder();
  const link = join(where, 'link');
  writeFileSync(join(where, 'file'), 'kept');
  for (const target of ['file', '/nowhere', '.']) {
    symlinkSync(target, link);
    makeLink(link, '/dev/ublkb3');
    expect(readlinkSync(link)).toBe('/dev/ublkb3');
    rmSync(link);
  }
  expect(readdirSync(where)).toEqual(['file']);
  expect(readFileSync(join(where, 'file'), 'utf8')).toBe('kept');
});

test('what an earlier process of the same number left half made is no obstacle', () => {
  const where = folder();
  symlinkSync('/dev/ublkb9', join(where, `.link.${process.pid}.tmp`));
  makeLink(join(where, 'link'), '/dev/ublkb3');
  expect(readdirSync(where)).toEqual(['link']);
});

test('whoever looks finds the old link or the new one, never none', async () => {
  const where = folder();
  const link = join(where, 'link');
  makeLink(link, '/dev/ublkb0');
  const script = `
    const { readlinkSync } = require('node:fs');
    let looks = 0;
    process.stdout.write('looking\\n');
    while (readlinkSync(process.argv[1]) !== '/dev/ublkb-end') looks++;
  `;
  const looker = Bun.spawn([process.execPath, '-e', script, link], {
    stdout: 'pipe',
    stderr: 'pipe',
  });
  const reader = looker.stdout.getReader();
  await reader.read();
  for (let round = 1; round <= 2000; round++) makeLink(link, `/dev/ublkb${round % 7}`);
  makeLink(link, '/dev/ublkb-end');
  expect(await new Response(looker.stderr).text()).toBe('');
  expect(await looker.exited).toBe(0);
});

test.each([
  ['a directory', (path: string) => mkdirSync(path), 'is a directory; '],
  ['a file', (path: string) => writeFileSync(path, 'kept'), 'is a file and no symbolic link; '],
])('%s is refused before and after, and stays', (_, make, sentence) => {
  const where = folder();
  const path = join(where, 'there');
  make(path);
  for (const attempt of [() => checkLinkPlace(path), () => makeLink(path, '/dev/ublkb3')]) {
    expect(attempt).toThrow(UserError);
    expect(attempt).toThrow(`'${path}' ${sentence}remove it or choose another path for the link`);
  }
  expect(lstatSync(path).isSymbolicLink()).toBe(false);
  expect(readdirSync(where)).toEqual(['there']);
});

test('a link, and nothing at all, are good places', () => {
  const where = folder();
  symlinkSync('/nowhere', join(where, 'link'));
  checkLinkPlace(join(where, 'link'));
  checkLinkPlace(join(where, 'none'));
  checkLinkPlace(join(where, 'no/folder/either'));
});

test('where a file stands in the place of a folder the error is named', () => {
  const where = folder();
  writeFileSync(join(where, 'file'), '');
  const path = join(where, 'file/link');
  expect(() => makeLink(path, '/dev/ublkb3')).toThrow(UserError);
  expect(() => makeLink(path, '/dev/ublkb3')).toThrow(/the link '.*' can't be made: E[A-Z]+$/);
});

test('a link is removed while it leads to the device, and left alone otherwise', () => {
  const where = folder();
  const link = join(where, 'link');
  makeLink(link, '/dev/ublkb3');
  removeLink(link, '/dev/ublkb33');
  expect(readlinkSync(link)).toBe('/dev/ublkb3');
  removeLink(link, '/dev/ublkb3');
  expect(readdirSync(where)).toEqual([]);
  removeLink(link, '/dev/ublkb3');
  writeFileSync(link, 'a file now');
  removeLink(link, '/dev/ublkb3');
  expect(readFileSync(link, 'utf8')).toBe('a file now');
});
