/** What a served disk answers. */
import { expect, test } from 'bun:test';
import { BlockRequest, READ } from '../../src/device/request.ts';
import { QueueBoard, RequestBoard } from '../../src/device/request_board.ts';
import { deviceCommands, type StripeCounts } from '../../src/observe/device_commands.ts';
import { RpcBed } from './support.ts';

async function ask(command: string, status: StripeCounts | null, board = new RequestBoard(1, 1)) {
  using bed = new RpcBed();
  bed.serve(deviceCommands({ version: '1.2.3', status: () => status, board }));
  const client = await bed.connect();
  client.send(`{"command":"${command}"}\n`);
  return await client.line();
}

test('the version', async () => {
  expect(await ask('version', null)).toBe('{"version":"1.2.3"}');
});

test('the status of a disk without metadata is null', async () => {
  expect(await ask('status', null)).toBe('{"status":null}');
});

test('stripes are counted with and without a source; what else there is stands beside them', async () => {
  const counts = { total: 64, source: 40, fetched: 12 };
  expect(await ask('status', counts)).toBe(
    '{"status":{"stripes":{"fetched":12,"no_source":24,"source":40,"total":64}}}',
  );
  const more = { ...counts, metadataFailing: false, inFlight: 2, failing: [{ lastError: 'x' }] };
  expect(JSON.parse((await ask('status', more)) ?? '')).toEqual({
    status: {
      stripes: { fetched: 12, no_source: 24, source: 40, total: 64 },
      metadata_failing: false,
      in_flight: 2,
      failing: [{ last_error: 'x' }],
    },
  });
});

test('requests in flight by queue', async () => {
  const board = new RequestBoard(2, 4);
  const queue = new QueueBoard(board.shared, 1, 4);
  const request = new BlockRequest(0, { completed: () => {} }, undefined as never);
  Object.assign(request, { op: READ, offset: 2048 * 512, length: 8 * 512 });
  queue.reset(4);
  queue.show(2, request);
  expect(await ask('queues', null, board)).toBe('{"queues":[[],[["read",2048,8]]]}');
});
