/** A virtual machine's side of a vhost-user socket, driven by hand: rings, memory, an in-flight record. */
import { expect } from 'bun:test';
import { shim } from '../../ffi/library.ts';
import { Request } from '../../src/frontend/vhost/protocol.ts';
import { DriverQueue, QueueEvents } from '../../src/probe/driver_queue.ts';
import {
  FrontendConnection,
  regionPayload,
  u64Payload,
  vringAddresses,
  vringFd,
  vringState,
} from '../../src/probe/frontend_connection.ts';
import { SharedMemory } from '../../src/probe/shared_memory.ts';
import { inflightPayload } from '../vhost/fake_frontend.ts';
import { putHeader } from '../vhost/fake_guest.ts';
import type { Server } from './support.ts';

const MIB = 1 << 20;
export const TIMEOUT_MS = 10_000;
/** indirect_desc, event_idx, protocol_features, version_1. */
export const FEATURES = 0x1_7000_0000n;
export const PROTOCOL_FEATURES = 0x9209n;

/** Types of requests, and statuses. */
export const T_IN = 0;
export const T_OUT = 1;
export const OK = 0;
export const IOERR = 1;
export const NO_STATUS = 0xf8;

/** Connects; the frontend before may be on its way out, which refuses this one at first. */
export function connect(server: Server): FrontendConnection {
  for (const deadline = Date.now() + TIMEOUT_MS; ; ) {
    const connection = FrontendConnection.connect(server.socket, TIMEOUT_MS);
    try {
      connection.ask(Request.GET_FEATURES);
      return connection;
    } catch (error) {
      connection.close();
      if (Date.now() > deadline || !server.child.running) throw error;
    }
  }
}

/** A virtual machine with several queues, driven by hand. */
export class Machine {
  connection!: FrontendConnection;
  readonly memory = new SharedMemory(4 * MIB, 0x1_0000_0000);
  readonly queues: DriverQueue[] = [];
  readonly events: QueueEvents[] = [];
  readonly errFds: number[] = [];
  /** The in-flight record, as the server made it. */
  private record: { fd: number; size: bigint } | null = null;

  /** @param recorded whether it keeps a record of what is in flight */
  constructor(
    server: Server,
    readonly size = 64,
    readonly queueCount = 2,
    private readonly recorded = false,
  ) {
    for (let i = 0; i < queueCount; i++) {
      this.queues.push(new DriverQueue(this.memory, i * 0x10000, size, true));
      this.events.push(new QueueEvents());
      this.errFds.push(shim.ubiblk_eventfd());
    }
    this.connect(server);
  }

  /** Begins to use a server, with its memory and its record as they are. */
  connect(server: Server): void {
    this.connection = connect(server);
    this.connection.ask(Request.GET_PROTOCOL_FEATURES);
    this.connection.send(Request.SET_PROTOCOL_FEATURES, u64Payload(PROTOCOL_FEATURES));
    this.connection.askAck(Request.SET_FEATURES, u64Payload(FEATURES));
    const { guestAddress, length, userAddress, fd } = this.memory;
    const region = regionPayload({ guestAddress, length, userAddress, fileOffset: 0 });
    this.connection.askAck(Request.ADD_MEM_REG, region, [fd]);
    if (this.recorded) this.shareRecord();
    for (let i = 0; i < this.queueCount; i++) this.startQueue(i);
  }

  private shareRecord(): void {
    const { connection, queueCount, size } = this;
    if (!this.record) {
      const shape = inflightPayload(0, 0, queueCount, size);
      const { payload, fds } = connection.ask(Request.GET_INFLIGHT_FD, shape);
      this.record = { fd: fds[0], size: payload.getBigUint64(0, true) };
    }
    const payload = inflightPayload(this.record.size, 0, queueCount, size);
    connection.askAck(Request.SET_INFLIGHT_FD, payload, [this.record.fd]);
  }

  /** Starts a ring from what the device has used of it. */
  startQueue(index: number): void {
    const { connection, errFds } = this;
    const [queue, events] = [this.queues[index], this.events[index]];
    connection.askAck(Request.SET_VRING_NUM, vringState(index, this.size));
    connection.askAck(Request.SET_VRING_BASE, vringState(index, queue.usedIdx));
    connection.askAck(Request.SET_VRING_ADDR, this.addresses(index));
    connection.askAck(Request.SET_VRING_CALL, vringFd(index), [events.callFd]);
    connection.askAck(Request.SET_VRING_ERR, vringFd(index), [errFds[index]]);
    connection.askAck(Request.SET_VRING_KICK, vringFd(index), [events.kickFd]);
    connection.askAck(Request.SET_VRING_ENABLE, vringState(index, 1));
  }

  /** Of SET_VRING_ADDR. */
  addresses(index: number): Uint8Array {
    const { descriptorsAt, usedAt, availableAt } = this.queues[index];
    const at = (offset: number) => this.memory.userAddress + offset;
    return vringAddresses(index, at(descriptorsAt), at(usedAt), at(availableAt));
  }

  /**
   * Writes a request of 4 KiB into three descriptors from `head` on, with its header and status in the
   * first 256 KiB and its data at the end of the memory.
   */
  prepare(index: number, head: number, sector: number, type = T_IN): void {
    const control = 0x20000 + index * 0x8000 + head * 64;
    putHeader(new DataView(this.memory.window(control, 16)), 0, type, sector);
    const base = this.memory.guestAddress;
    const data = 2 * MIB + index * 0x80000 + head * 4096;
    this.queues[index].writeChain(head, [
      { address: base + control, length: 16, writable: false },
      { address: base + data, length: 4096, writable: type === T_IN },
      { address: base + control + 32, length: 1, writable: true },
    ]);
    new Uint8Array(this.memory.window(control + 32, 1))[0] = NO_STATUS;
  }

  status(index: number, head: number): number {
    return new Uint8Array(this.memory.window(0x20000 + index * 0x8000 + head * 64 + 32, 1))[0];
  }

  /** Makes heads available and kicks, whatever the server wants. */
  offer(index: number, ...heads: number[]): void {
    for (const head of heads) this.queues[index].add(head);
    this.queues[index].publish();
    this.events[index].kick();
  }

  /** Reads on a queue until its answer is there. @returns the status */
  read(index: number, sector: number): number {
    this.prepare(index, 0, sector);
    this.offer(index, 0);
    return this.answer(index, 0);
  }

  /** Waits for the answer to a request. @returns the status */
  answer(index: number, head: number): number {
    for (const deadline = Date.now() + TIMEOUT_MS; Date.now() < deadline; ) {
      if (this.queues[index].takeUsed() === head) return this.status(index, head);
      this.queues[index].armInterrupt();
      if (this.queues[index].takeUsed() === head) return this.status(index, head);
      this.events[index].await(1000, this.connection.fd);
    }
    throw new Error(`queue ${index} does not answer`);
  }

  /** Waits for the word that a queue is broken. */
  expectBroken(index: number): void {
    const polled = Int32Array.of(this.errFds[index]);
    expect(shim.ubiblk_poll(polled, 1, TIMEOUT_MS)).toBe(1);
    shim.ubiblk_eventfd_drain(this.errFds[index]);
  }

  close(): void {
    for (const events of this.events) events.close();
    for (const fd of this.errFds) shim.ubiblk_close(fd);
    if (this.record) shim.ubiblk_close(this.record.fd);
    this.connection.close();
    this.memory.close();
  }
}
