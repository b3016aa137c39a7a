/**
 * A queue thread's loop run step by step in this thread: a test is a generator that goes on whenever
 * the queue has nothing to do, and is then the driver, the disk or the control thread.
 */
import { shim } from '../../ffi/library.ts';
import { RequestTable } from '../../src/device/request.ts';
import { type QueueBoard, RequestBoard } from '../../src/device/request_board.ts';
import { inflightBytes } from '../../src/frontend/vhost/inflight.ts';
import { VhostQueue } from '../../src/frontend/vhost/queue.ts';
import {
  Command,
  linkBytes,
  QueueLink,
  type RingStart,
  SharedState,
  Waiting,
} from '../../src/frontend/vhost/queue_link.ts';
import type { Waiter } from '../../src/frontend/waiter.ts';
import { Log } from '../../src/log.ts';
import {
  DATA,
  FakeGuest,
  GUEST_BASE,
  type GuestOptions,
  RecordingDevice,
  type TestPart,
} from './fake_guest.ts';

/** The guest's memory; a second region holds the in-flight record. */
const REGION_BYTES = 0x40000;
const RECORD_AT = GUEST_BASE + 0x100_0000;
/** Each head has this much of the guest's memory to itself. */
const HEAD_BYTES = 0x1000;
const TABLE_AT = 0x40;
const STATUS_AT = 0x20;
export const DATA_AT = 0x200;

export type Script = Generator<void, void, void>;

export interface BenchOptions extends GuestOptions {
  inflight?: boolean;
  pollTimeoutUs?: number;
  /** The device is told things by other threads. */
  listens?: boolean;
}

class RecordingLog extends Log {
  constructor(private readonly lines: string[]) {
    super({ level: 'error', format: 'human' }, 'test');
  }

  override error(message: string): void {
    this.lines.push(message);
  }
}

export class QueueBench {
  readonly guest: FakeGuest;
  readonly logged: string[] = [];
  readonly callFd = shim.ubiblk_eventfd();
  readonly errFd = shim.ubiblk_eventfd();
  readonly kickFd = shim.ubiblk_eventfd();
  /** What the driver has taken from the used ring, in order. */
  readonly taken: { head: number; length: number }[] = [];
  /** How often the queue has spun, and what each spin tells it. */
  spins = 0;
  spinResult = 0;
  /** With `listens`: the last of what others have told, and of what the device has taken in. */
  told = 0;
  received = 0;
  /** Called whenever the queue takes note of completions and wake-ups without sleeping. */
  onProgress: () => void = () => {};
  device: RecordingDevice;
  shared!: SharedState;
  /** What the queue shows of its requests in flight. */
  readonly board: QueueBoard;
  private link!: QueueLink;

  constructor(private readonly options: BenchOptions = {}) {
    const { size = 16 } = options;
    this.board = new RequestBoard(1, size).queues[0];
    this.guest = new FakeGuest({
      ...options,
      regions: [
        { guestAddress: GUEST_BASE, size: REGION_BYTES },
        { guestAddress: RECORD_AT, size: Math.max(4096, inflightBytes(size)) },
      ],
    });
    this.device = new RecordingDevice(this.guest.memory, this.guest.facts);
  }

  /** Runs a new queue on the guest's memory as it is, from START on, until the script has ended. */
  run(script: Script): void {
    const shared = new SharedArrayBuffer(linkBytes(1));
    this.link = new QueueLink(shared, 0);
    this.shared = new SharedState(shared);
    this.shared.writeback = true;
    this.shared.regions = this.guest.memory.regions;
    this.device = new RecordingDevice(this.guest.memory, this.guest.facts);
    const waiter = new ScriptedWaiter(
      script,
      () => this.exit(),
      () => this.spin(),
      () => this.onProgress(),
    );
    if (this.options.listens) {
      const receive = () => {
        this.received = this.told;
      };
      Object.assign(this.device, { receive });
    }
    const queue = new VhostQueue(
      this.device,
      this.guest.facts,
      waiter,
      new RequestTable(),
      this.link,
      this.shared,
      this.board,
      { deviceId: 'disk-7', pollTimeoutUs: this.options.pollTimeoutUs ?? 0 },
      new RecordingLog(this.logged),
      null,
    );
    this.start();
    queue.run();
    if (waiter.failure) throw waiter.failure;
    if (this.device.wrong.length > 0) throw new Error(this.device.wrong.join(', '));
    if (!this.guest.memory.canariesStand) throw new Error('a canary has fallen');
  }

