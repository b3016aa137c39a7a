/**
 * A virtio-blk driver over vhost-user: shares memory, sets up its queues, and keeps them busy with reads,
 * writes and flushes, all from one thread.
 */
import { UserError } from '../errors.ts';
import { F } from '../frontend/vhost/block_config.ts';
import { Request } from '../frontend/vhost/protocol.ts';
import { DriverQueue, driverQueueBytes, QueueEvents } from './driver_queue.ts';
import {
  type FrontendConnection,
  regionPayload,
  tablePayload,
  vringAddresses,
  vringFd,
  vringState,
} from './frontend_connection.ts';
import { type DeviceDescription, Negotiation } from './negotiation.ts';
import { SharedMemory } from './shared_memory.ts';
import { pages, Slot, slotLayout, T_FLUSH, T_GET_ID } from './slot.ts';

const ID_BYTES = 20;
const PAGE = 4096;
/** The largest ring that every server takes. */
const MAX_RING = 1024;
/** After so long others have their turn: signals, for example. */
const TURN_MS = 50;
/** Guest memory begins above 4 GiB, so that addresses have all their bits. */
const GUEST_BASE = 2 ** 32;

export interface ClientOptions {
  /** Requests in flight on each queue. */
  depth: number;
  /** Queues in use, at most as many as the device has; 1 by default. */
  queues?: number;
  /** The largest request, in bytes; the device's limits may make it smaller. */
  transferBytes: number;
  /** Whether the shared memory is of huge pages. */
  hugePages?: boolean;
  /** How long an answer to a message or a request is waited for. */
  timeoutMs: number;
}

/** Gives requests to `BlockClient.run` and is told of their ends. */
export interface Work {
  /** Starts the slot's next request with `BlockClient.start`; false where there is none. */
  next(slot: number): boolean;
  done(slot: number): void;
}

export class BlockClient {
  /** The largest request, in bytes. */
  readonly transferBytes: number;
  /** Bytes of memory shared with the server. */
  readonly memoryBytes: number;
  /** Descriptors of each ring. */
  readonly ringSize: number;
  private readonly connection: FrontendConnection;
  private readonly memory: SharedMemory;
  private readonly queues: DriverQueue[] = [];
  /** The first one's interrupt is everyone's. */
  private readonly events: QueueEvents[] = [];
  /** Those of the first queue, then those of the second, ... */
  private readonly slots: Slot[] = [];
  private readonly perHead: number;

  /**
   * Makes memory for queues and requests, and shares it with the server.
   * @throws UserError where the server refuses it, or has too few queues
   */
  constructor(
    private readonly agreed: Negotiation,
    readonly device: DeviceDescription,
    private readonly options: ClientOptions,
  ) {
    this.connection = agreed.connection;
    const { queues = 1, depth } = options;
    if (queues > device.queues) {
      const has = device.queues === 1 ? 'one queue' : `${device.queues} queues`;
      throw new UserError(`the disk has only ${has}, not ${queues}`);
    }
    const indirect = agreed.has(F.RING_INDIRECT_DESC);
    const partBytes = Math.min(device.segmentBytesMax ?? 2 ** 30, options.transferBytes);
    const wanted = Math.ceil(options.transferBytes / partBytes);
    const room = indirect ? wanted : Math.floor(MAX_RING / depth) - 2;
    const parts = Math.max(1, Math.min(wanted, device.segmentsMax ?? 1, room));
    const blockMultiple = device.logicalBlockBytes;
    const most = Math.min(options.transferBytes, parts * partBytes);
    if (most < blockMultiple) {
      throw new UserError(
        `no request can hold a block of ${blockMultiple} bytes: the disk takes ${parts} segments of ` +
          `${partBytes} bytes`,
      );
    }
    this.transferBytes = most - (most % blockMultiple);
    this.perHead = indirect ? 1 : parts + 2;

    this.ringSize = 2 ** Math.ceil(Math.log2(Math.max(2, depth * this.perHead)));
    const layout = slotLayout(parts + 2, Math.max(this.transferBytes, PAGE));
    const ringBytes = pages(driverQueueBytes(this.ringSize));
    this.memoryBytes = queues * (ringBytes + depth * layout.bytes);
    this.memory = new SharedMemory(this.memoryBytes, GUEST_BASE, options.hugePages);
    const eventIdx = agreed.has(F.RING_EVENT_IDX);
    for (let q = 0; q < queues; q++) {
      const queue = new DriverQueue(this.memory, q * ringBytes, this.ringSize, eventIdx);
      this.queues.push(queue);
      this.events.push(new QueueEvents(this.events[0]?.callFd));
      for (let i = 0; i < depth; i++) {
        const at = queues * ringBytes + (q * depth + i) * layout.bytes;
        this.slots.push(new Slot(this.memory, at, layout, partBytes, i * this.perHead));
      }
    }
    this.shareMemory();
  }

  /**
   * Negotiates and sets all up.
   * @throws UserError where the server doesn't answer, or offers too little
   */
  static open(connection: FrontendConnection, options: ClientOptions): BlockClient {
    const agreed = new Negotiation(connection);
    const client = new BlockClient(agreed, agreed.describe(), options);
    client.startQueues();
    return client;
  }

  /** Requests in flight on all queues together. */
  get slotCount(): number {
    return this.slots.length;
  }

