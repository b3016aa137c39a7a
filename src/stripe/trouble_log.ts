/** Log lines for what fails again and again: one when it begins, and one, with how often, when it is over. */
import type { Log } from '../log.ts';
import type { Clock } from './interfaces.ts';

/** It is over when nothing has failed for so long. */
const CALM_MS = 5000;
/** Who hasn't failed for so long fails anew, whether the end was noticed or not. */
const FORGOTTEN_MS = 600_000;

export class TroubleLog {
  private failures = 0;
  private lastMs = 0;
  private calming = false;

  /**
   * @param over what is told when it is over; how many `tries` had failed is added
   * @param signal nothing is told any more
   */
  constructor(
    private readonly log: Pick<Log, 'warn' | 'info'>,
    private readonly clock: Clock,
    private readonly over: string,
    private readonly signal: AbortSignal,
  ) {}

  failed(message: string): void {
    const now = this.clock.now();
    if (this.failures > 0 && now - this.lastMs > FORGOTTEN_MS) this.failures = 0;
    this.lastMs = now;
    if (this.failures++ === 0) this.log.warn(message);
  }

  /** Something has succeeded, and nothing is known to fail. */
  succeeded(): void {
    if (this.failures === 0 || this.calming) return;
    this.calming = true;
    this.clock.sleep(CALM_MS, this.signal).then(() => {
      this.calming = false;
      if (!this.signal.aborted) this.end();
    });
  }

  private end(): void {
    if (this.clock.now() - this.lastMs < CALM_MS) return;
    const { failures } = this;
    this.failures = 0;
    this.log.info(`${this.over}; ${failures === 1 ? '1 try' : `${failures} tries`} had failed`);
  }
}
