/**
 * A virtio-blk driver over vhost-user: negotiates, shares memory, sets up one queue, and keeps it
 * busy with reads, writes and flushes.
 */
import { UserError } from '../errors.ts';
import { F } from '../frontend/vhost/block_config.ts';
import {
  PROTOCOL_F_CONFIG,
  PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  PROTOCOL_F_MQ,
  PROTOCOL_F_REPLY_ACK,
  Request,
} from '../frontend/vhost/protocol.ts';
import {
  DESC_BYTES,
  DESC_F_INDIRECT,
  DESC_F_NEXT,
  DESC_F_WRITE,
} from '../frontend/vhost/virtqueue.ts';
import { DriverQueue, driverQueueBytes, putDescriptor, QueueEvents } from './driver_queue.ts';
import {
  configPayload,
  type FrontendConnection,
  regionPayload,
  tablePayload,
  u64Payload,
  vringAddresses,
  vringFd,
  vringState,
} from './frontend_connection.ts';
import { SharedMemory } from './shared_memory.ts';

/** Request types, virtio 1.2, 5.2.6. */
export const T_IN = 0;
export const T_OUT = 1;
export const T_FLUSH = 4;
export const T_GET_ID = 8;

const TYPE_NAMES: Record<number, string> = {
  [T_IN]: 'read',
  [T_OUT]: 'write',
  [T_FLUSH]: 'flush',
  [T_GET_ID]: 'GET_ID',
};
const STATUS_NAMES = ['no error', 'an I/O error', '"unsupported"'];
/** What a status byte is before the device has written it. */
const NO_STATUS = 0xf8;

const ID_BYTES = 20;
const CONFIG_BYTES = 60;
const HEADER_BYTES = 16;
/** Before the data of a slot stand its header, its status and its indirect table. */
const STATUS_AT = HEADER_BYTES;
const TABLE_AT = 64;
const PAGE = 4096;
/** The largest ring that every server takes. */
const MAX_RING = 1024;
/** Guest memory begins above 4 GiB, so that addresses have all their bits. */
const GUEST_BASE = 2 ** 32;

/** What this driver understands. */
const UNDERSTOOD = bitsOf(
  F.SIZE_MAX,
  F.SEG_MAX,
  F.RO,
  F.BLK_SIZE,
  F.FLUSH,
  F.TOPOLOGY,
  F.CONFIG_WCE,
  F.MQ,
  F.RING_INDIRECT_DESC,
  F.RING_EVENT_IDX,
  F.VHOST_PROTOCOL_FEATURES,
  F.VERSION_1,
);
const UNDERSTOOD_PROTOCOL = bitsOf(
  PROTOCOL_F_MQ,
  PROTOCOL_F_REPLY_ACK,
  PROTOCOL_F_CONFIG,
  PROTOCOL_F_CONFIGURE_MEM_SLOTS,
);

/** The device as it describes itself; fields of features that it doesn't have are null. */
export interface DeviceDescription {
  /** Virtio and vhost-user feature bits offered. */
  features: bigint;
  protocolFeatures: bigint;
  capacityBytes: number;
  readOnly: boolean;
  logicalBlockBytes: number;
  physicalBlockBytes: number | null;
  optimalIoBytes: number | null;
  queues: number;
  segmentsMax: number | null;
  segmentBytesMax: number | null;
  /** Whether writes may stay in a cache until a flush. */
  writeback: boolean;
}

export interface ClientOptions {
  /** Requests in flight. */
  depth: number;
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
  readonly device: DeviceDescription;
  /** The largest request, in bytes. */
  readonly transferBytes: number;
  private readonly acked: bigint;
  private readonly protocolAcked: bigint;
  private readonly events: QueueEvents;
  private readonly memory: SharedMemory;
  private readonly queue: DriverQueue;
  private readonly slots: Slot[] = [];
  private readonly perHead: number;

