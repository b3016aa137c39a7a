/** I/O logs as they are specified, and what only looks like one. */
import { afterAll, expect, test } from 'bun:test';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { IoLogReader } from '../../src/replay/log_reader.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubiblk-log-'));
afterAll(() => rmSync(folder, { recursive: true }));

function read(text: string | Uint8Array): string[] {
  const path = join(folder, 'io.log');
  writeFileSync(path, text);
  const log = new IoLogReader(path);
  const found: string[] = [];
  try {
    for (let record = log.next(); record; record = log.next()) {
      const pieces: Buffer[] = [];
      log.payload(record, (bytes, at) => {
        expect(at).toBe(Buffer.concat(pieces).length);
        pieces.push(Buffer.from(bytes));
      });
      const { line, kind, sector, length } = record;
      const payload = Buffer.concat(pieces);
      expect(payload.length).toBe(length);
      found.push(`[${line}] ${kind} ${sector} ${length} ${payload.toString('hex').slice(0, 8)}`);
    }
    expect(log.doneBytes).toBe(log.sizeBytes);
    return found;
  } finally {
    log.close();
  }
}

test('records are read one after the other, with the numbers of their lines', () => {
  const text = `WRITE\n8\n2\nabcd\nREAD\n0\n4\n00fF0102\nREAD\n7\n0\n\nWRITE\n1\n1\n7f\n`;
  expect(read(text)).toEqual([
    '[1] WRITE 8 2 abcd',
    '[5] READ 0 4 00ff0102',
    '[9] READ 7 0 ',
    '[13] WRITE 1 1 7f',
  ]);
});

test.each([
  ['nothing', '', []],
  ['blank lines alone', '\n \n\n', []],
  ['blank lines behind the last record', 'READ\n0\n1\n00\n\n\n', ['[1] READ 0 1 00']],
  ['no line feed at the end', 'READ\n0\n1\n00', ['[1] READ 0 1 00']],
  ['white space around lines', ' READ \r\n\t0\r\n 1 \r\n  00 \t\r\n', ['[1] READ 0 1 00']],
])('%s', (_, text, expected) => expect(read(text)).toEqual(expected));

test.each([
  ['another word', 'FLUSH\n0\n1\n00\n', /^line 1 .*neither READ nor WRITE but 'FLUSH'/],
  ['another case', 'read\n0\n1\n00\n', /^line 1 .*neither READ nor WRITE but 'read'/],
  ['a second record that is none', 'READ\n0\n1\n00\n77\n', /^line 5 .*neither READ nor WRITE/],
  ['bytes that are no text', Buffer.from([0xff, 0xfe, 10]), /^line 1 .*but '\?\?'/],
  ['no sector', 'READ\n', /^line 2 .*the end, where a start sector should be/],
  ['a sector that is none', 'READ\n-1\n1\n00\n', /^line 2 .*'-1', where a start sector/],
  ['a sector beyond all', 'READ\n99999999999999999\n1\n00\n', /^line 2 .*where a start sector/],
  ['a sector no disk has', 'READ\n17592186044416\n1\n00\n', /^line 2 .*beyond any disk/],
  ['no length', 'READ\n0\n', /^line 3 .*the end, where a length in bytes should be/],
  ['a length that is none', 'READ\n0\n1k\n00\n', /^line 3 .*'1k', where a length/],
  ['no payload', 'READ\n0\n1\n', /^line 4 .*ends after 0 of 1 bytes/],
  ['no payload of nothing', 'READ\n0\n0\n', /^line 4 .*the end, where a payload should be/],
  ['too short a payload', 'READ\n0\n2\n00\n', /^line 4 .*ends after 1 of 2 bytes/],
  ['too long a payload', 'READ\n0\n1\n0000\n', /^line 4 .*goes on behind its 1 bytes/],
  ['half a byte', 'READ\n0\n2\n000\n', /^line 4 .*not hexadecimal any more after 1 of 2 bytes/],
  ['no hexadecimal', 'READ\n0\n2\n0x00\n', /^line 4 .*not hexadecimal any more after 0 of 2/],
  ['a line that never ends', 'x'.repeat(2 << 20), /^line 1 .*a long line/],
])('%s is refused with its line', (_, text, sentence) => {
  expect(() => read(text)).toThrow(sentence);
});

test('payloads longer than any buffer, at any place in it', () => {
  const length = 3 * 1024 * 1024 + 1;
  const payload = Buffer.alloc(length, 0x5a).toString('hex');
  for (const before of [0, 1, 2, 511]) {
    const blank = ' '.repeat(before);
    expect(read(`WRITE\n0\n${length}\n${blank}${payload}\nREAD\n1\n1\nff\n`)).toEqual([
      `[1] WRITE 0 ${length} 5a5a5a5a`,
      '[5] READ 1 1 ff',
    ]);
  }
});
