/** Memory for stripes under way, bounded whatever the archive's size, and turns to use it. */
import { availableParallelism } from 'node:os';
import { type ObjectForm, ObjectLane, objectBound, Slot } from './object_codec.ts';

/** For slots of one kind of work. */
const MEMORY_BYTES = 96 << 20;
const MIN_SLOTS = 2;

export class Slots {
  readonly all: Slot[];
  private readonly lane = new ObjectLane(availableParallelism());

  /** @param parallel how many calls to a store are under way at once, at best */
  constructor(form: ObjectForm, parallel: number) {
    const each = form.stripeSectors * 512 + objectBound(form);
    const wanted = parallel + this.lane.threads;
    const count = Math.max(MIN_SLOTS, Math.min(wanted, Math.floor(MEMORY_BYTES / each)));
    this.all = Array.from({ length: count }, () => new Slot(form, this.lane));
  }

  /**
   * Does work for each number below `count`, in their order, as many at a time as there are slots.
   * @param failed is called at once when the first one fails, so that others needn't go on
   * @throws whatever that one throws, when those that were begun have ended
   */
  async forEach(
    count: number,
    work: (number: number, slot: Slot) => Promise<void>,
    signal: AbortSignal,
    failed: () => void,
  ): Promise<void> {
    let next = 0;
    let failure: { error: unknown } | null = null;
    const fail = (error: unknown) => {
      if (failure) return;
      failure = { error };
      failed();
    };
    const interrupt = () => fail(signal.reason);
    signal.addEventListener('abort', interrupt);
    if (signal.aborted) interrupt();
    const turns = this.all.map(async (slot) => {
      while (!failure && next < count) {
        try {
          await work(next++, slot);
        } catch (error) {
          fail(error);
        }
      }
    });
    await Promise.all(turns);
    signal.removeEventListener('abort', interrupt);
    const first = failure as { error: unknown } | null;
    if (first) throw first.error;
  }

  /** Nothing may be under way. */
  free(): void {
    for (const slot of this.all) slot.free();
    this.lane.close();
  }
}
