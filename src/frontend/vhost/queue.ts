/**
 * Serves one virtqueue: takes chains, passes requests down the device stack, answers them. Runs on
 * the queue's own thread and is the whole of its loop; allocates only when a ring starts.
 */
import { heapSize } from 'bun:jsc';
import { shim } from '../../../ffi/library.ts';
import { windowOver } from '../../../ffi/memory.ts';
import { SPIN_CROWDED } from '../../../ffi/ring.ts';
import type { DiskFacts } from '../../device/disk.ts';
import type {
  BlockDevice,
  BlockRequest,
  RequestOwner,
  RequestTable,
} from '../../device/request.ts';
import type { QueueBoard } from '../../device/request_board.ts';
import type { Log } from '../../log.ts';
import type { Waiter } from '../waiter.ts';
import {
  MALFORMED,
  PARSED,
  RequestPool,
  RequestReader,
  S_IOERR,
  S_OK,
  type VhostRequest,
} from './block_request.ts';
import { GuestMemory, type MemoryRegistrar } from './guest_memory.ts';
import { InflightRecord } from './inflight.ts';
import {
  Command,
  type QueueLink,
  type RingStart,
  type SharedState,
  Waiting,
} from './queue_link.ts';
import { Virtqueue, VirtqueueError } from './virtqueue.ts';

/** Chains taken before completions are looked at: the guest works on answers while we go on. */
const BATCH = 16;

export interface QueueOptions {
  deviceId: string;
  /** How long to poll after the last activity before sleeping, in microseconds. */
  pollTimeoutUs: number;
}

/** A ring that is being served. */
interface RunningRing {
  queue: Virtqueue;
  reader: RequestReader;
  inflight: InflightRecord | null;
  /** Bytes of memory that are registered. */
  registered: number;
  errFd: number;
}

/** Commands are looked for this often while spinning where nothing else would tell of them. */
const SPIN_SLICE_US = 1000;
/** After an answer that had to wait for the disk: long enough for a driver that polls. */
const SLOW_SPIN_US = 5;
/** After a spin that others had to wait for: whoever wants the processor may be our own driver. */
const NO_SPIN_MS = 100;

export class VhostQueue implements RequestOwner {
  private ring: RunningRing | null = null;
  /** Set when the ring broke a rule: nothing more is taken from it. */
  private broken = false;
  /** Set when an error of our own broke it: the count of open requests may be wrong. */
  private failed = false;
  private callFd = -1;
  private callMayBlock = false;
  /** Requests taken and not yet answered. */
  private open = 0;
  /** Heads answered and not yet published. */
  private answered = new Uint16Array(0);
  private answeredCount = 0;
  private readonly pool: RequestPool;
  private readonly lostMemory: Uint32Array;
  private lostBefore = 0;
  private spunUs = 0;
  /** Until then processors are scarce, in milliseconds of performance.now(). */
  private crowdedUntil = 0;
  /** Whether the queue has slept for I/O since it last answered, and before that. */
  private waited = false;
  private slow = false;
  /** A ring without a kick descriptor: its driver expects to be polled. */
  private mustPoll = false;
  /** The time of this turn, in nanoseconds of the shim's clock; 0 where it isn't known. */
  private nowNs = 0;
  /** Other threads have a say in the device. */
  private readonly listens: boolean;

  /**
   * @param device the top of the queue's own device stack
   * @param waiter also completes the device's I/O
   * @param registrar where the guest's memory may be registered, null where that gains nothing
   */
  constructor(
    private readonly device: BlockDevice,
    private readonly facts: DiskFacts,
    private readonly waiter: Waiter,
    requests: RequestTable,
    private readonly link: QueueLink,
    private readonly shared: SharedState,
    private readonly board: QueueBoard,
    private readonly options: QueueOptions,
    private readonly log: Log,
    private readonly registrar: MemoryRegistrar | null,
  ) {
    this.listens = device.receive !== undefined;
    this.pool = new RequestPool(this, requests);
    this.lostMemory = new Uint32Array(windowOver(shim.ubiblk_memory_lost_counter() as number, 4));
  }

  /** Serves rings as commands say, until EXIT. */
  run(): void {
    for (;;) {
      const command = this.link.command;
      if (command !== Command.NONE) {
        this.link.answer(this.obey(command));
        if (command === Command.EXIT) return;
      }
      const ring = this.ring;
      if (!ring || this.broken) {
        if (this.listens) this.device.receive?.();
        this.waiter.sleep();
        continue;
      }
      try {
        this.serve(ring.queue);
      } catch (error) {
        this.breakRing(ring, error as Error);
      }
    }
  }

  /** The device gives a request back untouched; who has a record of it begins it again. */
  abandoned(request: BlockRequest): void {
    const given = request as VhostRequest;
    given.busy = false;
    this.open--;
    this.board.drop(given.head);
  }

