/** A disk that is only tried on, against one that is written. */
import { afterAll, expect, test } from 'bun:test';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DiskTarget, TrialTarget } from '../../src/replay/replay_target.ts';
import { Random, seed } from '../random.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubiblk-target-'));
afterAll(() => rmSync(folder, { recursive: true }));

const DISK_BYTES = 40 * 1024 * 1024 + 700;

test('random writes show alike on both, at any offset and behind the end; one disk is as it was', () => {
  const random = new Random(seed);
  const [written, tried] = ['written', 'tried'].map((name) => join(folder, name));
  const before = Buffer.alloc(DISK_BYTES, 0x11);
  for (const path of [written, tried]) writeFileSync(path, before);
  const fds = [openSync(written, 'r+'), openSync(tried, 'r')];
  const disk = new DiskTarget(fds[0], written);
  const trial = new TrialTarget(fds[1], tried);
  const place = () => DISK_BYTES - 20 * 1024 * 1024 + random.below(21 * 1024 * 1024);
  let reads = 0;
  for (let i = 0; i < 3000; i++) {
    const offset = i % 2 ? place() : place() - (place() % 512);
    const length = i % 3 ? 512 * (1 + random.below(8)) : random.below(3000);
    if (random.below(2) === 0) {
      const data = Buffer.alloc(length, random.below(256));
      disk.write(data, offset);
      trial.write(data, offset);
      continue;
    }
    const [a, b] = [Buffer.alloc(length), Buffer.alloc(length)];
    const attempt = (read: () => void) => {
      try {
        read();
        return 'read';
      } catch (error) {
        return (error as Error).message.replace(/'.*?'/, '');
      }
    };
    const said = attempt(() => disk.read(a, offset));
    expect(attempt(() => trial.read(b, offset))).toBe(said);
    if (said !== 'read') continue;
    reads++;
    expect(a.equals(b)).toBe(true);
  }
  expect(reads).toBeGreaterThan(1000);
  trial.close();
  for (const fd of fds) closeSync(fd);
  expect(readFileSync(tried).equals(before)).toBe(true);
});
