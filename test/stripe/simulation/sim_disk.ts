import {
  type BlockDevice,
  type BlockRequest,
  DISCARD,
  FLUSH,
  opName,
  READ,
  WRITE,
} from '../../../src/device/request.ts';
import type { MetadataStore, StripeBuffer, TargetDisk } from '../../../src/stripe/interfaces.ts';
import type { Memory } from './memory.ts';
import type { Opening, SimFile } from './sim_file.ts';
import type { StripeWatch } from './stripe_watch.ts';
import { load, SECTOR, wordsOf, ZERO } from './values.ts';
import type { World } from './world.ts';

/** The disk as main sees it. */
export class SimTarget implements TargetDisk {
  /** Main has the disk open for itself: what a queue was told of is told to main, too. */
  private readonly opening: Opening;

  constructor(
    private readonly world: World,
    private readonly disk: SimFile<number>,
    private readonly watch: StripeWatch,
  ) {
    this.opening = disk.open();
  }

  write(offset: number, data: StripeBuffer): Promise<void> {
    const words = wordsOf(data.bytes);
    return this.change(offset, data.bytes.length, (index) => load(words, index));
  }

  async zero(offset: number, length: number): Promise<void> {
    const { watch } = this;
    const { instantZeroes, shift } = this.world.scenario;
    if (!instantZeroes) {
      await this.change(offset, length, () => ZERO);
      return;
    }
    const [first, count] = [offset / SECTOR, length / SECTOR];
    watch.checkAwake('write to the disk');
    watch.checkFetch(first >> shift);
    watch.zeroedAtOnce();
    this.disk.writeNow(first, new Array(count).fill(ZERO));
    watch.ended(first >> shift);
  }

  sync(): Promise<void> {
    return this.watch.during('sync of the disk', (done) =>
      this.disk.sync(this.opening, (result) => {
        if (result !== 0) this.watch.syncFailed();
        done(result);
      }),
    );
  }

  private change(offset: number, length: number, valueAt: (i: number) => number): Promise<void> {
    const { shift } = this.world.scenario;
    const [first, count] = [offset / SECTOR, length / SECTOR];
    const stripe = first >> shift;
    if (stripe << shift !== first || count > 1 << shift) {
      this.world.fail(`main writes sectors ${first}+${count}, which are not a stripe`);
    }
    this.watch.checkFetch(stripe);
    return this.watch.during('write to the disk', (done) => {
      this.disk.write(first, count, valueAt, false, (result) => {
        this.watch.ended(stripe);
        if (result !== 0) this.watch.failed(stripe);
        done(result);
      });
    });
  }
}

/** The disk as a queue sees it. */
export class SimDevice implements BlockDevice {
  inFlight = 0;

  /**
   * @param opening all queues have the disk open together
   * @param awake the queue has taken a completion
   */
  constructor(
    private readonly world: World,
    private readonly disk: SimFile<number>,
    private readonly opening: Opening,
    private readonly memory: Memory,
    private readonly watch: StripeWatch,
    private readonly awake: () => void,
  ) {}

  submit(request: BlockRequest): void {
    this.inFlight++;
    const end = (result: number) => {
      this.inFlight--;
      this.eachStripe(request, (stripe) => this.watch.diskEnded(stripe));
      request.result = result;
      request.owner.completed(request);
      this.awake();
    };
    this.world.note(
      () => `disk: ${opName(request.op)} ${request.offset / SECTOR}+${request.length / SECTOR}`,
    );
    if (request.op === FLUSH) {
      this.disk.sync(this.opening, end);
      return;
    }
    this.eachStripe(request, (stripe, whole) =>
      this.watch.diskBegun(stripe, request.op === READ, whole),
    );
    const [first, count] = [request.offset / SECTOR, request.length / SECTOR];
    const { memory } = this;
    const { address } = request;
    if (request.op === READ) {
      this.disk.read(first, count, (index, value) => memory.store(address, index, value), end);
    } else {
      this.disk.write(first, count, this.valuesOf(request), request.durable, end);
    }
  }

  private valuesOf(request: BlockRequest): (index: number) => number | null {
    const { address, op } = request;
    if (op === WRITE) return (index) => this.memory.load(address, index);
    // What a discard does to a sector is nobody's promise.
    if (op === DISCARD) return () => (this.world.dice.chance(2) ? ZERO : null);
    return () => ZERO;
  }

  private eachStripe(request: BlockRequest, call: (stripe: number, whole: boolean) => void): void {
    if (request.op === FLUSH) return;
    const { shift, diskSectors } = this.world.scenario;
    const first = request.offset / SECTOR;
    const end = first + request.length / SECTOR;
    for (let stripe = first >> shift; stripe << shift < end; stripe++) {
      const stripeEnd = Math.min((stripe + 1) << shift, diskSectors);
      call(stripe, first <= stripe << shift && end >= stripeEnd);
    }
  }
}

/** The metadata file as main sees it. */
export class SimStore implements MetadataStore {
  readonly unitBytes: number;
  private readonly opening: Opening;

  constructor(
    private readonly world: World,
    private readonly file: SimFile<Uint8Array>,
    private readonly watch: StripeWatch,
  ) {
    this.unitBytes = world.scenario.unitBytes;
    this.opening = file.open();
  }

  write(offset: number, data: Uint8Array): Promise<void> {
    if (offset % this.unitBytes !== 0 || data.length % this.unitBytes !== 0) {
      this.world.fail(`${data.length} bytes at ${offset} of the metadata are not whole units`);
    }
    const sector = (i: number) => data.slice(i * SECTOR, (i + 1) * SECTOR);
    const count = data.length / SECTOR;
    return this.watch.during('write of the metadata', (done) =>
      this.file.write(offset / SECTOR, count, sector, false, done),
    );
  }

  sync(): Promise<void> {
    return this.watch.during('sync of the metadata', (done) => this.file.sync(this.opening, done));
  }
}