  /**
   * Negotiates and sets the queue up.
   * @throws UserError where the server doesn't answer, or offers too little
   */
  constructor(
    private readonly connection: FrontendConnection,
    private readonly options: ClientOptions,
  ) {
    const { features, protocolFeatures } = this.offers();
    this.acked = features & UNDERSTOOD;
    this.protocolAcked = protocolFeatures & UNDERSTOOD_PROTOCOL;
    this.negotiate();
    this.device = this.describe(features, protocolFeatures);

    const indirect = has(this.acked, F.RING_INDIRECT_DESC);
    const partBytes = Math.min(this.device.segmentBytesMax ?? 2 ** 30, options.transferBytes);
    const wanted = Math.ceil(options.transferBytes / partBytes);
    const room = indirect ? wanted : Math.floor(MAX_RING / options.depth) - 2;
    const parts = Math.max(1, Math.min(wanted, this.device.segmentsMax ?? 1, room));
    const blockMultiple = Math.max(this.device.logicalBlockBytes, 512);
    const most = Math.min(options.transferBytes, parts * partBytes);
    this.transferBytes = Math.max(blockMultiple, most - (most % blockMultiple));
    this.perHead = indirect ? 1 : parts + 2;

    const size = 2 ** Math.ceil(Math.log2(Math.max(2, options.depth * this.perHead)));
    const layout = slotLayout(parts + 2, Math.max(this.transferBytes, PAGE));
    const firstSlot = pages(driverQueueBytes(size));
    const memoryBytes = firstSlot + options.depth * layout.bytes;
    this.memory = new SharedMemory(memoryBytes, GUEST_BASE, options.hugePages);
    this.queue = new DriverQueue(this.memory, 0, size, has(this.acked, F.RING_EVENT_IDX));
    this.events = new QueueEvents();
    for (let i = 0; i < options.depth; i++) {
      const at = firstSlot + i * layout.bytes;
      const slot = new Slot(this.memory, at, layout, partBytes, i * this.perHead);
      this.slots.push(slot);
    }
    this.shareMemory();
    this.startQueue();
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
    own.prepare(type, offset, length);
    if (this.perHead === 1) own.describeIndirect(this.queue);
    else own.describe(this.queue.descriptors, own.head, own.head);
    this.queue.add(own.head);
  }

  /**
   * Keeps all slots busy until the work has no more and every request has been answered.
   * @throws UserError where a request fails, or no answer comes in time
   */
  run(work: Work): void {
    let open = 0;
    for (let slot = 0; slot < this.slots.length && work.next(slot); slot++) open++;
    while (open > 0) {
      const head = this.queue.takeUsed();
      if (head < 0) {
        this.publish();
        this.awaitUsed();
        continue;
      }
      const slot = this.slotOf(head);
      this.slots[slot].check(this.queue.usedLength);
      work.done(slot);
      if (!work.next(slot)) open--;
    }
  }

  /** Puts what was written on stable storage, where the device has a cache. @throws UserError */
  flush(): void {
    if (has(this.acked, F.FLUSH)) this.single(T_FLUSH, 0);
  }

  /** The device's id, at most 20 characters. @throws UserError */
  readId(): string {
    this.single(T_GET_ID, ID_BYTES);
    const bytes = this.data(0).subarray(0, ID_BYTES);
    const end = bytes.indexOf(0);
    return new TextDecoder().decode(bytes.subarray(0, end < 0 ? ID_BYTES : end));
  }

  /** Stops the queue, and gives memory and descriptors back; the connection stays the caller's. */
  close(): void {
    this.connection.ask(Request.GET_VRING_BASE, vringState(0, 0));
    this.release();
  }

  /** Gives memory and descriptors back without a word to the server. */
  release(): void {
    this.events.close();
    this.memory.close();
  }

  private single(type: number, length: number): void {
    let left = 1;
    this.run({
      next: (slot) => {
        if (left-- <= 0) return false;
        this.start(slot, type, 0, length);
        return true;
      },
      done: () => {},
    });
  }

  // Negotiation

  private offers(): { features: bigint; protocolFeatures: bigint } {
    const features = this.askBits(Request.GET_FEATURES);
    if (!has(features, F.VERSION_1) || !has(features, F.VHOST_PROTOCOL_FEATURES)) {
      throw new UserError(
        `the server at '${this.connection.socketPath}' is too old: it does not offer ` +
          'VERSION_1 and protocol features',
      );
    }
    const protocolFeatures = this.askBits(Request.GET_PROTOCOL_FEATURES);
    if (!has(protocolFeatures, PROTOCOL_F_CONFIG)) {
      throw new UserError(
        `the server at '${this.connection.socketPath}' has no configuration space; is it a ` +
          'vhost-user-blk server?',
      );
    }
    return { features, protocolFeatures };
  }

