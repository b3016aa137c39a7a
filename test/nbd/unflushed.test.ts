/** What is told of writes that a lost server may have lost. */
import { expect, test } from 'bun:test';
import { UNFLUSHED_WORDS, Unflushed } from '../../src/device/nbd/unflushed.ts';

function unflushed(): Unflushed {
  return new Unflushed(new Int32Array(UNFLUSHED_WORDS));
}

test('a flush that began before a loss, or is the first one after it, fails', () => {
  const disk = unflushed();
  disk.wrote();
  const { written, told } = disk;
  disk.lost();
  const later = { written: disk.written, told: disk.told };
  expect(disk.flushed(written, told)).toBe(false);
  expect(disk.flushed(later.written, later.told)).toBe(false);
  expect(disk.flushed(disk.written, disk.told)).toBe(true);
});

test('what has been flushed is not lost', () => {
  const disk = unflushed();
  disk.lost();
  expect(disk.flushed(disk.written, disk.told)).toBe(true);
  disk.wrote();
  expect(disk.flushed(disk.written, disk.told)).toBe(true);
  disk.lost();
  expect(disk.flushed(disk.written, disk.told)).toBe(true);
});

test('a flush is for what was written before it began, whatever order answers have', () => {
  const disk = unflushed();
  disk.wrote();
  const early = { written: disk.written, told: disk.told };
  disk.wrote();
  const late = { written: disk.written, told: disk.told };
  expect(disk.flushed(late.written, late.told)).toBe(true);
  expect(disk.flushed(early.written, early.told)).toBe(true);
  disk.lost();
  expect(disk.flushed(disk.written, disk.told)).toBe(true);
  disk.wrote();
  const { written, told } = disk;
  disk.wrote();
  expect(disk.flushed(written, told)).toBe(true);
  disk.lost();
  expect(disk.flushed(disk.written, disk.told)).toBe(false);
});
