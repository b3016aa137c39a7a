/** The thread of one queue of a ublk device: builds the device stack on the disk and serves. */
import { errnoName } from '../../../ffi/errno.ts';
import { attachLibrary, shim } from '../../../ffi/library.ts';
import { Ring } from '../../../ffi/ring.ts';
import type { UblkMode } from '../../config/device_config.ts';
import type { FileEngine } from '../../device/file_device.ts';
import { type BlockDevice, RequestTable } from '../../device/request.ts';
import { QueueBoard } from '../../device/request_board.ts';
import { Log } from '../../log.ts';
import { Pulse } from '../heartbeat.ts';
import { engineBeside, prepareThread, queueFiles, queueStack, refusal } from '../queue_stack.ts';
import type { WorkerAnswer } from '../thread.ts';
import { RingWaiter } from '../waiter.ts';
import { Io } from './protocol.ts';
import { type DataPath, UblkQueue } from './queue.ts';
import type { UblkQueueStart } from './server.ts';
import { UserCopyLayer } from './user_copy.ts';

declare const self: Worker;

const MAX_RING_ENTRIES = 4096;

const DATA_PATHS: Record<UblkMode, DataPath> = {
  zero_copy: 'registered',
  copy: 'copied',
  need_get_data: 'copied',
  user_copy: 'fetched',
};

self.onmessage = (event: MessageEvent<UblkQueueStart>) => {
  let ring: Ring | undefined;
  let queue: UblkQueue;
  try {
    attachLibrary(event.data.libraryFd);
    const { depth } = event.data.device.info;
    ring = new Ring(Math.min(2 * depth, MAX_RING_ENTRIES), 4 * depth);
    queue = build(event.data, ring);
  } catch (error) {
    // Nothing may hold a device that is to be deleted.
    ring?.close();
    answer(refusal(error as Error, ''));
    return;
  }
  Bun.gc(true);
  queue.fetch();
  answer({ kind: 'ready' });
  queue.run();
  // Drivers before Linux 6.16 take it ill when a thread that lives on cancels its commands.
  if (!queue.hasCommands) {
    ring.close();
    queue.close();
  }
  answer({ kind: 'ended' });
};

function answer(message: WorkerAnswer): void {
  self.postMessage(message);
}

function build(start: UblkQueueStart, ring: Ring): UblkQueue {
  const { facts, lazy, queue, device, cpu } = start;
  const { info, mode, charFd, legacy } = device;
  const { depth, maxIoBytes } = info;
  const log = new Log(start.log, `queue ${queue}`);
  prepareThread(queue, cpu, log);
  if (cpu === undefined) follow(device.affinity[queue], log);
  const carry = (below: BlockDevice, table: RequestTable) =>
    new UserCopyLayer(below, table, charFd, queue, depth, maxIoBytes);
  const fetched = mode === 'user_copy';
  const disk = { queue, facts, lazy, ownMemory: true, ...(fetched && { carry }) };
  const fds = queueFiles(disk);
  const file = fds.length;
  ring.registerFiles([...fds, charFd]);
  if (mode === 'zero_copy') ring.registerPlaces(depth);
  const pulse = new Pulse(start.heartbeat, queue);
  new RingWaiter(ring, start.wakeFd, pulse);
  log.debug('io_uring is set up', { setup: ring.setup, entries: ring.sqEntries });
  const requests = new RequestTable();
  const engine = engineFor(start, ring, fds, pulse);
  const stack = queueStack(disk, engine, ring, requests, null, answer, log);
  const op = (command: { op: number; legacy: number }) => (legacy ? command.legacy : command.op);
  const shape = {
    queue,
    depth,
    maxIoBytes,
    sizeBytes: facts.sizeBytes,
    dataPath: DATA_PATHS[mode],
    ops: {
      fetch: op(Io.FETCH_REQ),
      commit: op(Io.COMMIT_AND_FETCH_REQ),
      getData: op(Io.NEED_GET_DATA),
    },
    file,
    charFd,
  };
  const board = new QueueBoard(start.board, queue, depth);
  const wanted = new Int32Array(start.wanted);
  const stay = () => Atomics.load(wanted, 0);
  return new UblkQueue(stack, ring, requests, shape, board, stay);
}

function engineFor(start: UblkQueueStart, ring: Ring, fds: number[], pulse: Pulse): FileEngine {
  // Only the ring gets at memory that is registered.
  return start.device.mode === 'zero_copy' ? ring : engineBeside(ring, start, fds, pulse);
}

/** Runs where the queue's requests come from. */
function follow(processors: Uint8Array, log: Log): void {
  const result = shim.ubiblk_set_affinity(processors, processors.length);
  if (result < 0) log.debug(`left on all processors: ${errnoName(result)}`);
}
