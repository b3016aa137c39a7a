/** Answers as `ubiblk rpc` prints them for people. */
import { expect, test } from 'bun:test';
import { rpcText } from '../../src/observe/rpc_text.ts';

test.each<[string, Record<string, unknown>, string[]]>([
  ['a version', { version: '0.1.0' }, ['version            0.1.0']],
  [
    'what the device is, behind what was asked',
    { device: { connected: true, size_bytes: 512 }, status: null },
    [
      'stripes            none: the disk has no metadata',
      'device connected   true',
      'device size bytes  512',
    ],
  ],
  ['no metadata', { status: null }, ['stripes            none: the disk has no metadata']],
  [
    'counts of stripes',
    { status: { stripes: { fetched: 12, no_source: 24, source: 40, total: 64 } } },
    ['stripes            64, 40 of them with a source', 'fetched            12 of 40 (30 %)'],
  ],
  [
    'no stripe with a source, and what else a server tells',
    {
      status: {
        failing: [{ stripe: 3, message: 'EIO' }],
        in_flight: 2,
        queued: [],
        stripes: { fetched: 0, no_source: 5, source: 0, total: 5, written: 1 },
      },
    },
    [
      'stripes            5, 0 of them with a source',
      'fetched            0 of 0',
      'written            1',
      'failing 0 stripe   3',
      'failing 0 message  EIO',
      'in flight          2',
      'queued             none',
    ],
  ],
  [
    'queues',
    { queues: [[['read', 2048, 8], ['flush'], ['write_zeroes', 0, 16]], []] },
    [
      'queue 0            3 in flight',
      '  read             sector 2048, 8 sectors',
      '  flush',
      '  write_zeroes     sector 0, 16 sectors',
      'queue 1            idle',
    ],
  ],
  [
    'statistics, of what there was at all',
    {
      stats: {
        uptime_s: 3,
        queues: [
          {
            ...{ read_ops: 3, bytes_read: 12288, write_ops: 0, bytes_written: 0, flush_ops: 1 },
            ...{ in_flight: 2, oldest_ms: 17, refused: 4 },
            errors: { read: 1, write: 0, flush: 0 },
            latency_us: { read: { mean: 5, p99: 9, max: 11 }, write: {} },
          },
          { read_ops: 0, in_flight: 0 },
        ],
      },
    },
    [
      'queue 0            2 in flight, the oldest for 17 ms',
      '  read             3 requests, 12 KiB, 1 failed, mean 5 us, p99 9 us, longest 11 us',
      '  flush            1 requests',
      '  refused          4',
      'queue 1            idle',
    ],
  ],
  [
    'anything else, without control of the terminal',
    { a: { b_c: [1, 2], d: null, e: true }, name: 'x\u001b[2J\ny', queues: 'odd', status: 7 },
    [
      'a b c              1, 2',
      'a d                none',
      'a e                true',
      'name               x\\x1b[2J\\x0ay',
      'queues             odd',
      'status             7',
    ],
  ],
  ['nothing', {}, []],
])('%s', (_, answer, lines) => {
  expect(rpcText(answer)).toBe(lines.map((line) => `${line}\n`).join(''));
});
