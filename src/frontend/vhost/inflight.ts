/**
 * The record of requests in flight that outlives this process: vhost-user, "Inflight I/O tracking",
 * split virtqueue. The frontend keeps the memory and hands it to our successor, which so knows what
 * was taken from the available ring and never answered.
 *
 *   struct { u64 features; u16 version, desc_num, last_batch_head, used_idx; } then per descriptor
 *   struct { u8 inflight, padding[5]; u16 next; u64 counter; }
 */
import { windowOver } from '../../../ffi/memory.ts';

const HEADER_BYTES = 16;
const ENTRY_BYTES = 16;
const VERSION = 1;
const ALIGN = 64;

/** Places in the header, in 16-bit words. */
const VERSION_WORD = 4;
const DESC_NUM_WORD = 5;
const LAST_BATCH_HEAD_WORD = 6;
const USED_IDX_WORD = 7;
/** Places in an entry. */
const NEXT_WORD = 3;
const COUNTER_WORD32 = 2;

/** Bytes of one queue's record. */
export function inflightBytes(queueSize: number): number {
  return Math.ceil((HEADER_BYTES + ENTRY_BYTES * queueSize) / ALIGN) * ALIGN;
}

/**
 * Bytes that each queue has in a record of `totalBytes` for `queues` of them: at least what
 * `inflightBytes` of their size says, where whoever made the record gave no more.
 */
export function inflightShare(totalBytes: number, queues: number): number {
  return Math.floor(totalBytes / queues / ALIGN) * ALIGN;
}

export class InflightRecord {
  private readonly bytes: Uint8Array;
  private readonly words: Uint16Array;
  private readonly words32: Uint32Array;
  private counter = 0;
  private lastHead: number;

  /**
   * @param address of this queue's record in this process, 8-byte aligned
   * @param size of the virtqueue
   */
  constructor(
    address: number,
    private readonly size: number,
  ) {
    const memory = windowOver(address, HEADER_BYTES + ENTRY_BYTES * size);
    this.bytes = new Uint8Array(memory);
    this.words = new Uint16Array(memory);
    this.words32 = new Uint32Array(memory);
    this.lastHead = this.words[LAST_BATCH_HEAD_WORD];
  }

  /**
   * Takes the record over from whoever kept it before.
   * @param usedIdx the used ring's index
   * @returns the heads in flight, in the order they were taken; null where nobody kept it before
   */
  recover(usedIdx: number): number[] | null {
    if (this.words[VERSION_WORD] !== VERSION) {
      this.bytes.fill(0);
      this.words[VERSION_WORD] = VERSION;
      this.words[DESC_NUM_WORD] = this.size;
      this.words[USED_IDX_WORD] = usedIdx;
      this.lastHead = 0;
      return null;
    }
    // A batch whose used elements were published, but not yet unmarked.
    const batch = (usedIdx - this.words[USED_IDX_WORD]) & 0xffff;
    let head = this.words[LAST_BATCH_HEAD_WORD];
    for (let i = 0; i < batch && i < this.size && head < this.size; i++) {
      this.bytes[this.entry(head)] = 0;
      head = this.words[this.entry(head) / 2 + NEXT_WORD];
    }
    Atomics.store(this.words, USED_IDX_WORD, usedIdx);
    const heads: { head: number; counter: number }[] = [];
    for (let i = 0; i < this.size; i++) {
      if (this.bytes[this.entry(i)] !== 1) continue;
      const at = this.entry(i) / 4 + COUNTER_WORD32;
      const counter = this.words32[at] + this.words32[at + 1] * 2 ** 32;
      heads.push({ head: i, counter });
      if (counter >= this.counter) this.counter = counter + 1;
    }
    heads.sort((a, b) => a.counter - b.counter);
    return heads.map((h) => h.head);
  }

  /** A chain was taken from the available ring. */
  started(head: number): void {
    const entry = this.entry(head);
    const at = entry / 4 + COUNTER_WORD32;
    const high = Math.floor(this.counter / 2 ** 32);
    this.words32[at] = this.counter - high * 2 ** 32;
    this.words32[at + 1] = high;
    this.counter++;
    Atomics.store(this.bytes, entry, 1);
  }

  /** A used element was added for a chain; before it is published. */
  finishing(head: number): void {
    this.words[this.entry(head) / 2 + NEXT_WORD] = this.lastHead;
    this.lastHead = head;
    Atomics.store(this.words, LAST_BATCH_HEAD_WORD, head);
  }

  /** The used elements of these heads were published. */
  finished(heads: Uint16Array, count: number, usedIdx: number): void {
    for (let i = 0; i < count; i++) Atomics.store(this.bytes, this.entry(heads[i]), 0);
    Atomics.store(this.words, USED_IDX_WORD, usedIdx);
  }

  private entry(head: number): number {
    return HEADER_BYTES + head * ENTRY_BYTES;
  }
}
