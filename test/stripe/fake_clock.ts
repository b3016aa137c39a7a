import type { Clock } from '../../src/stripe/interfaces.ts';

interface Timer {
  at: number;
  wake: () => void;
}

/** Time passes when a test says so. */
export class FakeClock implements Clock {
  time = 0;
  /** How long it takes to look at it. */
  lookMs = 0;
  shortestSleepMs = Number.POSITIVE_INFINITY;
  private timers: Timer[] = [];

  now(): number {
    this.time += this.lookMs;
    return this.time;
  }

  sleep(ms: number, signal?: AbortSignal): Promise<void> {
    this.shortestSleepMs = Math.min(this.shortestSleepMs, ms);
    if (signal?.aborted) return Promise.resolve();
    return new Promise((wake) => {
      const timer = { at: this.time + ms, wake };
      this.timers.push(timer);
      signal?.addEventListener('abort', () => {
        this.timers = this.timers.filter((other) => other !== timer);
        wake();
      });
    });
  }

  /** Lets so many milliseconds pass, and all that happens in them. */
  async pass(ms: number): Promise<void> {
    const end = this.time + ms;
    for (;;) {
      await settled();
      const next = Math.min(...this.timers.map(({ at }) => at));
      if (next > end) break;
      this.time = Math.max(this.time, next);
      const due = this.timers.filter(({ at }) => at <= next);
      this.timers = this.timers.filter(({ at }) => at > next);
      for (const { wake } of due) wake();
    }
    this.time = end;
  }
}

/** Whatever promises lead to has happened. */
export function settled(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}
