/** Rests between attempts to connect, which end early when there is a reason to try at once. */

/** Milliseconds before each attempt; the last one stays. */
export const RECONNECT_MS: readonly number[] = [0, 500, 1000, 2000, 4000, 8000, 16_000, 30_000];

export class Rests {
  private readonly alarms = new Set<() => void>();

  /** Until so many milliseconds have passed, or `end` is called. */
  rest(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const alarm = () => {
        clearTimeout(timer);
        this.alarms.delete(alarm);
        resolve();
      };
      const timer = setTimeout(alarm, ms);
      this.alarms.add(alarm);
    });
  }

  /** Ends all rests. */
  end(): void {
    for (const alarm of this.alarms) alarm();
  }
}