  /** Hands the rings over; requests can be made afterwards. @throws UserError */
  startQueues(): void {
    const { agreed, memory } = this;
    const at = (offset: number) => memory.userAddress + offset;
    this.queues.forEach((queue, index) => {
      const { descriptorsAt, usedAt, availableAt } = queue;
      const { callFd, kickFd } = this.events[index];
      const addresses = vringAddresses(index, at(descriptorsAt), at(usedAt), at(availableAt));
      agreed.tell(Request.SET_VRING_NUM, vringState(index, queue.size));
      agreed.tell(Request.SET_VRING_BASE, vringState(index, 0));
      agreed.tell(Request.SET_VRING_ADDR, addresses);
      agreed.tell(Request.SET_VRING_CALL, vringFd(index), [callFd]);
      agreed.tell(Request.SET_VRING_KICK, vringFd(index), [kickFd]);
      agreed.tell(Request.SET_VRING_ENABLE, vringState(index, 1));
    });
  }

  /** The slot's data buffer. */
  data(slot: number): Uint8Array {
    return this.slots[slot].data;
  }

  /**
   * Starts a request on a slot that has none.
   * @param type T_IN, T_OUT, T_FLUSH or T_GET_ID
   * @param offset bytes into the disk
   * @param length bytes
   */
  start(slot: number, type: number, offset: number, length: number): void {
    const own = this.slots[slot];
    const queue = this.queues[Math.floor(slot / this.options.depth)];
    own.prepare(type, offset, length);
    if (this.perHead === 1) own.describeIndirect(queue);
    else own.describe(queue.descriptors, own.head, own.head);
    queue.add(own.head);
  }

  /**
   * Keeps all slots busy until the work has no more and every request has been answered. It blocks the
   * thread for no longer than a moment.
   * @throws UserError where a request fails, or no answer comes in time
   */
  async run(work: Work): Promise<void> {
    let turnEndMs = performance.now() + TURN_MS;
    let open = 0;
    for (let slot = 0; slot < this.slots.length && work.next(slot); slot++) open++;
    while (open > 0) {
      let taken = 0;
      for (let q = 0; q < this.queues.length; q++) {
        const queue = this.queues[q];
        for (let head = queue.takeUsed(); head >= 0; head = queue.takeUsed()) {
          taken++;
          const slot = this.slotOf(q, head);
          this.slots[slot].check(queue.usedLength);
          work.done(slot);
          if (!work.next(slot)) open--;
        }
      }
      if (performance.now() > turnEndMs) {
        await Bun.sleep(0);
        turnEndMs = performance.now() + TURN_MS;
      }
      if (taken > 0) continue;
      this.publish();
      await this.awaitUsed();
    }
  }

  /** Puts what was written on stable storage, where the device has a cache. @throws UserError */
  async flush(): Promise<void> {
    if (this.agreed.has(F.FLUSH)) await this.single(T_FLUSH, 0);
  }

  /** The device's id, at most 20 characters. @throws UserError */
  async readId(): Promise<string> {
    await this.single(T_GET_ID, ID_BYTES);
    const bytes = this.data(0).subarray(0, ID_BYTES);
    const end = bytes.indexOf(0);
    return new TextDecoder().decode(bytes.subarray(0, end < 0 ? ID_BYTES : end));
  }

  /** Stops the queues, and gives memory and descriptors back; the connection stays the caller's. */
  close(): void {
    for (let index = 0; index < this.queues.length; index++) {
      this.connection.ask(Request.GET_VRING_BASE, vringState(index, 0));
    }
    this.release();
  }

  /** Gives memory and descriptors back without a word to the server. */
  release(): void {
    for (const events of this.events) events.close();
    this.memory.close();
  }

  private async single(type: number, length: number): Promise<void> {
    let left = 1;
    await this.run({
      next: (slot) => {
        if (left-- <= 0) return false;
        this.start(slot, type, 0, length);
        return true;
      },
      done: () => {},
    });
  }

  private shareMemory(): void {
    const { guestAddress, userAddress, length, fd } = this.memory;
    const region = { guestAddress, userAddress, length, fileOffset: 0 };
    if (this.agreed.hasMemorySlots) {
      this.agreed.tell(Request.ADD_MEM_REG, regionPayload(region), [fd]);
    } else {
      this.agreed.tell(Request.SET_MEM_TABLE, tablePayload([region]), [fd]);
    }
  }

  private publish(): void {
    for (let q = 0; q < this.queues.length; q++) {
      if (this.queues[q].publish()) this.events[q].kick();
    }
  }

  /** Asks every queue for an interrupt. @returns false where one has an answer already */
  private armInterrupts(): boolean {
    let asleep = true;
    for (const queue of this.queues) if (!queue.armInterrupt()) asleep = false;
    return asleep;
  }

  private async awaitUsed(): Promise<void> {
    if (!this.armInterrupts()) return;
    const deadlineMs = performance.now() + this.options.timeoutMs;
    let leftMs = this.options.timeoutMs;
    while (leftMs > 0) {
      const came = this.events[0].await(Math.min(TURN_MS, leftMs), this.connection.fd);
      if (came === 'call') return;
      // A server says nothing unasked: there is only the end of the connection to read.
      if (came === 'other') throw this.connection.closedError();
      await Bun.sleep(0);
      leftMs = Math.ceil(deadlineMs - performance.now());
    }
    // An interrupt that was lost is the server's mistake as well, but a different one.
    const what = this.armInterrupts()
      ? 'answers no request any more'
      : 'answered a request without an interrupt';
    throw new UserError(
      `the server at '${this.connection.socketPath}' ${what} ` +
        `(waited ${this.options.timeoutMs / 1000} s)`,
    );
  }

  private slotOf(queue: number, head: number): number {
    const { depth } = this.options;
    const inQueue = head / this.perHead;
    const slot = queue * depth + inQueue;
    if (!Number.isInteger(inQueue) || inQueue >= depth || !this.slots[slot].busy) {
      throw new UserError(
        `the server at '${this.connection.socketPath}' answered descriptor ${head}, which was ` +
          'not in flight',
      );
    }
    return slot;
  }
}
