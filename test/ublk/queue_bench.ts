/**
 * A ublk queue's loop run step by step in this thread: a test is a generator that goes on whenever the
 * queue would sleep, and is then the kernel, the disk or the main thread. A memory file stands in for
 * the character device, and a fake ring for the driver, which holds the queue to the driver's rules.
 */
import { closeSync, writeSync } from 'node:fs';
import { ENODEV } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import type { Ring, RingHandler } from '../../ffi/ring.ts';
import { type BlockDevice, type BlockRequest, RequestTable } from '../../src/device/request.ts';
import { RequestBoard, type ShownRequest } from '../../src/device/request_board.ts';
import { type QueueEnd, type QueueShape, Stay, UblkQueue } from '../../src/frontend/ublk/queue.ts';

openLibrary();

export const OPS = { fetch: 100, commit: 101, getData: 102 };
export const SIZE_BYTES = 1 << 30;
export const MAX_IO = 1 << 20;
const QUEUE = 3;
const FILE = 5;
const DESCRIPTOR_BYTES = 24;
/** Of the queues' descriptors in the character device's file. */
const QUEUE_BYTES = 4096 * DESCRIPTOR_BYTES;

export type Script = Generator<void, void, void>;

/** A request as the kernel describes it: struct ublksrv_io_desc. */
export interface Described {
  /** Operation and flags. */
  op: number;
  sectors?: number;
  start?: number | bigint;
}

/** A request as the device below is given it. */
export interface Asked {
  tag: number;
  op: number;
  offset: number;
  length: number;
  segments: number;
  address: number;
  buffer: number;
  durable: boolean;
  unmap: boolean;
  bits: number;
}

export interface Command {
  op: number;
  tag: number;
  result: number;
  address: number;
  place: number;
}

export interface BenchOptions extends Partial<QueueShape> {
  /** The device is told things by other threads, and may be told to give requests up. */
  lazy?: boolean;
}

/** The device below: keeps what it is given until `finish`. */
class Disk implements BlockDevice {
  readonly asked: Asked[] = [];
  readonly open = new Map<number, BlockRequest>();
  /** Those of `open` that wait for another thread's word. */
  readonly parked = new Set<number>();
  received = 0;
  receive?: () => void;
  abandon?: () => void;

  constructor(
    private readonly tagOf: (request: BlockRequest) => number,
    lazy: boolean,
  ) {
    if (!lazy) return;
    this.receive = () => this.received++;
    this.abandon = () => this.giveUp();
  }

  get inFlight(): number {
    return this.open.size;
  }

  submit(request: BlockRequest): void {
    const tag = this.tagOf(request);
    const { op, offset, length, segments, address, buffer, durable, unmap } = request;
    const { addressBits, lengthBits } = request;
    const bits = addressBits | lengthBits;
    if (this.open.has(tag)) throw new Error(`tag ${tag} is in work already`);
    this.open.set(tag, request);
    this.asked.push({ tag, op, offset, length, segments, address, buffer, durable, unmap, bits });
  }

  finish(tag: number, result = 0): void {
    const request = this.open.get(tag) as BlockRequest;
    this.open.delete(tag);
    request.result = result;
    request.owner.completed(request);
  }

  private giveUp(): void {
    for (const tag of this.parked) {
      const request = this.open.get(tag) as BlockRequest;
      this.open.delete(tag);
      request.owner.abandoned?.(request);
    }
    this.parked.clear();
  }
}

/** What the kernel has of a tag. */
type TagState = 'idle' | 'fetching' | 'with the server' | 'asked for data' | 'gone';

export class QueueBench {
  readonly disk: Disk;
  readonly ring: FakeRing;
  readonly queue: UblkQueue;
  readonly shape: QueueShape;
  readonly board: RequestBoard;
  /** Whether the device is to be left to a successor. */
  leave = false;
  end: QueueEnd | undefined;
  /** What `run` threw. */
  error: Error | undefined;
  private readonly charFd: number;

  constructor({ lazy = false, ...more }: BenchOptions = {}) {
    this.charFd = shim.ubiblk_memory_memfd(Buffer.from('ublkc\0'), (QUEUE + 2) * QUEUE_BYTES);
    this.shape = {
      queue: QUEUE,
      depth: 8,
      maxIoBytes: MAX_IO,
      sizeBytes: SIZE_BYTES,
      dataPath: 'copied',
      ops: OPS,
      file: FILE,
      charFd: this.charFd,
      ...more,
    };
    const { depth } = this.shape;
    this.board = new RequestBoard(1, depth);
    this.disk = new Disk((request) => (request as unknown as { tag: number }).tag, lazy);
    this.ring = new FakeRing(this.shape);
    this.queue = new UblkQueue(
      this.disk,
      this.ring as unknown as Ring,
      new RequestTable(),
      this.shape,
      this.board.queues[0],
      () => (this.leave ? Stay.NO_LONGER : Stay.SERVE),
    );
  }

