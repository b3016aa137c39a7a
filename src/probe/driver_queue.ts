/**
 * The driver's side of a split virtqueue (virtio 1.2, section 2.7) in shared memory. Its tables are
 * open to the user of this class, who decides what the descriptors say.
 */
import { shim } from '../../ffi/library.ts';
import {
  availBytes,
  DESC_BYTES,
  DESC_F_NEXT,
  DESC_F_WRITE,
  usedBytes,
} from '../frontend/vhost/virtqueue.ts';

const USED_F_NO_NOTIFY = 1;
const RING_ALIGN = 64;

/** A part of a chain: a guest physical address and a length in bytes. */
export interface Part {
  address: number;
  length: number;
  /** Whether the device writes it. */
  writable: boolean;
}

/** Memory of the guest that this side can look into: SharedMemory, or a test's own. */
export interface WindowedMemory {
  window(offset: number, length: number): ArrayBuffer;
}

/** Bytes of shared memory that a queue of `size` takes. */
export function driverQueueBytes(size: number): number {
  return aligned(size * DESC_BYTES) + aligned(availBytes(size)) + aligned(usedBytes(size));
}

export class DriverQueue {
  /** Places in the shared memory. */
  readonly descriptorsAt: number;
  readonly availableAt: number;
  readonly usedAt: number;
  /** struct virtq_desc, 16 bytes each. */
  readonly descriptors: DataView;
  /** flags, idx, ring, used_event. */
  readonly available: Uint16Array;
  /** Of the used element taken last: the bytes that the device says it wrote. */
  usedLength = 0;
  private readonly usedHeader: Uint16Array;
  private readonly usedRing: Uint32Array;
  private readonly mask: number;
  private nextAvailable = 0;
  private nextUsed = 0;
  /** What was published when the device was last told. */
  private notified = 0;

  /**
   * @param at place in the shared memory, a multiple of 64
   * @param size a power of two
   */
  constructor(
    memory: WindowedMemory,
    at: number,
    readonly size: number,
    private readonly eventIdx: boolean,
  ) {
    this.descriptorsAt = at;
    this.availableAt = at + aligned(size * DESC_BYTES);
    this.usedAt = this.availableAt + aligned(availBytes(size));
    this.mask = size - 1;
    this.descriptors = new DataView(memory.window(this.descriptorsAt, size * DESC_BYTES));
    this.available = new Uint16Array(memory.window(this.availableAt, availBytes(size)));
    const used = memory.window(this.usedAt, usedBytes(size));
    this.usedHeader = new Uint16Array(used);
    this.usedRing = new Uint32Array(used, 4, size * 2);
  }

  /** The device's index of the used ring. */
  get usedIdx(): number {
    return Atomics.load(this.usedHeader, 1);
  }

  /** Makes a chain available; the device sees it after `publish`. */
  add(head: number): void {
    this.available[2 + (this.nextAvailable & this.mask)] = head;
    this.nextAvailable = (this.nextAvailable + 1) & 0xffff;
  }

  /** Shows the device what was added. @returns whether it wants to be told (2.7.10) */
  publish(): boolean {
    const from = this.notified;
    const to = this.nextAvailable;
    if (from === to) return false;
    Atomics.store(this.available, 1, to);
    this.notified = to;
    if (!this.eventIdx) return (Atomics.load(this.usedHeader, 0) & USED_F_NO_NOTIFY) === 0;
    const availEvent = Atomics.load(this.usedHeader, 2 + this.size * 4);
    return ((to - availEvent - 1) & 0xffff) < ((to - from) & 0xffff);
  }

  /** Takes the next chain that the device is done with, -1 where there is none. */
  takeUsed(): number {
    if (this.usedIdx === this.nextUsed) return -1;
    const i = (this.nextUsed & this.mask) * 2;
    this.nextUsed = (this.nextUsed + 1) & 0xffff;
    this.usedLength = this.usedRing[i + 1];
    return this.usedRing[i];
  }

  /** Asks for an interrupt at the next used element. @returns false where one is there already */
  armInterrupt(): boolean {
    if (this.eventIdx) Atomics.store(this.available, 2 + this.size, this.nextUsed);
    return this.usedIdx === this.nextUsed;
  }

  /** Writes a chain into neighbouring descriptors from `head` on. */
  writeChain(head: number, parts: readonly Part[]): void {
    parts.forEach((part, i) => {
      const next = i + 1 < parts.length ? DESC_F_NEXT : 0;
      const flags = (part.writable ? DESC_F_WRITE : 0) | next;
      this.writeDescriptor(head + i, part.address, part.length, flags, next ? head + i + 1 : 0);
    });
  }

  writeDescriptor(
    index: number,
    address: number,
    length: number,
    flags: number,
    next: number,
  ): void {
    putDescriptor(this.descriptors, index * DESC_BYTES, address, length, flags, next);
  }
}

/** Writes a struct virtq_desc. */
export function putDescriptor(
  view: DataView,
  at: number,
  address: number | bigint,
  length: number,
  flags: number,
  next: number,
): void {
  view.setBigUint64(at, BigInt(address), true);
  view.setUint32(at + 8, length, true);
  view.setUint16(at + 12, flags, true);
  view.setUint16(at + 14, next, true);
}

function aligned(bytes: number): number {
  return Math.ceil(bytes / RING_ALIGN) * RING_ALIGN;
}

/** The two event descriptors of a queue. */
export class QueueEvents {
  readonly kickFd = shim.ubiblk_eventfd();
  readonly callFd: number;
  private readonly polled: Int32Array;

  /** @param sharedCallFd another queue's interrupt, which is to be this one's, too */
  constructor(private readonly sharedCallFd?: number) {
    this.callFd = sharedCallFd ?? shim.ubiblk_eventfd();
    this.polled = Int32Array.of(this.callFd, -1);
  }

  kick(): void {
    shim.ubiblk_eventfd_signal(this.kickFd);
  }

  /**
   * Waits for an interrupt, or for something on another descriptor (-1: none).
   * @returns which of the two it was; `nothing` where none came in time
   */
  await(timeoutMs: number, otherFd: number): 'call' | 'other' | 'nothing' {
    const deadlineMs = performance.now() + timeoutMs;
    this.polled[1] = otherFd;
    for (let leftMs = timeoutMs; leftMs > 0; leftMs = Math.ceil(deadlineMs - performance.now())) {
      // Nothing is also what a signal leaves, before its time.
      const ready = shim.ubiblk_poll(this.polled, 2, leftMs);
      if (ready & 1) {
        shim.ubiblk_eventfd_drain(this.callFd);
        return 'call';
      }
      if (ready & 2) return 'other';
    }
    return 'nothing';
  }

  close(): void {
    shim.ubiblk_close(this.kickFd);
    if (this.sharedCallFd === undefined) shim.ubiblk_close(this.callFd);
  }
}
