import { EIO } from '../../../ffi/errno.ts';
import { type BlockDevice, type BlockRequest, READ } from '../../../src/device/request.ts';
import type { StripeBuffer, StripeSource } from '../../../src/stripe/interfaces.ts';
import { sourceSector } from './checker.ts';
import type { Memory } from './memory.ts';
import { SECTOR, store, wordsOf } from './values.ts';
import type { World } from './world.ts';

/** How long a read may hang of a source that is gone. */
const GONE_MS = 1_000_000;

/** What the source and whoever copies from it tell of their work. */
export interface FetchWatch {
  /** @param more another try of the same fetch */
  begun(stripe: number, more?: boolean): void;
  /** @param more another try of the same fetch follows */
  ended(stripe: number, more?: boolean): void;
  failed(stripe: number): void;
  /** Something of it is about to be put onto the disk. */
  checkFetch(stripe: number): void;
}

export class SimSource implements StripeSource {
  readonly description = 'simulated';
  readonly sizeBytes: number;
  /** It is told to close, and it has. */
  closing = false;
  closed = false;
  readonly copy?: StripeSource['copy'];
  /** Stripes that it has tried to put onto the disk by itself. */
  private readonly copied = new Set<number>();

  /**
   * @param put has the disk hold something at once
   * @param onClose is told when everything has been asked for
   */
  constructor(
    private readonly world: World,
    private readonly watch: FetchWatch,
    private readonly put: (first: number, values: number[]) => void,
    private readonly onClose: () => void,
  ) {
    this.sizeBytes = world.scenario.sourceBytes;
    if (world.scenario.copies) this.copy = (...range) => this.copies(...range);
  }

  /** Some outages end without anybody being told. */
  whenBack(listener: () => void): void {
    const { timeline, scenario } = this.world;
    const told = () => {
      if (!this.closing) listener();
    };
    for (const { toMs } of scenario.outages) {
      if (toMs > timeline.now() && Math.floor(toMs) % 3 === 1)
        timeline.after(toMs - timeline.now(), told);
    }
  }

  has(stripe: number): boolean {
    return this.world.scenario.hasSource[stripe] ?? false;
  }

  async read(stripe: number, buffer: StripeBuffer, stop: AbortSignal): Promise<boolean> {
    const { world } = this;
    const { scenario, timeline, dice } = world;
    const first = stripe << scenario.shift;
    const count = Math.min(1 << scenario.shift, scenario.diskSectors - first);
    if (this.closing) world.fail(`stripe ${stripe} was asked of a source that is closed`);
    if (!this.has(stripe)) world.fail(`the source was asked for stripe ${stripe}`);
    if (buffer.bytes.length !== count * SECTOR) world.fail(`wrong length for stripe ${stripe}`);
    this.watch.begun(stripe, this.copied.delete(stripe));
    world.note(() => `source: read stripe ${stripe}`);
    if (scenario.instantZeroes && scenario.zeroStripes[stripe] && !this.isAway) return false;
    const signal = scenario.deaf ? new AbortController().signal : stop;
    await timeline.sleep(dice.delayMs(scenario.sourceMs), signal);
    const error = await this.trouble(signal);
    const words = wordsOf(buffer.bytes);
    // Nothing is written then.
    if (!error && stop.aborted) this.watch.ended(stripe);
    if (!error && scenario.zeroStripes[stripe]) return false;
    // A read that fails leaves a part of what it was to bring.
    const filled = error ? dice.below(count + 1) : count;
    for (let i = 0; i < filled; i++) store(words, i, sourceSector(scenario, first + i));
    if (!error) return true;
    this.watch.ended(stripe);
    this.watch.failed(stripe);
    world.note(() => `source: stripe ${stripe} fails: ${error}`);
    throw new Error(error);
  }

  async close(): Promise<void> {
    const { timeline, dice, scenario } = this.world;
    if (this.closing) this.world.fail('the source was closed twice');
    this.closing = true;
    this.onClose();
    await timeline.sleep(dice.delayMs(scenario.sourceMs));
    this.closed = true;
    this.world.note(() => 'source: closed');
  }

  private async copies(stripe: number, offset: number, length: number): Promise<boolean> {
    const { world, watch } = this;
    const { timeline, dice, scenario } = world;
    if (this.closing) world.fail(`stripe ${stripe} was asked of a source that is closed`);
    watch.begun(stripe);
    this.copied.add(stripe);
    await timeline.sleep(dice.delayMs(scenario.sourceMs));
    watch.ended(stripe, true);
    const gone = world.sourceGone || offset + length > this.sizeBytes;
    if (gone || scenario.zeroStripes[stripe] || dice.chance(4)) return false;
    world.note(() => `source: copies stripe ${stripe}`);
    const first = offset / SECTOR;
    const values = Array.from({ length: length / SECTOR }, (_, i) => first + i);
    watch.checkFetch(stripe);
    this.copied.delete(stripe);
    this.put(
      first,
      values.map((sector) => sourceSector(scenario, sector)),
    );
    watch.ended(stripe);
    return true;
  }

  private get isAway(): boolean {
    const { sourceGone, faulty, scenario, timeline } = this.world;
    const now = timeline.now();
    return (
      sourceGone ||
      (faulty && scenario.outages.some(({ fromMs, toMs }) => fromMs <= now && now < toMs))
    );
  }

  private async trouble(signal: AbortSignal): Promise<string | null> {
    const { world } = this;
    const { scenario, timeline, dice } = world;
    if (signal.aborted) return 'given up';
    if (world.sourceGone) {
      if (dice.chance(2)) await timeline.sleep(GONE_MS, signal);
      return 'gone';
    }
    const now = timeline.now();
    const outage = scenario.outages.find(({ fromMs, toMs }) => fromMs <= now && now < toMs);
    if (outage && world.faulty) {
      if (dice.chance(2)) await timeline.sleep(outage.toMs - now, signal);
      return 'away';
    }
    const { source } = scenario.faults;
    return world.faulty && source > 0 && dice.chance(source) ? 'bad luck' : null;
  }
}

/** The image of the source, as queues read it. */
export class SimImage implements BlockDevice {
  inFlight = 0;
  closed = false;

  /** @param awake the queue has taken a completion */
  constructor(
    private readonly world: World,
    private readonly memory: Memory,
    private readonly awake: () => void,
  ) {}

  submit(request: BlockRequest): void {
    const { world, memory } = this;
    const { scenario, timeline, dice } = world;
    if (this.closed) world.fail('the image was read after it was closed');
    if (request.op !== READ) world.fail('the image was asked for more than a read');
    if (request.offset + request.length > scenario.sourceBytes) {
      world.fail(`a read goes beyond the end of the image: ${request.offset}+${request.length}`);
    }
    this.inFlight++;
    timeline.after(dice.delayMs(scenario.diskMs), () => {
      this.inFlight--;
      if (this.closed) world.fail('the image was closed while it was read');
      const first = request.offset / SECTOR;
      for (let i = 0; i < request.length / SECTOR; i++) {
        memory.store(request.address, i, sourceSector(scenario, first + i));
      }
      // No reason for the guest's read to fail: main fetches the stripe.
      const fails = world.faulty && scenario.faults.image > 0 && dice.chance(scenario.faults.image);
      request.result = fails ? -EIO : 0;
      request.owner.completed(request);
      this.awake();
    });
  }
}