  /** Fetches and serves until the script has ended, and then until the device has, or was left. */
  run(script: Script): void {
    this.queue.fetch();
    this.ring.onSleep = () => {
      if (script.next().done && !this.leave) this.endDevice();
    };
    try {
      this.end = this.queue.run();
    } catch (error) {
      this.error = error as Error;
    }
    if (this.ring.failure) throw this.ring.failure;
  }

  /** The kernel gives a request to the queue. */
  give(tag: number, { op, sectors = 0, start = 0 }: Described): void {
    this.describe(tag, { op, sectors, start });
    this.ring.complete(tag, 0);
  }

  describe(tag: number, { op, sectors = 0, start = 0 }: Described): void {
    const words = Buffer.alloc(DESCRIPTOR_BYTES, 0xee);
    words.writeUInt32LE(op, 0);
    words.writeUInt32LE(sectors, 4);
    words.writeBigUInt64LE(BigInt(start), 8);
    const at = QUEUE * QUEUE_BYTES + tag * DESCRIPTOR_BYTES;
    writeSync(this.charFd, words, 0, DESCRIPTOR_BYTES, at);
  }

  /** What was committed since this was last asked: tag and result of each, in order. */
  committed(): [tag: number, result: number][] {
    return this.ring.take(OPS.commit).map(({ tag, result }) => [tag, result]);
  }

  get shown(): ShownRequest[] {
    return this.board.list()[0];
  }

  free(): void {
    this.queue.close();
    closeSync(this.charFd);
  }

  /** The kernel takes the device away: tags come back one by one, what is in work is waited for. */
  endDevice(): void {
    this.ring.giveBack();
    for (const tag of [...this.disk.open.keys()]) this.disk.finish(tag);
  }
}

class FakeRing {
  readonly log: Command[] = [];
  onSleep: () => void = () => {};
  failure: Error | null = null;
  /** Completions that were last waited for. */
  gathered = 0;
  /** Commands that were prepared, and that the kernel doesn't have yet. */
  private prepared: Command[] = [];
  private readonly tags: TagState[];
  private readonly completions: [tag: number, result: number][] = [];
  private handler: RingHandler | null = null;
  private ended = false;
  private sleeps = 0;

  constructor({ depth }: QueueShape) {
    this.tags = Array.from({ length: depth }, () => 'idle');
  }

  addHandler(handler: RingHandler): number {
    this.handler = handler;
    return 11;
  }

  ublkCommand(
    op: number,
    file: number,
    queue: number,
    tag: number,
    result: number,
    address: number,
    place: number,
    handler: number,
  ): void {
    if (file !== FILE || queue !== QUEUE || handler !== 11) this.fail('a command to another file');
    this.prepared.push({ op, tag, result, address, place });
  }

  gather(count: number): void {
    this.gathered = count;
    this.enter(1, -1);
  }

  enter(minComplete: number, timeoutUs: number): void {
    for (const command of this.prepared.splice(0)) this.accept(command);
    if (minComplete === 0 || this.completions.length > 0) return;
    if (timeoutUs >= 0) this.fail('a sleep with a deadline');
    if (++this.sleeps > 10_000) throw new Error('the queue never ends');
    // The queue would take a failed expectation for an error of its own.
    try {
      this.onSleep();
    } catch (error) {
      this.failure ??= error as Error;
      this.giveBack();
    }
  }

  reap(): number {
    const all = this.completions.splice(0);
    for (const [tag, result] of all) this.handler?.ringCompleted(tag, result, false);
    return all.length;
  }

  /** The command that the kernel has of a tag comes back. */
  complete(tag: number, result: number): void {
    if (this.tags[tag] !== 'fetching') throw new Error(`tag ${tag} is ${this.tags[tag]}`);
    this.tags[tag] = result === 0 ? 'with the server' : result === 1 ? 'asked for data' : 'gone';
    this.completions.push([tag, result]);
  }

  /** Of every tag that the kernel has, and of all that it gets from now on. */
  giveBack(): void {
    this.ended = true;
    this.tags.forEach((state, tag) => {
      if (state === 'fetching') this.complete(tag, -ENODEV);
    });
  }

  /** Commands of a kind that the kernel has had since this was last asked. */
  take(op: number): Command[] {
    const found = this.log.filter((command) => command.op === op);
    this.log.length = 0;
    return found;
  }

  stateOf(tag: number): TagState {
    return this.tags[tag];
  }

  private accept(command: Command): void {
    const { op, tag } = command;
    const expected = { [OPS.fetch]: 'idle', [OPS.commit]: 'with the server' };
    const before = expected[op] ?? 'asked for data';
    if (this.tags[tag] !== before) this.fail(`op ${op} of tag ${tag}, which is ${this.tags[tag]}`);
    this.tags[tag] = 'fetching';
    this.log.push(command);
    if (this.ended) this.complete(tag, -ENODEV);
  }

  private fail(message: string): void {
    this.failure ??= new Error(message);
  }
}
