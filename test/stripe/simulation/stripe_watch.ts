import { FETCHED, HAS_SOURCE, WRITTEN } from '../../../src/stripe/shared_state.ts';
import type { Checker } from './checker.ts';
import type { FetchWatch } from './sim_source.ts';
import { SECTOR } from './values.ts';
import type { World } from './world.ts';

/** Autofetch makes up for so much time in which it had to wait. */
const SAVED_SECONDS = 1;

/**
 * Who works on which stripe: nobody fetches one that is local or that a guest's request is about to
 * fill, and no guest's request gets at one that isn't local unless it fills it.
 */
export class StripeWatch implements FetchWatch {
  /** Main has stopped, and does nothing any more. */
  stopped = false;
  /** What main waits for. */
  busy = 0;
  private readonly fetching = new Set<number>();
  /** Stripes that a queue has asked for. */
  private readonly asked = new Set<number>();
  /** Others that were fetched all the same, and since when that goes on. */
  private readonly unasked = new Set<number>();
  private readonly beganMs: number;
  private readonly claimed = new Set<number>();
  /** Requests of guests on the disk, by stripe. */
  private readonly filling = new Map<number, number>();

  constructor(
    private readonly world: World,
    private readonly states: Uint8Array,
    private readonly checker: Checker,
  ) {
    this.beganMs = world.timeline.now();
  }

  ask(stripe: number): void {
    this.asked.add(stripe);
  }

  /** Main is about to do something. */
  checkAwake(what: string): void {
    if (this.stopped) this.world.fail(`main has stopped, and does a ${what}`);
  }

  /** Main waits for something to be done. */
  async during(what: string, begin: (done: (result: number) => void) => void): Promise<void> {
    this.checkAwake(what);
    this.busy++;
    const result = await new Promise<number>(begin);
    this.busy--;
    if (result === 0) return;
    throw Object.assign(new Error(`simulated error ${result}`), { code: 'EIO' });
  }

  begun(stripe: number): void {
    this.checkAwake('read of the source');
    if (this.fetching.has(stripe)) this.world.fail(`stripe ${stripe} is fetched twice at once`);
    this.fetching.add(stripe);
    this.checkFetch(stripe);
    if (this.asked.has(stripe) || this.unasked.has(stripe)) return;
    this.unasked.add(stripe);
    this.checkAutofetch(stripe);
  }

  /** Autofetch is on, leaves a buffer to those who wait, and keeps to its rate. */
  private checkAutofetch(stripe: number): void {
    const { world, fetching, unasked } = this;
    const { autofetch, buffers, autofetchBytesPerSecond, shift } = world.scenario;
    if (!autofetch) world.fail(`stripe ${stripe} is fetched, and nobody asked for it`);
    if (buffers > 1 && fetching.size === buffers) world.fail('autofetch has taken all buffers');
    if (autofetchBytesPerSecond === 0) return;
    const seconds = (world.timeline.now() - this.beganMs) / 1000 + SAVED_SECONDS;
    const bytes = (unasked.size - 1) * (SECTOR << shift);
    if (bytes > seconds * autofetchBytesPerSecond + 1) world.fail('autofetch is too fast');
  }

  ended(stripe: number): void {
    this.fetching.delete(stripe);
  }

  claim(stripe: number): void {
    if (this.claimed.has(stripe)) this.world.fail(`stripe ${stripe} was claimed twice`);
    this.claimed.add(stripe);
    this.checkClaim(stripe);
  }

  claimEnded(stripe: number): void {
    this.claimed.delete(stripe);
  }

  /** Something of a stripe that isn't the guest's is written to the disk. */
  checkFetch(stripe: number): void {
    const what = this.isLocal(stripe) ? 'local' : 'claimed';
    if (this.isLocal(stripe) || this.claimed.has(stripe) || this.filling.has(stripe)) {
      this.world.fail(`stripe ${stripe} is fetched while it is ${what}`);
    }
  }

  /** A guest's request gets at the disk. @param whole whether it writes all of the stripe */
  diskBegun(stripe: number, read: boolean, whole: boolean): void {
    this.filling.set(stripe, (this.filling.get(stripe) ?? 0) + 1);
    if (!this.isLocal(stripe)) {
      if (read) this.world.fail(`stripe ${stripe} is read before it is local`);
      else if (!whole) this.world.fail(`stripe ${stripe} is written to before it is local`);
      else if (!this.claimed.has(stripe)) {
        this.world.fail(`stripe ${stripe} is filled without a claim`);
      }
      this.checkClaim(stripe);
      return;
    }
    if (read || !this.world.scenario.trackWritten) return;
    if (!(this.checker.durableBits(stripe) & WRITTEN)) {
      this.world.fail(`stripe ${stripe} is written to before that is recorded`);
    }
    this.checker.noteWritten(stripe);
  }

  diskEnded(stripe: number): void {
    const count = (this.filling.get(stripe) ?? 0) - 1;
    if (count > 0) this.filling.set(stripe, count);
    else this.filling.delete(stripe);
  }

  private checkClaim(stripe: number): void {
    if (this.fetching.has(stripe))
      this.world.fail(`stripe ${stripe} is claimed while it is fetched`);
  }

  private isLocal(stripe: number): boolean {
    return (this.states[stripe] & (HAS_SOURCE | FETCHED)) !== HAS_SOURCE;
  }
}