  completed(request: BlockRequest): void {
    const done = request as VhostRequest;
    const ring = this.ring as RunningRing;
    if (done.result === 0 && done.ranges > 0 && ring.reader.nextRange(done)) {
      this.board.goOn(done.head, done);
      this.device.submit(done);
      return;
    }
    this.answer(ring, done, done.result === 0 ? S_OK : S_IOERR);
  }

  /** One turn of the loop; sleeps where there is nothing to do. */
  private serve(queue: Virtqueue): void {
    if (this.hasLostMemory()) {
      throw new VirtqueueError('the frontend took away memory that it had given the guest');
    }
    const taken = this.take(queue);
    this.waiter.progress();
    // After what may have seen the wake-up: the next sleep would know nothing of it.
    if (this.listens) this.device.receive?.();
    if (this.answeredCount > 0) {
      this.publish(queue);
      return;
    }
    if (taken === 0) this.rest(queue);
    else this.spunUs = 0;
    this.nowNs = 0;
  }

  private take(queue: Virtqueue): number {
    let count = 0;
    // A driver that makes heads available again before they are published gains nothing.
    const room = Math.min(BATCH, queue.size - this.open - this.answeredCount);
    while (count < room) {
      const head = queue.pop();
      if (head < 0) break;
      if (count++ === 0) {
        queue.stopNotifications();
        // A turn that follows an answer knows the time.
        if (this.nowNs === 0) this.nowNs = shim.ubiblk_clock_ns();
      }
      this.start(head);
    }
    return count;
  }

  private start(head: number): void {
    const ring = this.ring as RunningRing;
    const request = this.pool.requests[head];
    if (request.busy) throw new VirtqueueError(`descriptor ${head} is made available twice`);
    request.busy = true;
    this.open++;
    if (ring.inflight) ring.inflight.started(head);
    const parsed = ring.reader.read(head, request);
    if (parsed === PARSED) {
      request.durable = !this.shared.writeback;
      this.board.begin(head, request, this.nowNs);
      this.device.submit(request);
    } else if (parsed === MALFORMED) {
      this.board.counters.refused();
      this.giveBack(ring, request, 0);
    } else {
      if (request.status !== S_OK) this.board.counters.refused();
      this.answer(ring, request, request.status);
    }
  }

  private answer(ring: RunningRing, request: VhostRequest, status: number): void {
    request.statusView.setUint8(request.statusOffset, status);
    this.giveBack(ring, request, status === S_OK ? request.dataWritten + 1 : 1);
  }

  private giveBack(ring: RunningRing, request: VhostRequest, lengthBytes: number): void {
    request.busy = false;
    this.open--;
    ring.queue.push(request.head, lengthBytes);
    if (ring.inflight) ring.inflight.finishing(request.head);
    this.answered[this.answeredCount++] = request.head;
  }

  /** Shows the driver what was answered, and interrupts it where it wants that. */
  private publish(queue: Virtqueue): void {
    queue.publish();
    const inflight = (this.ring as RunningRing).inflight;
    if (inflight) inflight.finished(this.answered, this.answeredCount, queue.nextUsed);
    this.noteAnswers();
    this.answeredCount = 0;
    this.spunUs = 0;
    this.slow = this.waited;
    this.waited = false;
    if (queue.needsInterrupt()) this.interrupt();
  }

  private noteAnswers(): void {
    this.nowNs = shim.ubiblk_clock_ns();
    const { answered, nowNs } = this;
    const { requests } = this.pool;
    for (let i = 0; i < this.answeredCount; i++) {
      this.board.end(answered[i], requests[answered[i]], nowNs);
    }
  }

  private interrupt(): void {
    if (this.callFd < 0) return;
    if (this.callMayBlock) shim.ubiblk_eventfd_signal_peer(this.callFd);
    else shim.ubiblk_eventfd_signal(this.callFd);
  }

  /** Nothing to do: spins for what may come soon, then sleeps with the driver's notifications on. */
  private rest(queue: Virtqueue): void {
    const slice = Math.min(this.spinLimitUs() - this.spunUs, SPIN_SLICE_US);
    if (slice > 0 && (this.mustPoll || !this.isCrowded())) {
      const seen = this.waiter.spin(queue.availIdxAddress, queue.nextAvailable, slice);
      if (seen & SPIN_CROWDED) this.crowdedUntil = performance.now() + NO_SPIN_MS;
      this.spunUs += slice;
      return;
    }
    // Of a full ring there is nothing to take, whatever its driver claims: a completion wakes us.
    if (this.open < queue.size && queue.startNotifications()) return;
    // Looking at the ring may have been what shows it.
    if (this.hasLostMemory()) return;
    if (this.open > 0) this.waited = true;
    if (this.link.command === Command.NONE) this.waiter.sleep();
    this.spunUs = 0;
  }

  private setCall(fd: number): void {
    this.callFd = fd;
    this.callMayBlock = fd >= 0 && shim.ubiblk_is_eventfd(fd) !== 1;
  }

