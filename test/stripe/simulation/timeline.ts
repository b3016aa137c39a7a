import { drainMicrotasks } from 'bun:jsc';
import type { Clock } from '../../../src/stripe/interfaces.ts';

interface Event {
  atMs: number;
  /** Breaks ties: what was planned first comes first. */
  number: number;
  action: () => void;
}

/**
 * Virtual time. Whatever happens later is an event here; between two events all promises that can go
 * on do so.
 */
export class Timeline implements Clock {
  steps = 0;
  private nowMs = 0;
  private planned = 0;
  /** A binary heap, the earliest first. */
  private heap: Event[] = [];

  now(): number {
    return this.nowMs;
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    if (signal?.aborted) return Promise.resolve();
    return new Promise((resolve) => {
      signal?.addEventListener('abort', () => resolve());
      this.after(ms, resolve);
    });
  }

  /** Plans something, `ms` milliseconds from now. */
  after(ms: number, action: () => void): void {
    const event = { atMs: this.nowMs + Math.max(ms, 0), number: this.planned++, action };
    const { heap } = this;
    let at = heap.length;
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (!earlier(event, heap[parent])) break;
      heap[at] = heap[parent];
      at = parent;
    }
    heap[at] = event;
  }

  /** Lets the next event happen, and all that follows from it at once; false where there is none. */
  step(): boolean {
    const event = this.take();
    if (!event) return false;
    this.nowMs = event.atMs;
    this.steps++;
    event.action();
    drainMicrotasks();
    return true;
  }

  /** Nothing of what was planned happens any more. */
  clear(): void {
    drainMicrotasks();
    this.heap = [];
  }

  private take(): Event | null {
    const { heap } = this;
    const first = heap[0];
    const moved = heap.pop();
    if (!first || !moved) return null;
    if (heap.length === 0) return first;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && earlier(heap[child + 1], heap[child])) child++;
      if (!earlier(heap[child], moved)) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = moved;
    return first;
  }
}

function earlier(a: Event, b: Event): boolean {
  return a.atMs < b.atMs || (a.atMs === b.atMs && a.number < b.number);
}