  private negotiate(): void {
    this.connection.send(Request.SET_PROTOCOL_FEATURES, u64Payload(this.protocolAcked));
    this.tell(Request.SET_OWNER, new Uint8Array(0));
    this.tell(Request.SET_FEATURES, u64Payload(this.acked));
  }

  /** struct virtio_blk_config, 5.2.4. */
  private describe(features: bigint, protocolFeatures: bigint): DeviceDescription {
    const { payload } = this.connection.ask(Request.GET_CONFIG, configPayload(0, CONFIG_BYTES));
    if (payload.byteLength < 12 + CONFIG_BYTES) {
      throw new UserError(
        `the server at '${this.connection.socketPath}' refused to show its configuration`,
      );
    }
    const config = new DataView(payload.buffer, 12);
    const where = (bit: number, value: number) => (has(this.acked, bit) ? value : null);
    const block = where(F.BLK_SIZE, config.getUint32(20, true)) ?? 512;
    return {
      features,
      protocolFeatures,
      capacityBytes: Number(config.getBigUint64(0, true)) * 512,
      readOnly: has(features, F.RO),
      logicalBlockBytes: block,
      physicalBlockBytes: where(F.TOPOLOGY, block * 2 ** config.getUint8(24)),
      optimalIoBytes: where(F.TOPOLOGY, block * config.getUint32(28, true)),
      queues: where(F.MQ, config.getUint16(34, true)) ?? 1,
      // Zero says nothing, in servers that fill the field in for nobody.
      segmentsMax: where(F.SEG_MAX, config.getUint32(12, true)) || null,
      segmentBytesMax: where(F.SIZE_MAX, config.getUint32(8, true)) || null,
      writeback: where(F.CONFIG_WCE, config.getUint8(32)) !== 0 && has(features, F.FLUSH),
    };
  }

  private shareMemory(): void {
    const { guestAddress, userAddress, length, fd } = this.memory;
    const region = { guestAddress, userAddress, length, fileOffset: 0 };
    if (has(this.protocolAcked, PROTOCOL_F_CONFIGURE_MEM_SLOTS)) {
      this.tell(Request.ADD_MEM_REG, regionPayload(region), [fd]);
    } else {
      this.tell(Request.SET_MEM_TABLE, tablePayload([region]), [fd]);
    }
  }

  private startQueue(): void {
    const { queue, memory, events } = this;
    const at = (offset: number) => memory.userAddress + offset;
    const addresses = vringAddresses(
      0,
      at(queue.descriptorsAt),
      at(queue.usedAt),
      at(queue.availableAt),
    );
    this.tell(Request.SET_VRING_NUM, vringState(0, queue.size));
    this.tell(Request.SET_VRING_BASE, vringState(0, 0));
    this.tell(Request.SET_VRING_ADDR, addresses);
    this.tell(Request.SET_VRING_CALL, vringFd(0), [events.callFd]);
    this.tell(Request.SET_VRING_KICK, vringFd(0), [events.kickFd]);
    this.tell(Request.SET_VRING_ENABLE, vringState(0, 1));
  }

  /** Sends a message without an answer of its own; learns whether it was done where it can. */
  private tell(request: number, payload: Uint8Array, fds: readonly number[] = []): void {
    if (has(this.protocolAcked, PROTOCOL_F_REPLY_ACK)) {
      this.connection.askAck(request, payload, fds);
    } else {
      this.connection.send(request, payload, fds);
    }
  }

  private askBits(request: number): bigint {
    const { payload } = this.connection.ask(request);
    return payload.byteLength === 8 ? payload.getBigUint64(0, true) : 0n;
  }

  // The queue

  private publish(): void {
    if (this.queue.publish()) this.events.kick();
  }

  private awaitUsed(): void {
    if (!this.queue.armInterrupt()) return;
    const came = this.events.await(this.options.timeoutMs, this.connection.fd);
    if (came === 'call') return;
    // A server says nothing unasked: there is only the end of the connection to read.
    if (came === 'other') throw this.connection.closedError();
    // An interrupt that was lost is the server's mistake as well, but a different one.
    const what = this.queue.armInterrupt()
      ? 'answers no request any more'
      : 'answered a request without an interrupt';
    throw new UserError(
      `the server at '${this.connection.socketPath}' ${what} ` +
        `(waited ${this.options.timeoutMs / 1000} s)`,
    );
  }

