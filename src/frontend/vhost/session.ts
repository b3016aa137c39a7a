/**
 * One frontend's connection: the vhost-user messages, and what they make of rings and memory. Knows
 * no socket and no thread: messages come in as bytes, queues are behind `QueueControl`, so that it can
 * be driven by tests as a hostile frontend would.
 */

import { errnoName } from '../../../ffi/errno.ts';
import { shim } from '../../../ffi/library.ts';
import { type BlockConfig, F } from './block_config.ts';
import type { MemoryRegion } from './guest_memory.ts';
import { inflightBytes, inflightShare } from './inflight.ts';
import { type Mapping, MemoryTable, mapShared, REGION_BYTES, unmapShared } from './memory_table.ts';
import {
  FLAG_NEED_REPLY,
  FLAG_REPLY,
  HEADER_BYTES,
  MAX_MEMORY_SLOTS,
  MAX_PAYLOAD,
  MAX_TABLE_REGIONS,
  PROTOCOL_F_CONFIG,
  PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  PROTOCOL_F_INFLIGHT_SHMFD,
  PROTOCOL_F_MQ,
  PROTOCOL_F_REPLY_ACK,
  ProtocolError,
  Request,
  readU64,
  requestName,
  VERSION,
  VRING_F_LOG,
  VRING_IDX_MASK,
  VRING_NOFD_MASK,
  writeU64,
} from './protocol.ts';
import { type RingStart, Waiting } from './queue_link.ts';
import { availBytes, DESC_BYTES, usedBytes } from './virtqueue.ts';

/** The queue threads, as the control thread commands them. Every call returns when it is done. */
export interface QueueControl {
  start(queue: number, ring: RingStart): void;
  /**
   * Stops several queues at once; returns their next available indexes.
   * @param waiting what becomes of requests that wait for what may be long in coming, bits of `Waiting`;
   *   those that are waited for fail after some seconds, and are left when the frontend goes
   */
  stop(queues: readonly number[], waiting: number): number[];
  setCall(queue: number, callFd: number): void;
  setRegions(regions: readonly MemoryRegion[]): void;
  setWriteback(on: boolean): void;
  /** Puts what the guest has written on stable storage. */
  flush(): void;
}

export interface SessionOptions {
  features: bigint;
  numQueues: number;
  /** The largest ring. */
  queueSize: number;
}

/** A message as it came in. The session owns the descriptors. */
export interface Message {
  request: number;
  flags: number;
  payload: DataView;
  fds: number[];
}

/** What to send back. The descriptor, if any, is closed after sending. */
export interface Reply {
  bytes: Uint8Array;
  fd: number;
}

interface Vring {
  size: number;
  nextAvailable: number;
  /** Addresses in the frontend. */
  descriptors: number;
  available: number;
  used: number;
  addressed: boolean;
  kickFd: number;
  /** SET_VRING_KICK came: the ring may run. */
  kicked: boolean;
  callFd: number;
  errFd: number;
  enabled: boolean;
  running: boolean;
}

interface Inflight extends Mapping {
  queues: number;
  /** Bytes of each queue's record. */
  queueBytes: number;
}

const PROTOCOL_FEATURES = [
  PROTOCOL_F_MQ,
  PROTOCOL_F_REPLY_ACK,
  PROTOCOL_F_CONFIG,
  PROTOCOL_F_INFLIGHT_SHMFD,
  PROTOCOL_F_CONFIGURE_MEM_SLOTS,
].reduce((all, bit) => all | (1n << BigInt(bit)), 0n);

const INFLIGHT_BYTES = 24;
const CONFIG_HEADER_BYTES = 12;

export class Session {
  private features = 0n;
  private protocolFeatures = 0n;
  private readonly memory = new MemoryTable();
  private inflight: Inflight | null = null;
  private readonly vrings: Vring[];

  constructor(
    private readonly options: SessionOptions,
    private readonly config: BlockConfig,
    private readonly queues: QueueControl,
  ) {
    this.vrings = Array.from({ length: options.numQueues }, () => ({
      size: 0,
      nextAvailable: 0,
      descriptors: 0,
      available: 0,
      used: 0,
      addressed: false,
      kickFd: -1,
      kicked: false,
      callFd: -1,
      errFd: -1,
      enabled: false,
      running: false,
    }));
  }