  private spinLimitUs(): number {
    if (this.mustPoll) return Number.POSITIVE_INFINITY;
    // With I/O in the kernel's hands spinning only burns a processor: its completion wakes us.
    if (this.open > 0) return 0;
    // Behind a disk that takes its time, what a driver's wake-up takes is not worth a processor.
    const { pollTimeoutUs } = this.options;
    return this.slow ? Math.min(SLOW_SPIN_US, pollTimeoutUs) : pollTimeoutUs;
  }

  private hasLostMemory(): boolean {
    return Atomics.load(this.lostMemory, 0) !== this.lostBefore;
  }

  /** Whether the processor was wanted by others a short while ago. */
  private isCrowded(): boolean {
    if (this.crowdedUntil === 0) return false;
    if (performance.now() < this.crowdedUntil) return true;
    this.crowdedUntil = 0;
    return false;
  }

  private obey(command: number): number {
    switch (command) {
      case Command.START:
        return this.startRing(this.link.ring);
      case Command.CALL:
        this.setCall(this.link.callFd);
        this.interrupt();
        return 0;
      default:
        return this.stopRing();
    }
  }

  private startRing(start: RingStart): number {
    this.lostBefore = Atomics.load(this.lostMemory, 0);
    this.broken = false;
    // That of the last answer may be long ago.
    this.nowNs = 0;
    if (this.failed) this.forget();
    this.setCall(start.callFd);
    this.pool.reserve(start.size);
    this.board.reset(start.size);
    if (this.answered.length < start.size) this.answered = new Uint16Array(start.size);
    const memory = new GuestMemory(this.shared.regions);
    const registered = this.registrar ? memory.register(this.registrar) : 0;
    const queue = new Virtqueue(start);
    const { deviceId } = this.options;
    const reader = new RequestReader(memory, queue, this.facts, deviceId);
    const inflight = start.inflight > 0 ? new InflightRecord(start.inflight, start.size) : null;
    const ring = { queue, reader, inflight, registered, errFd: start.errFd };
    this.log.debug('the ring starts', { size: start.size, registered, heapBytes: heapSize() });
    this.ring = ring;
    this.mustPoll = start.kickFd < 0;
    if (!this.mustPoll) this.waiter.watch(start.kickFd);
    try {
      if (inflight) this.resume(queue, inflight);
      // What the driver was not told of before the ring was handed over, it learns now.
      this.interrupt();
    } catch (error) {
      this.breakRing(ring, error as Error);
      return -1;
    }
    return 0;
  }

  /** Starts again what the record says was taken and not answered. */
  private resume(queue: Virtqueue, inflight: InflightRecord): void {
    const heads = inflight.recover(queue.nextUsed);
    if (!heads) return;
    queue.skipTo(queue.nextUsed + heads.length);
    this.nowNs = shim.ubiblk_clock_ns();
    if (heads.length > 0)
      this.log.info('answering requests left in flight', { count: heads.length });
    for (const head of heads) this.start(head);
    if (this.answeredCount > 0) this.publish(queue);
  }

  /** Finishes, or gives up, what is in flight; returns the next available index. */
  private stopRing(): number {
    const ring = this.ring;
    if (!ring) return 0;
    this.waiter.progress();
    this.device.receive?.();
    this.giveUpWaiting(ring);
    if (this.answeredCount > 0) this.publish(ring.queue);
    while (this.failed ? this.device.inFlight > 0 : this.open > 0) {
      this.waiter.sleep();
      this.device.receive?.();
      // What has ended may lead to something that waits.
      this.giveUpWaiting(ring);
      if (this.answeredCount > 0) this.publish(ring.queue);
    }
    this.waiter.unwatch();
    this.board.reset(0);
    ring.reader.close();
    if (ring.registered > 0) this.registrar?.unregisterMemory();
    this.log.debug('the ring is stopped', { heapBytes: heapSize() });
    this.ring = null;
    this.callFd = -1;
    return ring.queue.nextAvailable;
  }

  private giveUpWaiting({ inflight }: RunningRing): void {
    const { waiting } = this.link;
    const left = inflight ? Waiting.LEAVE | Waiting.RECORD : Waiting.LEAVE;
    if (waiting & left) this.device.abandon?.();
    else if (waiting & Waiting.FAIL) this.device.failWaiting?.();
  }

  /** After an error of our own: whatever was open is given up, and requests are made anew. */
  private forget(): void {
    this.failed = false;
    this.open = 0;
    this.answeredCount = 0;
    this.pool.discard();
    this.device.reset?.();
  }

  private breakRing(ring: RunningRing, error: Error): void {
    this.broken = true;
    if (error instanceof VirtqueueError) {
      this.log.error(`the queue is stopped: ${error.message}`);
    } else {
      this.failed = true;
      this.log.error(`the queue is stopped by an internal error: ${error.message}`);
      this.log.debug(error.stack ?? '');
    }
    if (ring.errFd >= 0) shim.ubiblk_eventfd_signal_peer(ring.errFd);
  }
}