  private slotOf(head: number): number {
    const slot = head / this.perHead;
    if (!Number.isInteger(slot) || !this.slots[slot]?.busy) {
      throw new UserError(
        `the server at '${this.connection.socketPath}' answered descriptor ${head}, which was ` +
          'not in flight',
      );
    }
    return slot;
  }
}

interface SlotLayout {
  dataAt: number;
  bytes: number;
}

function slotLayout(descriptors: number, dataBytes: number): SlotLayout {
  const dataAt = pages(TABLE_AT + descriptors * DESC_BYTES);
  return { dataAt, bytes: dataAt + pages(dataBytes) };
}

/** The memory of one request: header, status, indirect table, data. */
class Slot {
  readonly data: Uint8Array;
  busy = false;
  private readonly control: DataView;
  private readonly address: number;
  private readonly dataAddress: number;
  private type = -1;
  private offset = 0;
  private length = -1;
  /** Whether the tables describe this chain already, so that most requests write no descriptor. */
  private described = false;
  private descriptors = 0;

  constructor(
    memory: SharedMemory,
    at: number,
    layout: SlotLayout,
    private readonly partBytes: number,
    readonly head: number,
  ) {
    this.control = new DataView(memory.window(at, layout.dataAt));
    this.data = new Uint8Array(memory.window(at + layout.dataAt, layout.bytes - layout.dataAt));
    this.address = memory.guestAddress + at;
    this.dataAddress = this.address + layout.dataAt;
  }

  prepare(type: number, offset: number, length: number): void {
    const { control } = this;
    if (type !== this.type || length !== this.length) this.described = false;
    this.type = type;
    this.offset = offset;
    this.length = length;
    this.busy = true;
    const sector = offset / 512;
    control.setUint32(0, type, true);
    control.setUint32(4, 0, true);
    control.setUint32(8, sector % 2 ** 32, true);
    control.setUint32(12, Math.floor(sector / 2 ** 32), true);
    control.setUint8(STATUS_AT, NO_STATUS);
  }

  /** Writes the chain into a table from the descriptor `first` on, whose own number is `next`. */
  describe(table: DataView, first: number, next: number): void {
    if (this.described) return;
    this.described = true;
    let index = 0;
    const put = (address: number, length: number, flags: number) => {
      const last = (flags & DESC_F_NEXT) === 0;
      const at = (first + index) * DESC_BYTES;
      putDescriptor(table, at, address, length, flags, last ? 0 : next + index + 1);
      index++;
    };
    const dataFlags = this.type === T_OUT ? DESC_F_NEXT : DESC_F_NEXT | DESC_F_WRITE;
    put(this.address, HEADER_BYTES, DESC_F_NEXT);
    for (let at = 0; at < this.length; at += this.partBytes) {
      const part = Math.min(this.partBytes, this.length - at);
      put(this.dataAddress + at, part, dataFlags);
    }
    put(this.address + STATUS_AT, 1, DESC_F_WRITE);
    this.descriptors = index;
  }

  describeIndirect(queue: DriverQueue): void {
    if (this.described) return;
    this.describe(this.control, TABLE_AT / DESC_BYTES, 0);
    const length = this.descriptors * DESC_BYTES;
    queue.writeDescriptor(this.head, this.address + TABLE_AT, length, DESC_F_INDIRECT, 0);
  }

  /** @throws UserError where the answer isn't success */
  check(usedLength: number): void {
    this.busy = false;
    const status = this.control.getUint8(STATUS_AT);
    const name = TYPE_NAMES[this.type];
    const what = this.length > 0 ? `${name} of ${this.length} bytes at ${this.offset}` : name;
    if (status !== 0) {
      const said = STATUS_NAMES[status] ?? 'no status';
      throw new UserError(`the server answered a ${what} with ${said}; its log says why`);
    }
    const written = this.type === T_IN || this.type === T_GET_ID ? this.length + 1 : 1;
    if (usedLength > written) {
      throw new UserError(
        `the server says it wrote ${usedLength} bytes for a ${what}, where ${written} have room`,
      );
    }
  }
}

function pages(bytes: number): number {
  return Math.ceil(bytes / PAGE) * PAGE;
}

function bitsOf(...bits: readonly number[]): bigint {
  return bits.reduce((all, bit) => all | (1n << BigInt(bit)), 0n);
}

function has(bits: bigint, bit: number): boolean {
  return ((bits >> BigInt(bit)) & 1n) === 1n;
}
