import { expect, test } from 'bun:test';
import { Progress } from '../../src/commands/progress.ts';

const GIB = 1024 ** 3;

function fake() {
  const clock = { ms: 1000, text: '' };
  const progress = new Progress({
    write: (text) => {
      clock.text += text;
    },
    now: () => clock.ms,
  });
  return { clock, progress };
}

test('a line says how much is done, of how much, and how fast', () => {
  const { clock, progress } = fake();
  clock.ms += 1500;
  progress.update(1.2 * GIB, 2.6 * GIB);
  expect(clock.text).toBe('\r  46 %  1.2 GiB of 2.6 GiB  819.2 MiB/s  2 s left\x1b[K');
  progress.end();
  expect(clock.text).toEndWith('\x1b[K\n');
});

test('a total that nobody knows is left out, and nothing done is no division by zero', () => {
  const { clock, progress } = fake();
  clock.ms += 2000;
  progress.update(4096, undefined);
  expect(clock.text).toBe('\r  4 KiB  2 KiB/s\x1b[K');
  clock.ms += 1000;
  clock.text = '';
  progress.update(0, 0);
  expect(clock.text).toBe('\r 100 %  0 bytes of 0 bytes  0 bytes/s\x1b[K');
});

test('a line is written a few times a second, and the last one always', () => {
  const { clock, progress } = fake();
  for (let done = 0; done < 1000; done++) {
    clock.ms += 1;
    progress.update(done, 1000);
  }
  expect(clock.text.split('\r')).toHaveLength(1 + 4);
  progress.update(1000, 1000);
  expect(clock.text).toContain('\r 100 %  1000 bytes of 1000 bytes');
});

test('short work shows nothing, nor does its end', () => {
  const { clock, progress } = fake();
  clock.ms += 200;
  progress.update(5, 5);
  progress.end();
  progress.clear();
  expect(clock.text).toBe('');
});

test('a line is removed once, for a message in its place', () => {
  const { clock, progress } = fake();
  clock.ms += 1000;
  progress.update(1, 5);
  clock.text = '';
  progress.clear();
  progress.clear();
  expect(clock.text).toBe('\r\x1b[K');
});

test('what takes long says how long still', () => {
  const { clock, progress } = fake();
  clock.ms += 1000;
  const left = (total: number) => {
    clock.text = '';
    clock.ms += 1000;
    progress.update(2000, total);
    return /\/s {2}(.*) left/.exec(clock.text)?.[1];
  };
  expect(left(2000 + 59_000)).toBe('59 s');
  expect(left(2000 + 100_000)).toBe('3 min');
  expect(left(2000 + 2000 * 3700)).toBe('4 h 7 min');
});

test('where it is no terminal, a line comes now and then', () => {
  let text = '';
  const clock = { ms: 0 };
  const write = (more: string) => {
    text += more;
  };
  const progress = new Progress({ write, now: () => clock.ms, lines: true });
  for (; clock.ms < 25_000; clock.ms += 100) progress.update(clock.ms, 30_000);
  progress.end();
  progress.clear();
  expect(text).toBe(
    '33 %  9.8 KiB of 29.3 KiB  1000 bytes/s  20 s left\n' +
      '66 %  19.5 KiB of 29.3 KiB  1000 bytes/s  10 s left\n',
  );
});
