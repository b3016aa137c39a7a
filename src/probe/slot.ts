/** The memory of one request, and the descriptor chain that leads to its parts. */
import { UserError } from '../errors.ts';
import {
  DESC_BYTES,
  DESC_F_INDIRECT,
  DESC_F_NEXT,
  DESC_F_WRITE,
} from '../frontend/vhost/virtqueue.ts';
import { type DriverQueue, putDescriptor } from './driver_queue.ts';
import type { SharedMemory } from './shared_memory.ts';

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

const HEADER_BYTES = 16;
/** Before the data of a slot stand its header, its status and its indirect table. */
const STATUS_AT = HEADER_BYTES;
const TABLE_AT = 64;
const PAGE = 4096;

export interface SlotLayout {
  dataAt: number;
  bytes: number;
}

export function slotLayout(descriptors: number, dataBytes: number): SlotLayout {
  const dataAt = pages(TABLE_AT + descriptors * DESC_BYTES);
  return { dataAt, bytes: dataAt + pages(dataBytes) };
}

/** The memory of one request: header, status, indirect table, data. */
export class Slot {
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

/** Rounds up to whole pages. */
export function pages(bytes: number): number {
  return Math.ceil(bytes / PAGE) * PAGE;
}