  start(more: Partial<RingStart> = {}): void {
    const { layout } = this.guest;
    this.link.ring = {
      ...layout,
      nextAvailable: this.guest.driver.usedIdx,
      kickFd: this.kickFd,
      callFd: this.callFd,
      errFd: this.errFd,
      inflight: this.options.inflight ? this.guest.memory.regions[1].address : 0,
      ...more,
    };
    this.link.post(Command.START);
  }

  /** @param waiting what becomes of requests that the device keeps waiting */
  stop(waiting: number = Waiting.FINISH): void {
    this.link.waiting = waiting;
    this.link.post(Command.STOP);
  }

  /** It takes too long. */
  hurry(waiting: number): void {
    this.link.waiting = waiting;
  }

  /** The answer to the command posted last; null where it has none yet. */
  get answer(): number | null {
    return this.link.command === Command.NONE ? this.link.await() : null;
  }

  /** Interrupts since this was last asked, 0 or 1. */
  get interrupted(): number {
    return shim.ubiblk_eventfd_drain(this.callFd) === 0 ? 1 : 0;
  }

  get errorSignalled(): boolean {
    return shim.ubiblk_eventfd_drain(this.errFd) === 0;
  }

  /** Where the data of a head's requests is in the guest. */
  dataOf(head: number): number {
    return DATA + head * HEAD_BYTES + DATA_AT;
  }

  statusOf(head: number): number {
    return this.guest.memory.at(DATA + head * HEAD_BYTES + STATUS_AT, 1)[0];
  }

  /** Writes an indirect chain for a head: header, one part of data, status. */
  prepare(head: number, type: number, sector: number | bigint, length: number): void {
    const base = DATA + head * HEAD_BYTES;
    const { guest } = this;
    guest.header(base, type, sector);
    guest.memory.at(base + STATUS_AT, 1)[0] = 0xf8;
    const parts: TestPart[] = [{ address: base, length: 16 }];
    if (length > 0) parts.push({ address: base + DATA_AT, length, writable: type !== 1 });
    parts.push({ address: base + STATUS_AT, length: 1, writable: true });
    guest.writeIndirect(head, base + TABLE_AT, parts);
  }

  /** Prepares a chain and makes it available. */
  offer(head: number, type = 0, sector: number | bigint = head, length = 512): void {
    this.prepare(head, type, sector, length);
    this.guest.driver.add(head);
    this.guest.driver.publish();
  }

  /** Takes what is in the used ring. */
  take(): { head: number; length: number }[] {
    const { driver } = this.guest;
    const from = this.taken.length;
    for (let head = driver.takeUsed(); head >= 0; head = driver.takeUsed()) {
      this.taken.push({ head, length: driver.usedLength });
    }
    return this.taken.slice(from);
  }

  free(): void {
    for (const fd of [this.callFd, this.errFd, this.kickFd]) shim.ubiblk_close(fd);
    this.guest.free();
  }

  private spin(): number {
    this.spins++;
    return this.spinResult;
  }

  /** Ends the queue; what is in flight is finished first. */
  private exit(): void {
    if (this.device.open.length > 0) this.device.finish(0);
    else if (this.answer !== null) this.link.post(Command.EXIT);
  }
}

/** Goes on with the script where a queue would sleep. */
class ScriptedWaiter implements Waiter {
  failure: unknown = null;
  private ended = false;

  constructor(
    private readonly script: Script,
    private readonly exit: () => void,
    readonly spin: () => number,
    private readonly onProgress: () => void,
  ) {}

  watch(): void {}

  unwatch(): void {}

  progress(): number {
    this.onProgress();
    return 0;
  }

  sleep(): void {
    // The queue would take a failed expectation for an error of its own.
    try {
      if (!this.ended) this.ended = this.script.next().done === true;
    } catch (error) {
      this.failure = error;
      this.ended = true;
    }
    if (this.ended) this.exit();
  }
}