  /** The features that both sides have agreed on. */
  get negotiated(): bigint {
    return this.features;
  }

  /**
   * Does what a message asks.
   * @returns the reply, null where there is none
   * @throws ProtocolError; the acknowledgement to send first, if one was asked for, is `refusal`
   */
  handle(message: Message): Reply | null {
    try {
      const reply = this.dispatch(message);
      if (reply) return reply;
    } finally {
      for (const fd of message.fds) shim.ubiblk_close(fd);
    }
    return this.wantsAck(message) ? this.u64(message, 0) : null;
  }

  /** The answer to a message that could not be done; null where the frontend wants none. */
  refusal(message: Message): Reply | null {
    return this.wantsAck(message) ? this.u64(message, 1) : null;
  }

  /**
   * Ends the session: queues stop when their requests are done, memory and descriptors go.
   * @param goingOn the frontend is still there, and its guest waits for answers
   */
  close(goingOn = false): void {
    this.pause(goingOn ? Waiting.RECORD : Waiting.LEAVE);
    this.memory.clear();
    this.dropInflight();
    for (const vring of this.vrings) {
      for (const fd of [vring.kickFd, vring.callFd, vring.errFd]) closeIfOpen(fd);
    }
  }

  private wantsAck(message: Message): boolean {
    const acks = (this.protocolFeatures >> BigInt(PROTOCOL_F_REPLY_ACK)) & 1n;
    return acks === 1n && (message.flags & FLAG_NEED_REPLY) !== 0;
  }

  private dispatch(message: Message): Reply | null {
    const { request, payload } = message;
    switch (request) {
      case Request.GET_FEATURES:
        return this.u64(message, this.options.features);
      case Request.SET_FEATURES:
        return this.setFeatures(bits(need(message, 8)));
      case Request.SET_OWNER:
        return null;
      case Request.RESET_OWNER:
        this.pause(Waiting.RECORD);
        return null;
      case Request.GET_PROTOCOL_FEATURES:
        return this.u64(message, PROTOCOL_FEATURES);
      case Request.SET_PROTOCOL_FEATURES:
        return this.setProtocolFeatures(bits(need(message, 8)));
      case Request.GET_QUEUE_NUM:
        return this.u64(message, this.options.numQueues);
      case Request.GET_MAX_MEM_SLOTS:
        return this.u64(message, MAX_MEMORY_SLOTS);
      case Request.SET_MEM_TABLE:
        return this.setMemoryTable(message);
      case Request.ADD_MEM_REG:
        return this.addRegion(message);
      case Request.REM_MEM_REG:
        return this.removeRegion(need(message, 8 + REGION_BYTES));
      case Request.SET_VRING_NUM:
        return this.setSize(need(message, 8));
      case Request.SET_VRING_ADDR:
        return this.setAddresses(need(message, 40));
      case Request.SET_VRING_BASE:
        return this.setBase(need(message, 8));
      case Request.GET_VRING_BASE:
        return this.getBase(message, need(message, 8));
      case Request.SET_VRING_KICK:
        return this.setKick(message);
      case Request.SET_VRING_CALL:
        return this.setCall(message);
      case Request.SET_VRING_ERR:
        return this.setErr(message);
      case Request.SET_VRING_ENABLE:
        return this.enable(need(message, 8));
      case Request.GET_CONFIG:
        return this.getConfig(message, payload);
      case Request.SET_CONFIG:
        return this.setConfig(payload);
      case Request.GET_INFLIGHT_FD:
        return this.getInflight(message, need(message, 20));
      case Request.SET_INFLIGHT_FD:
        return this.setInflight(message, need(message, 20));
      default:
        throw new ProtocolError(`${requestName(request)} is not offered`);
    }
  }

  private setFeatures(features: bigint): null {
    const unknown = features & ~this.options.features;
    if (unknown !== 0n) throw new ProtocolError(`features 0x${unknown.toString(16)} not offered`);
    this.features = features;
    if (!this.has(F.VHOST_PROTOCOL_FEATURES)) {
      this.vrings.forEach((vring, i) => {
        vring.enabled = true;
        this.startIfReady(i);
      });
    }
    return null;
  }

  private setProtocolFeatures(features: bigint): null {
    const unknown = features & ~PROTOCOL_FEATURES;
    if (unknown !== 0n) {
      throw new ProtocolError(`protocol features 0x${unknown.toString(16)} not offered`);
    }
    this.protocolFeatures = features;
    return null;
  }

