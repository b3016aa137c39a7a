import { FETCHED, HAS_SOURCE, WRITTEN } from '../../../src/stripe/shared_state.ts';
import type { Checker } from './checker.ts';
import type { FetchWatch } from './sim_source.ts';
import { SECTOR } from './values.ts';
import type { World } from './world.ts';

/** Autofetch makes up for so much time in which it had to wait. */
const SAVED_SECONDS = 1;

/** From a fetch or a sync that fails until a stripe is had that was begun since. */
interface Outage {
  begun: Set<number>;
  /** What of it may still succeed. */
  trying: Set<number>;
}

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
  /** Stripes that a queue has asked for, and those that it has wished for. */
  private readonly asked = new Set<number>();
  private readonly wished = new Set<number>();
  /** Others that were fetched all the same, and since when that goes on. */
  private readonly unasked = new Set<number>();
  private readonly beganMs: number;
  /** Stripes whose fetch was begun, ever. */
  private readonly begunEver = new Set<number>();
  /** Those that nobody has asked for, until they are local or have failed. */
  private readonly unfinished = new Set<number>();
  private outage: Outage | null = null;
  /** Fetches that were under way when a sync failed: what they have written may be lost. */
  private readonly doubtful = new Set<number>();
  private readonly claimed = new Set<number>();
  private readonly everClaimed = new Set<number>();
  private zeroedAt = -1;
  private zeroed = 0;
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
    this.unfinished.delete(stripe);
  }

  wish(stripe: number): void {
    this.wished.add(stripe);
  }

  /** A stripe could not be read, or not be written. */
  failed(stripe: number): void {
    const outage = this.goesOn() ?? { begun: new Set(), trying: new Set() };
    outage.begun.delete(stripe);
    outage.trying.delete(stripe);
    this.outage = outage;
    this.unfinished.delete(stripe);
  }

  /** What is not durable may be lost, and is fetched once more. */
  syncFailed(): void {
    const begun = this.goesOn()?.begun ?? new Set();
    this.outage = { begun, trying: new Set() };
    this.unfinished.clear();
    for (const stripe of this.fetching) this.doubtful.add(stripe);
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

  begun(stripe: number, more = false): void {
    this.checkAwake('read of the source');
    if (this.fetching.has(stripe)) this.world.fail(`stripe ${stripe} is fetched twice at once`);
    this.fetching.add(stripe);
    this.checkFetch(stripe);
    this.begunEver.add(stripe);
    if (more) return;
    if (!this.asked.has(stripe)) this.checkUnawaited(stripe);
    this.outage?.begun.add(stripe);
    this.outage?.trying.add(stripe);
    if (this.asked.has(stripe) || this.wished.has(stripe) || this.unasked.has(stripe)) return;
    this.unasked.add(stripe);
    this.checkAutofetch(stripe);
  }

  /**
   * What nobody waits for lets others go first, leaves a buffer to them, waits until what came before is
   * recorded, and is one stripe at a time while nothing succeeds.
   */
  private checkUnawaited(stripe: number): void {
    const { world, unfinished } = this;
    const { buffers, mostUnrecorded } = world.scenario;
    if (buffers > 1 && this.fetching.size === buffers) {
      world.fail(`stripe ${stripe}, that nobody waits for, has taken the last buffer`);
    }
    for (const other of this.asked) {
      if (world.sourceGone || this.begunEver.has(other) || this.isLocal(other)) continue;
      if (this.everClaimed.has(other)) continue;
      world.fail(`stripe ${stripe} is fetched, and stripe ${other} is waited for`);
    }
    for (const other of unfinished) if (this.isLocal(other)) unfinished.delete(other);
    unfinished.add(stripe);
    if (unfinished.size > mostUnrecorded) world.fail(`${unfinished.size} stripes are on their way`);
    this.checkProbe(stripe);
  }

  private checkProbe(stripe: number): void {
    for (const other of this.goesOn()?.trying ?? []) {
      if (other === stripe || this.asked.has(other)) continue;
      this.world.fail(`nothing succeeds, and stripe ${stripe} is tried beside ${other}`);
    }
  }

  private goesOn(): Outage | null {
    for (const stripe of this.outage?.begun ?? []) if (this.isLocal(stripe)) this.outage = null;
    return this.outage;
  }

  /** Autofetch is on, and keeps to its rate. */
  private checkAutofetch(stripe: number): void {
    const { world, unasked } = this;
    const { autofetch, autofetchBytesPerSecond, shift } = world.scenario;
    if (!autofetch) world.fail(`stripe ${stripe} is fetched, and nobody asked for it`);
    if (autofetchBytesPerSecond === 0) return;
    const seconds = (world.timeline.now() - this.beganMs) / 1000 + SAVED_SECONDS;
    const bytes = (unasked.size - 1) * (SECTOR << shift);
    if (bytes > seconds * autofetchBytesPerSecond + 1) world.fail('autofetch is too fast');
  }

  /** @param more another try of the same fetch follows */
  ended(stripe: number, more = false): void {
    this.fetching.delete(stripe);
    // It counts as failed, whatever came of it.
    if (!more && this.doubtful.delete(stripe)) this.failed(stripe);
  }

  claim(stripe: number): void {
    if (this.claimed.has(stripe)) this.world.fail(`stripe ${stripe} was claimed twice`);
    this.claimed.add(stripe);
    this.everClaimed.add(stripe);
    this.outage?.begun.delete(stripe);
    this.outage?.trying.delete(stripe);
    this.checkClaim(stripe);
  }

  /** A stripe of zeroes took no time. */
  zeroedAtOnce(): void {
    const { timeline, scenario } = this.world;
    this.zeroed = this.zeroedAt === timeline.steps ? this.zeroed + 1 : 1;
    this.zeroedAt = timeline.steps;
    if (this.zeroed > scenario.buffers) this.world.fail('main zeroes stripe after stripe at once');
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
