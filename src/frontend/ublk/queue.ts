/**
 * Serves one queue of a ublk device: takes requests as the kernel delivers them, passes them down the
 * device stack, and commits each when it is done, whatever became of the others. Commands and I/O share
 * one ring: one system call hands over what is ready and brings what is new. Allocates only at the start.
 */
import { EINVAL, EIO, ENODEV, EOPNOTSUPP, failed } from '../../../ffi/errno.ts';
import { shim } from '../../../ffi/library.ts';
import { NativeBuffer, windowOver } from '../../../ffi/memory.ts';
import { IovecTable, type Ring, type RingHandler } from '../../../ffi/ring.ts';
import {
  type BlockDevice,
  type BlockOp,
  BlockRequest,
  DISCARD,
  FLUSH,
  READ,
  type RequestOwner,
  type RequestTable,
  WRITE,
  WRITE_ZEROES,
} from '../../device/request.ts';
import type { QueueBoard } from '../../device/request_board.ts';
import { Gathering } from './gathering.ts';
import {
  DESCRIPTOR_WORDS,
  IO_F_FUA,
  IO_F_NOUNMAP,
  IO_OP_DISCARD,
  IO_OP_FLUSH,
  IO_OP_MASK,
  IO_OP_READ,
  IO_OP_WRITE,
  IO_OP_WRITE_ZEROES,
  IO_RES_NEED_GET_DATA,
  IO_RES_OK,
} from './protocol.ts';

/** One tag of the queue: its request, and the memory that is the tag's own. */
export class UblkRequest extends BlockRequest {
  constructor(
    readonly tag: number,
    ...rest: ConstructorParameters<typeof BlockRequest>
  ) {
    super(...rest);
  }
}

/** How a request's data comes to us. */
export type DataPath =
  /** The kernel copies it between the request and memory of the tag's. */
  | 'copied'
  /** The request's memory is registered with the ring under the tag's number. */
  | 'registered'
  /** A layer of the stack fetches and returns it. */
  | 'fetched';

export interface QueueShape {
  /** The queue's number. */
  queue: number;
  depth: number;
  maxIoBytes: number;
  sizeBytes: number;
  dataPath: DataPath;
  /** The opcodes that the kernel takes. */
  ops: { fetch: number; commit: number; getData: number };
  /** The character device's number among the ring's files, and its descriptor here. */
  file: number;
  charFd: number;
}

/** Why a queue has nothing more to do. */
export type QueueEnd = 'device ended' | 'left';

/** With many requests in the disk's hands, one call brings back some of them: so many at most. */
const MOST_GATHERED = 16;
/** One out of so many that the disk has. */
const GATHERED_PART = 4;
/** What gathering may take, in microseconds; that of completions no longer than the last turn took, either. */
const GATHER_US = 200;

/** What the main thread wants of a queue. */
export const Stay = {
  SERVE: 0,
  /** Leave the device to a successor as soon as nothing is in work. */
  UNTIL_IDLE: 1,
  /** Leave it when what is in work is done; what comes meanwhile is the successor's. */
  NO_LONGER: 2,
} as const;

const BLOCK_OPS: (BlockOp | undefined)[] = [];
BLOCK_OPS[IO_OP_READ] = READ;
BLOCK_OPS[IO_OP_WRITE] = WRITE;
BLOCK_OPS[IO_OP_FLUSH] = FLUSH;
BLOCK_OPS[IO_OP_DISCARD] = DISCARD;
BLOCK_OPS[IO_OP_WRITE_ZEROES] = WRITE_ZEROES;

export class UblkQueue implements RequestOwner, RingHandler {
  /** Commands that are with the kernel, and requests that are with us. */
  private held = 0;
  private open = 0;
  private leaving = false;
  private error: Error | null = null;
  /** When this turn began, in nanoseconds of the shim's clock. */
  private nowNs = 0;
  /** Tags whose results are about to be handed over. */
  private readonly ended: Uint16Array;
  private endedCount = 0;
  private readonly handler: number;
  private readonly gathering = new Gathering(MOST_GATHERED);
  private readonly requests: UblkRequest[] = [];
  private readonly memory: NativeBuffer | null;
  private readonly descriptors: Uint32Array;
  private readonly mapped: number;

  /**
   * @param device the top of the queue's own device stack
   * @param ring carries commands and I/O, and a poll of what wakes the queue
   * @param stay tells which of `Stay` is wanted at the moment
   * @throws Error where the descriptors can't be mapped
   */
  constructor(
    private readonly device: BlockDevice,
    private readonly ring: Ring,
    table: RequestTable,
    private readonly shape: QueueShape,
    private readonly board: QueueBoard,
    private readonly stay: () => number,
  ) {
    const { queue, depth, maxIoBytes, dataPath, charFd } = shape;
    this.ended = new Uint16Array(depth);
    this.handler = ring.addHandler(this);
    this.mapped = shim.ubiblk_ublk_map(charFd, queue, depth) as number;
    if (this.mapped < 0) throw failed('mmap of the ublk descriptors', this.mapped);
    const bytes = depth * DESCRIPTOR_WORDS * Uint32Array.BYTES_PER_ELEMENT;
    this.descriptors = new Uint32Array(windowOver(this.mapped, bytes));
    this.memory = dataPath === 'copied' ? new NativeBuffer(depth * maxIoBytes) : null;
    const noParts = new IovecTable(1);
    for (let tag = 0; tag < depth; tag++) {
      this.requests.push(table.add(new UblkRequest(tag, table.nextIndex, this, noParts)));
    }
    board.reset(depth);
  }

  /** Asks the kernel for requests; to be called on the thread that will serve them. */
  fetch(): void {
    const { depth, ops } = this.shape;
    for (let tag = 0; tag < depth; tag++) this.command(ops.fetch, tag, 0);
    this.ring.enter(0, 0);
  }

