/** The picture: it fits, whatever the terminal is like. */
import { expect, test } from 'bun:test';
import { frame } from '../../src/top/frame.ts';
import { jsonLine, plainLine } from '../../src/top/lines.ts';
import { type View, Watch } from '../../src/top/watch.ts';
import {
  bytesText,
  countText,
  cut,
  cutStart,
  durationText,
  latencyText,
  sparkline,
} from '../../src/top/words.ts';
import { type Made, sample } from './views.ts';

function view(socket: string, ...looks: Made[]): View {
  const watch = new Watch(socket, 1000);
  let last = watch.take(sample(looks[0]));
  for (const look of looks.slice(1)) last = watch.take(sample(look));
  return last;
}

const busy = view(
  '/run/vm7/rpc.sock',
  { reads: 0, fetched: 10 },
  { atMs: 1000, reads: 25_600, writes: 256, inFlight: 9, fetched: 20, failing: 2, errors: 1 },
);
const idle = view('/run/vm8/rpc.sock', {}, { atMs: 1000 });
const away = {
  ...view('/run/vm9/\u001b[2Jrpc.sock', {}),
  problem: "there is no socket '/run/\u001b[2J'",
};

const plain = { columns: 140, rows: 50, colour: false };

test('a wide terminal has all columns, and the details of each disk', () => {
  const lines = frame([busy, idle], 1, plain);
  expect(lines[0]).toBe(
    'ubiblk top: 2 of 2 disks, read 100 MiB/s, write 1 MiB/s, 25.9k IOPS; every 1 s; q quits',
  );
  expect(lines[1]).toMatch(
    /^DISK +READ\/S +WRITE\/S +IOPS +DEPTH +READ P99 +WRITE P99 +FAILED +STRIPES +LEFT +HISTORY$/,
  );
  expect(lines[2]).toMatch(
    /^\/run\/vm7\/rpc\.sock +100 MiB +1 MiB +25\.9k +9 +100 us +100 us +3 +25 % +6 s +█$/u,
  );
  const text = lines.join('\n');
  expect(text).toContain('[#######-----------------------] 25 %, 20 of 80, 6 s left');
  expect(text).toContain('2 waiting, 1 under way, autofetch on');
  expect(text).toContain('2 failing; stripe 3: EIO: i/o error, read');
  expect(text).toMatch(/read +p50 100 us +p99 100 us +p99\.9 100 us/);
  expect(text).toContain('connected, up 1 s, oldest request 9.0 ms, 1 requests failed');
});

test('it fits every terminal, and keeps what matters most', () => {
  const many = Array.from({ length: 9 }, (_, i) => ({ ...busy, socket: `/run/vm${i}/rpc.sock` }));
  for (const views of [[busy], [busy, idle, away], many]) {
    for (let columns = 20; columns <= 200; columns += 3) {
      for (const rows of [5, 24, 60]) {
        const lines = frame(views, 1, { columns, rows, colour: false });
        expect(lines.length).toBeLessThan(rows);
        for (const line of lines) expect(Bun.stringWidth(line)).toBeLessThan(columns);
      }
    }
  }
  const narrow = frame([busy], 1, { columns: 46, rows: 24, colour: false });
  expect(narrow[1]).toMatch(/^DISK +READ\/S +WRITE\/S +IOPS$/);
  expect(narrow[2]).toMatch(/^….*rpc\.sock +100 MiB +1 MiB +25\.9k/);
});

test('colours are told from none, and nothing of a server drives the terminal', () => {
  const coloured = frame([busy, away], 1, { ...plain, colour: true }).join('\n');
  const colourless = frame([busy, away], 1, plain).join('\n');
  expect(colourless).not.toContain('\x1b');
  expect(Bun.stripANSI(coloured)).toBe(colourless);
  expect(coloured).not.toContain('\x1b[2J');
  expect(colourless).toContain("there is no socket '/run/\\x1b[2J'");
  expect(plainLine(away, new Date())).not.toContain('\x1b');
});

test('lines for scripts', () => {
  const at = new Date(2026, 0, 2, 3, 4, 5);
  expect(plainLine(busy, at)).toBe(
    '03:04:05 /run/vm7/rpc.sock: read 100 MiB/s, write 1 MiB/s, 25.9k IOPS, 9 in flight, ' +
      'read p99 100 us, write p99 100 us, stripes 20 of 80, 6 s left, 2 failing, 1 failed',
  );
  expect(plainLine(view('/a', { inFlight: 2 }), at)).toBe('03:04:05 /a: 2 in flight, no rates yet');
  const { disks } = JSON.parse(jsonLine([busy, away], at));
  expect(disks[0]).toMatchObject({
    socket: '/run/vm7/rpc.sock',
    problem: null,
    rates: { bytes_read: 25_600 * 4096, write_ops: 256 },
    latency_us: { read: { p99: 100 } },
    stripes: { fetched: 20, seconds_left: 6 },
  });
  expect(disks[1]).toMatchObject({ rates: null, stripes: null });
});

test('numbers in words', () => {
  expect([0, 999, 4096, 1.5 * 2 ** 30].map(bytesText)).toEqual([
    '0 B',
    '999 B',
    '4 KiB',
    '1.5 GiB',
  ]);
  expect([0, 9999, 12_345, 2.5e6].map(countText)).toEqual(['0', '9999', '12.3k', '2.5M']);
  expect([undefined, 85.3, 1200, 3.4e6].map(latencyText)).toEqual([
    '-',
    '85 us',
    '1.2 ms',
    '3.4 s',
  ]);
  const times = [45, 200, 18_600, 273_600].map(durationText);
  expect(times).toEqual(['45 s', '3 min 20 s', '5 h 10 min', '3 d 4 h']);
  expect(sparkline([0, 1, 50, 100], 10)).toBe(' ▁▄█');
  expect(sparkline([5, 0, 0], 2)).toBe('  ');
  expect([cut('abcdef', 4), cut('abc', 3), cut('日本語', 5)]).toEqual(['abc…', 'abc', '日本…']);
  expect([cutStart('abcdef', 4), cutStart('abc', 3)]).toEqual(['…def', 'abc']);
});