  private has(bit: number): boolean {
    return ((this.features >> BigInt(bit)) & 1n) === 1n;
  }

  // Memory

  private setMemoryTable(message: Message): null {
    const count = need(message, 8).getUint32(0, true);
    const { payload, fds } = message;
    if (count === 0 || count > MAX_TABLE_REGIONS || count !== fds.length) {
      throw new ProtocolError(`a memory table of ${count} regions with ${fds.length} descriptors`);
    }
    need(message, 8 + count * REGION_BYTES);
    this.changeMemory(() => {
      this.memory.clear();
      fds.forEach((fd, i) => {
        this.memory.add(payload, 8 + i * REGION_BYTES, fd);
      });
    });
    return null;
  }

  private addRegion(message: Message): null {
    const payload = need(message, 8 + REGION_BYTES);
    if (message.fds.length !== 1) throw new ProtocolError('a memory region without its descriptor');
    this.changeMemory(() => this.memory.add(payload, 8, message.fds[0]));
    return null;
  }

  private removeRegion(payload: DataView): null {
    this.changeMemory(() => this.memory.remove(payload, 8));
    return null;
  }

  /** Changes the memory table while no queue touches any of it. */
  private changeMemory(change: () => void): void {
    const stopped = this.pause(Waiting.RECORD);
    change();
    this.queues.setRegions(this.memory.regions);
    this.resume(stopped);
  }

  /** Stops the running rings; returns which they were. @param waiting see QueueControl.stop */
  private pause(waiting: number): number[] {
    const running = this.vrings.flatMap((vring, i) => (vring.running ? [i] : []));
    if (running.length > 0) this.stopRings(running, waiting);
    return running;
  }

  private resume(stopped: readonly number[]): void {
    for (const i of stopped) this.startIfReady(i);
  }

  // Rings

  private vring(index: number): Vring {
    const vring = this.vrings[index];
    if (!vring) throw new ProtocolError(`ring ${index} of ${this.vrings.length}`);
    return vring;
  }

  private setSize(payload: DataView): null {
    const vring = this.vring(payload.getUint32(0, true));
    const size = payload.getUint32(4, true);
    if (size === 0 || (size & (size - 1)) !== 0 || size > this.options.queueSize) {
      throw new ProtocolError(
        `a ring of ${size} entries; queue_size allows powers of two up to ${this.options.queueSize}`,
      );
    }
    vring.size = size;
    return null;
  }

  private setAddresses(payload: DataView): null {
    const index = payload.getUint32(0, true);
    const vring = this.vring(index);
    if ((payload.getUint32(4, true) & VRING_F_LOG) !== 0) {
      throw new ProtocolError('logging of the used ring was not offered');
    }
    const descriptors = readU64(payload, 8);
    const used = readU64(payload, 16);
    const available = readU64(payload, 24);
    const wasRunning = vring.running;
    if (wasRunning) this.stopRings([index], Waiting.RECORD);
    Object.assign(vring, { descriptors, used, available, addressed: true });
    if (wasRunning) this.startIfReady(index);
    return null;
  }

  private setBase(payload: DataView): null {
    const index = payload.getUint32(0, true);
    const vring = this.vring(index);
    if (vring.running) this.stopRings([index], Waiting.FINISH);
    vring.nextAvailable = payload.getUint32(4, true) & 0xffff;
    return null;
  }

  private getBase(message: Message, payload: DataView): Reply {
    const index = payload.getUint32(0, true);
    const vring = this.vring(index);
    if (vring.running) this.stopRings([index], Waiting.FINISH);
    // The ring runs again only with a new kick descriptor.
    closeIfOpen(vring.kickFd);
    closeIfOpen(vring.callFd);
    vring.kickFd = -1;
    vring.callFd = -1;
    vring.kicked = false;
    const view = new DataView(new ArrayBuffer(8));
    view.setUint32(0, index, true);
    view.setUint32(4, vring.nextAvailable, true);
    return this.reply(message, view);
  }

  private setKick(message: Message): null {
    const { index, fd } = this.takeVringFd(message);
    const vring = this.vrings[index];
    if (vring.running) this.stopRings([index], Waiting.RECORD);
    closeIfOpen(vring.kickFd);
    vring.kickFd = fd;
    vring.kicked = true;
    this.startIfReady(index);
    return null;
  }