  /**
   * Serves until the device ends, or until it is to be left and nothing is in work any more.
   * @throws Error where the kernel refuses a command: its request could not be answered any more
   */
  run(): QueueEnd {
    const { ring, device } = this;
    let reaped = 0;
    let turnUs = 0;
    for (;;) {
      device.receive?.();
      const stay = this.stay();
      if (stay === Stay.NO_LONGER) this.leaving = true;
      // What waits for stripes is left, too: the kernel gives it to the successor.
      if (this.leaving) device.abandon?.();
      if (this.endedCount > 0) this.noteEnds(shim.ubiblk_clock_ns());
      if (this.open === 0 && (this.leaving || this.held === 0)) break;
      // Results that are still to be handed over may bring new requests.
      if (this.open === 0 && stay === Stay.UNTIL_IDLE && ring.prepared === 0) break;
      if (stay === Stay.UNTIL_IDLE && this.open === 0) ring.enter(0, 0);
      else ring.gather(this.gathered(reaped), this.open === 0 ? GATHER_US : turnUs);
      this.nowNs = shim.ubiblk_clock_ns();
      const idle = this.open === 0;
      reaped = ring.reap();
      if (idle && this.open === 0) this.gathering.turned(reaped);
      const endNs = shim.ubiblk_clock_ns();
      this.noteEnds(endNs);
      // The clock may have been set back while the host slept.
      turnUs = Math.max(0, Math.min((endNs - this.nowNs) / 1000, GATHER_US)) | 0;
    }
    const end = this.held === 0 ? 'device ended' : 'left';
    // Results are handed over; what comes instead is left.
    if (end === 'left') ring.enter(0, 0);
    if (this.error) throw this.error;
    return end;
  }

  /** How many completions are worth waiting for: as many as came last time, where the disk has enough. */
  private gathered(reaped: number): number {
    if (this.open === 0) return this.gathering.wanted;
    const part = (this.open / GATHERED_PART) | 0;
    return part === 0 ? 1 : Math.min(Math.max(part, reaped), MOST_GATHERED);
  }

  /** Whether the kernel still has commands of this queue, which only the process's end may cancel. */
  get hasCommands(): boolean {
    return this.held > 0;
  }

  /** Lets go of everything; the ring is to be closed, too, before the device can be deleted. */
  close(): void {
    shim.ubiblk_ublk_unmap(this.mapped, this.shape.depth);
    this.memory?.free();
  }

  ringCompleted(tag: number, result: number): void {
    this.held--;
    if (result === IO_RES_OK) {
      if (!this.leaving) this.start(this.requests[tag]);
    } else if (result === IO_RES_NEED_GET_DATA) {
      this.command(this.shape.ops.getData, tag, 0);
    } else if (result !== -ENODEV) {
      this.error ??= failed(`a ublk command of queue ${this.shape.queue}`, result);
      this.leaving = true;
    }
  }

  completed(request: BlockRequest): void {
    const { op, length, result } = request;
    const moved = op === READ || op === WRITE ? length : 0;
    this.commit((request as UblkRequest).tag, result === 0 ? moved : result);
  }

  abandoned(request: BlockRequest): void {
    this.open--;
    this.board.drop((request as UblkRequest).tag);
  }

  private start(request: UblkRequest): void {
    const { tag } = request;
    const words = this.descriptors;
    const at = tag * DESCRIPTOR_WORDS;
    const flags = words[at];
    const op = BLOCK_OPS[flags & IO_OP_MASK];
    this.open++;
    if (op === undefined) {
      this.refuse(tag, -EOPNOTSUPP);
      return;
    }
    const { shape } = this;
    const length = words[at + 1] * 512;
    // Of a flush the kernel leaves the largest number there.
    const offset = op === FLUSH ? 0 : (words[at + 2] + words[at + 3] * 2 ** 32) * 512;
    const moves = op === READ || op === WRITE;
    if (moves && length > shape.maxIoBytes) {
      this.refuse(tag, -EINVAL);
      return;
    }
    if (offset + length > shape.sizeBytes) {
      this.refuse(tag, -EIO);
      return;
    }
    request.op = op;
    request.offset = offset;
    request.length = length;
    request.segments = moves ? 1 : 0;
    request.durable = (flags & IO_F_FUA) !== 0;
    request.unmap = (flags & IO_F_NOUNMAP) === 0;
    request.lengthBits = length & 0xfff;
    if (shape.dataPath === 'registered') request.buffer = moves ? tag : -1;
    request.address = this.addressOf(tag);
    request.origin = tag;
    this.board.begin(tag, request, this.nowNs);
    this.device.submit(request);
  }

  private refuse(tag: number, result: number): void {
    this.board.counters.refused();
    this.commit(tag, result);
  }

  private noteEnds(nowNs: number): void {
    for (let i = 0; i < this.endedCount; i++) {
      const tag = this.ended[i];
      this.board.end(tag, this.requests[tag], nowNs);
    }
    this.endedCount = 0;
  }

  private commit(tag: number, result: number): void {
    this.open--;
    this.ended[this.endedCount++] = tag;
    this.command(this.shape.ops.commit, tag, result);
  }

  private command(op: number, tag: number, result: number): void {
    const { file, queue, dataPath } = this.shape;
    const place = dataPath === 'registered' ? tag : -1;
    this.held++;
    const address = this.addressOf(tag);
    this.ring.ublkCommand(op, file, queue, tag, result, address, place, this.handler);
  }

  /** Of registered memory addresses begin at 0. */
  private addressOf(tag: number): number {
    return this.memory ? this.memory.address + tag * this.shape.maxIoBytes : 0;
  }
}
