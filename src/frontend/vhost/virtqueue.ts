/**
 * The device's side of a split virtqueue (virtio 1.2, section 2.7). The driver is hostile: whatever
 * is wrong with the ring itself throws VirtqueueError, which ends this queue and no other.
 */
import { windowOver } from '../../../ffi/memory.ts';

/** Descriptor flags, section 2.7.5. */
export const DESC_F_NEXT = 1;
export const DESC_F_WRITE = 2;
export const DESC_F_INDIRECT = 4;
const USED_F_NO_NOTIFY = 1;
const AVAIL_F_NO_INTERRUPT = 1;

export const DESC_BYTES = 16;
/** Bytes of the rings of a queue of `size`, sections 2.7.6 and 2.7.8, event fields included. */
export const availBytes = (size: number) => 6 + 2 * size;
export const usedBytes = (size: number) => 6 + 8 * size;

/** The ring breaks the rules; the queue can't go on. */
export class VirtqueueError extends Error {}

/** Where a ring is in this process's memory, and what was negotiated for it. */
export interface VirtqueueLayout {
  size: number;
  /** Addresses in this process, aligned to 16, 2 and 4 bytes. */
  descriptors: number;
  available: number;
  used: number;
  /** The available index to go on from. */
  nextAvailable: number;
  eventIdx: boolean;
  indirect: boolean;
}

export class Virtqueue {
  readonly size: number;
  /** Address of avail.idx, for spinning on it. */
  readonly availIdxAddress: number;
  /** The descriptor table, four words a descriptor. */
  readonly descriptors: Uint32Array;
  readonly indirect: boolean;
  /** The next entry of the available ring to take, and of the used ring to fill; 16-bit counters. */
  nextAvailable: number;
  nextUsed: number;
  private readonly available: Uint16Array;
  private readonly usedRing: Uint32Array;
  private readonly usedHeader: Uint16Array;
  private readonly mask: number;
  private readonly eventIdx: boolean;
  /** The used index that the driver was last asked about interrupts for. */
  private signalled: number;
  private seenAvailable: number;
  private notificationsOn = true;

  constructor(layout: VirtqueueLayout) {
    const { size } = layout;
    this.size = size;
    this.mask = size - 1;
    this.eventIdx = layout.eventIdx;
    this.indirect = layout.indirect;
    this.availIdxAddress = layout.available + 2;
    this.descriptors = new Uint32Array(windowOver(layout.descriptors, size * DESC_BYTES));
    this.available = new Uint16Array(windowOver(layout.available, availBytes(size)));
    const used = windowOver(layout.used, usedBytes(size));
    this.usedHeader = new Uint16Array(used);
    this.usedRing = new Uint32Array(used, 4, size * 2);
    this.nextAvailable = layout.nextAvailable;
    this.seenAvailable = layout.nextAvailable;
    this.nextUsed = Atomics.load(this.usedHeader, 1);
    this.signalled = this.nextUsed;
  }

  /**
   * Takes the next available chain.
   * @returns its head, -1 where there is none
   * @throws VirtqueueError where the index or the head is out of range
   */
  pop(): number {
    if (this.nextAvailable === this.seenAvailable && !this.look()) return -1;
    const head = this.available[2 + (this.nextAvailable & this.mask)];
    if (head >= this.size) {
      throw new VirtqueueError(`the available ring names descriptor ${head} of ${this.size}`);
    }
    this.nextAvailable = (this.nextAvailable + 1) & 0xffff;
    return head;
  }

  /** Whether the driver has made chains available that were not popped yet. */
  get hasAvailable(): boolean {
    return this.nextAvailable !== this.seenAvailable || this.look();
  }

  /** Adds a used element; the driver sees it after `publish`. Section 2.7.8. */
  push(head: number, lengthBytes: number): void {
    const i = (this.nextUsed & this.mask) * 2;
    this.usedRing[i] = head;
    this.usedRing[i + 1] = lengthBytes;
    this.nextUsed = (this.nextUsed + 1) & 0xffff;
  }

  /** Shows the driver the used elements added so far. */
  publish(): void {
    Atomics.store(this.usedHeader, 1, this.nextUsed);
  }

  /** Whether the driver wants an interrupt for what was published since it was last asked. 2.7.7 */
  needsInterrupt(): boolean {
    const from = this.signalled;
    const to = this.nextUsed;
    if (from === to) return false;
    this.signalled = to;
    if (!this.eventIdx) return (Atomics.load(this.available, 0) & AVAIL_F_NO_INTERRUPT) === 0;
    const usedEvent = Atomics.load(this.available, 2 + this.size);
    return ((to - usedEvent - 1) & 0xffff) < ((to - from) & 0xffff);
  }

  /** Asks the driver not to notify; it may still. Section 2.7.10. */
  stopNotifications(): void {
    if (!this.notificationsOn) return;
    this.notificationsOn = false;
    // With event indexes the old avail_event does it: it lies behind.
    if (!this.eventIdx) Atomics.store(this.usedHeader, 0, USED_F_NO_NOTIFY);
  }

  /**
   * Asks the driver to notify of the next chain.
   * @returns true where one came in before the driver could see it: don't sleep
   */
  startNotifications(): boolean {
    this.notificationsOn = true;
    if (this.eventIdx) Atomics.store(this.usedHeader, 2 + this.size * 4, this.nextAvailable);
    else Atomics.store(this.usedHeader, 0, 0);
    return this.look();
  }

  /** Goes on from another place of the available ring. */
  skipTo(index: number): void {
    this.nextAvailable = index & 0xffff;
    this.seenAvailable = this.nextAvailable;
  }

  /** Reads the driver's index anew. */
  private look(): boolean {
    const index = Atomics.load(this.available, 1);
    const count = (index - this.nextAvailable) & 0xffff;
    if (count > this.size) {
      throw new VirtqueueError(
        `the available index ${index} is ${count} ahead in a queue of ${this.size}`,
      );
    }
    this.seenAvailable = index;
    return count > 0;
  }
}