  private setCall(message: Message): null {
    const { index, fd } = this.takeVringFd(message);
    const vring = this.vrings[index];
    if (vring.running) this.queues.setCall(index, fd);
    closeIfOpen(vring.callFd);
    vring.callFd = fd;
    return null;
  }

  private setErr(message: Message): null {
    const { index, fd } = this.takeVringFd(message);
    const vring = this.vrings[index];
    const wasRunning = vring.running;
    if (wasRunning) this.stopRings([index], Waiting.RECORD);
    closeIfOpen(vring.errFd);
    vring.errFd = fd;
    if (wasRunning) this.startIfReady(index);
    return null;
  }

  /** Takes the descriptor of SET_VRING_KICK, CALL or ERR out of the message; -1 where none is. */
  private takeVringFd(message: Message): { index: number; fd: number } {
    const value = need(message, 8).getUint32(0, true);
    const index = value & VRING_IDX_MASK;
    this.vring(index);
    if ((value & VRING_NOFD_MASK) !== 0) return { index, fd: -1 };
    if (message.fds.length !== 1) {
      throw new ProtocolError(`${requestName(message.request)} without its descriptor`);
    }
    // A file of another kind could block the queue's thread, or wake it for ever.
    if (shim.ubiblk_is_eventfd(message.fds[0]) <= 0) {
      throw new ProtocolError(`${requestName(message.request)} with no event descriptor`);
    }
    return { index, fd: message.fds.pop() as number };
  }

  private enable(payload: DataView): null {
    const index = payload.getUint32(0, true);
    const vring = this.vring(index);
    vring.enabled = payload.getUint32(4, true) === 1;
    if (vring.enabled) this.startIfReady(index);
    else if (vring.running) this.stopRings([index], Waiting.FINISH);
    return null;
  }

  private startIfReady(index: number): void {
    const vring = this.vrings[index];
    if (vring.running || !vring.enabled || !vring.kicked) return;
    if (!vring.addressed || vring.size === 0) {
      throw new ProtocolError(`ring ${index} is started without its size or addresses`);
    }
    const { size } = vring;
    this.queues.start(index, {
      size,
      descriptors: this.memory.translate(vring.descriptors, size * DESC_BYTES, 16),
      available: this.memory.translate(vring.available, availBytes(size), 2),
      used: this.memory.translate(vring.used, usedBytes(size), 4),
      nextAvailable: vring.nextAvailable,
      kickFd: vring.kickFd,
      callFd: vring.callFd,
      errFd: vring.errFd,
      eventIdx: this.has(F.RING_EVENT_IDX),
      indirect: this.has(F.RING_INDIRECT_DESC),
      inflight: this.inflightOf(index, size),
    });
    vring.running = true;
  }

  /**
   * @param waiting see QueueControl.stop: RECORD where the ring goes on, FINISH where the frontend takes
   *   it back, who may not come again with its record
   */
  private stopRings(indexes: readonly number[], waiting: number): void {
    const bases = this.queues.stop(indexes, waiting);
    indexes.forEach((index, i) => {
      this.vrings[index].running = false;
      this.vrings[index].nextAvailable = bases[i];
    });
  }

  // Configuration space

  private getConfig(message: Message, payload: DataView): Reply {
    const { offset, size } = configPart(message);
    const view = new DataView(new ArrayBuffer(CONFIG_HEADER_BYTES + size));
    view.setUint32(0, offset, true);
    view.setUint32(4, size, true);
    view.setUint32(8, payload.getUint32(8, true), true);
    new Uint8Array(view.buffer, CONFIG_HEADER_BYTES).set(this.config.read(offset, size));
    return this.reply(message, view);
  }

  private setConfig(payload: DataView): null {
    const { offset, size } = configPart({ request: Request.SET_CONFIG, payload });
    const at = payload.byteOffset + CONFIG_HEADER_BYTES;
    if (payload.byteLength < CONFIG_HEADER_BYTES + size) {
      throw new ProtocolError('SET_CONFIG with less than its size');
    }
    const before = this.config.writeback;
    const after = this.config.write(offset, new Uint8Array(payload.buffer, at, size));
    this.queues.setWriteback(after);
    // What was acknowledged from a cache is made as durable as what comes.
    if (before && !after) this.queues.flush();
    return null;
  }

  // In-flight tracking

