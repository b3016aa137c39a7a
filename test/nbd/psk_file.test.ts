import { afterAll, expect, test } from 'bun:test';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { readPskFile } from '../../src/nbd/psk_file.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubiblk-test-psk-'));
afterAll(() => rmSync(folder, { recursive: true }));

function file(text: string): string {
  const path = join(folder, 'keys.psk');
  writeFileSync(path, text);
  return path;
}

test('the key of a user is found, and its bytes are those of the digits', () => {
  const path = file('# keys\nalice:0001fe\nbob:aBcD\n');
  const { identity, secret } = readPskFile(path, 'bob');
  expect(identity).toBe('bob');
  expect([...secret.reveal()]).toEqual([0xab, 0xcd]);
});

test('the only key is taken where no user is named', () => {
  expect(readPskFile(file('alice:00')).identity).toBe('alice');
});

for (const [text, user, reason] of [
  ['alice:0\n', 'alice', "isn't hexadecimal"],
  ['alice:\n', 'alice', "isn't hexadecimal"],
  ['alice:0g\n', 'alice', "isn't hexadecimal"],
  ['alice\n', 'alice', "isn't USER:HEX"],
  ['', 'carol', "has no key of 'carol'"],
  ['alice:00\n', 'carol', "has no key of 'carol'"],
]) {
  test(`${JSON.stringify(text)} has no key for ${user}`, () => {
    expect(() => readPskFile(file(text), user)).toThrow(reason);
  });
}