  private getInflight(message: Message, payload: DataView): Reply {
    const { queues, queueSize } = this.inflightShape(payload);
    // QEMU asks for its `queue-size`, 128, and shows the guest rings of 1024: the record has room for
    // the largest ring. Only pages that are used take memory.
    const size = queues * inflightBytes(Math.max(queueSize, this.options.queueSize));
    const fd = shim.ubiblk_memory_memfd(Buffer.from('ubiblk-inflight\0'), size);
    if (fd < 0) throw new ProtocolError(`no memory for in-flight tracking: ${errnoName(fd)}`);
    const view = new DataView(new ArrayBuffer(INFLIGHT_BYTES));
    writeU64(view, 0, size);
    view.setUint16(16, queues, true);
    view.setUint16(18, queueSize, true);
    return { ...this.reply(message, view), fd };
  }

  private setInflight(message: Message, payload: DataView): null {
    const size = readU64(payload, 0);
    const offset = readU64(payload, 8);
    const { queues, queueSize } = this.inflightShape(payload);
    if (message.fds.length !== 1) throw new ProtocolError('SET_INFLIGHT_FD without its descriptor');
    if (size < queues * inflightBytes(queueSize) || offset % 8 !== 0) {
      throw new ProtocolError('an in-flight record that is too small or not aligned');
    }
    const stopped = this.pause(Waiting.FINISH);
    this.dropInflight();
    const mapped = mapShared(message.fds[0], offset, size, 'the in-flight record');
    this.inflight = { ...mapped, queues, queueBytes: inflightShare(size, queues) };
    this.resume(stopped);
    return null;
  }

  private inflightShape(payload: DataView): { queues: number; queueSize: number } {
    const queues = payload.getUint16(16, true);
    const queueSize = payload.getUint16(18, true);
    if (queues === 0 || queues > this.options.numQueues || queueSize === 0) {
      throw new ProtocolError(`in-flight tracking of ${queues} queues of ${queueSize}`);
    }
    if (queueSize > this.options.queueSize) {
      throw new ProtocolError(`in-flight tracking of queues of ${queueSize} entries`);
    }
    return { queues, queueSize };
  }

  private inflightOf(index: number, size: number): number {
    const record = this.inflight;
    if (!record || index >= record.queues) return 0;
    // A record that another backend made may be too small for the ring: go on without it.
    if (inflightBytes(size) > record.queueBytes) return 0;
    return record.address + index * record.queueBytes;
  }

  private dropInflight(): void {
    if (this.inflight) unmapShared(this.inflight);
    this.inflight = null;
  }

  // Replies

  private u64(message: Message, value: bigint | number): Reply {
    const view = new DataView(new ArrayBuffer(8));
    view.setBigUint64(0, BigInt(value), true);
    return this.reply(message, view);
  }

  private reply(message: Message, payload: DataView): Reply {
    const bytes = new Uint8Array(HEADER_BYTES + payload.byteLength);
    const view = new DataView(bytes.buffer);
    view.setUint32(0, message.request, true);
    view.setUint32(4, VERSION | FLAG_REPLY, true);
    view.setUint32(8, payload.byteLength, true);
    bytes.set(new Uint8Array(payload.buffer, payload.byteOffset, payload.byteLength), HEADER_BYTES);
    return { bytes, fd: -1 };
  }
}

function closeIfOpen(fd: number): void {
  if (fd >= 0) shim.ubiblk_close(fd);
}

/** The payload, if it has at least `length` bytes. */
function need(message: Pick<Message, 'request' | 'payload'>, length: number): DataView {
  if (message.payload.byteLength < length) {
    throw new ProtocolError(
      `${requestName(message.request)} with ${message.payload.byteLength} bytes instead of ${length}`,
    );
  }
  return message.payload;
}

function bits(payload: DataView): bigint {
  return payload.getBigUint64(0, true);
}

function configPart(message: Pick<Message, 'request' | 'payload'>): {
  offset: number;
  size: number;
} {
  const payload = need(message, CONFIG_HEADER_BYTES);
  const offset = payload.getUint32(0, true);
  const size = payload.getUint32(4, true);
  if (size === 0 || offset + size > MAX_PAYLOAD - CONFIG_HEADER_BYTES) {
    throw new ProtocolError(`${size} bytes at ${offset} of the configuration space`);
  }
  return { offset, size };
}
