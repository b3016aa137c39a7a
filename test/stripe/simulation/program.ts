import { type BlockDevice, RequestTable } from '../../../src/device/request.ts';
import { Coordinator, type CoordinatorParts } from '../../../src/stripe/coordinator.ts';
import { LazyLayer } from '../../../src/stripe/lazy_layer.ts';
import { parseMetadata } from '../../../src/stripe/metadata_layout.ts';
import {
  type Answer,
  CLAIMED,
  eachStripe,
  FETCHED,
  HAS_SOURCE,
  type QueueMessage,
  SharedStripes,
  sharedStripeBytes,
  Want,
} from '../../../src/stripe/shared_state.ts';
import type { Bug } from './bug.ts';
import type { Checker } from './checker.ts';
import type { Dice } from './dice.ts';
import type { Memory } from './memory.ts';
import { SimDevice, SimStore, SimTarget } from './sim_disk.ts';
import type { Opening, SimFile } from './sim_file.ts';
import { SimImage, SimSource } from './sim_source.ts';
import { StripeWatch } from './stripe_watch.ts';
import { POISON, SECTOR, wordsOf } from './values.ts';
import type { World } from './world.ts';

/** What outlives the program. */
export interface Surroundings {
  world: World;
  disk: SimFile<number>;
  metadata: SimFile<Uint8Array>;
  checker: Checker;
  memory: Memory;
  /** The queues' opening of the disk: an error that nobody was told of is not forgotten. */
  opening: Opening;
  bug: Bug | null;
}

/**
 * Queues see what main does to stripes at any time until an answer comes that main gave after it, be it
 * between two looks.
 */
class WatchedStripes extends SharedStripes {
  answered: ((queue: number, answer: Answer) => void) | null = null;
  private seen: Uint8Array | null = null;

  constructor(
    private readonly dice: Dice,
    ...rest: ConstructorParameters<typeof SharedStripes>
  ) {
    super(...rest);
  }

  override look(stripe: number): number {
    this.seen ??= this.states.slice();
    const state = super.look(stripe);
    if (this.seen[stripe] !== state && this.dice.chance(2)) this.seen[stripe] = state;
    return this.seen[stripe];
  }

  override take(queue: number, answer: Answer): boolean {
    const taken = super.take(queue, answer);
    if (taken) this.seen?.set(this.states);
    return taken;
  }

  override put(queue: number, answer: Answer): boolean {
    const { stripe, want, result } = answer;
    if (!super.put(queue, answer)) return false;
    this.answered?.(queue, { stripe, want, result });
    return true;
  }
}

/** The program from its start to its end: the coordinator, and a lazy layer for each queue. */
export class Program {
  readonly coordinator: Coordinator;
  readonly layers: LazyLayer[];
  readonly tables: RequestTable[] = [];
  /** Of each queue. */
  readonly images: (SimImage | null)[] = [];
  readonly shared: WatchedStripes;
  readonly source: SimSource | null;
  readonly watch: StripeWatch;
  /** When the last message of each queue arrives: later ones do so later. */
  private readonly arrivalsMs: number[];
  private readonly waking: boolean[];

  constructor(private readonly around: Surroundings) {
    const { world, bug, checker } = around;
    const { scenario } = world;
    const { queues, stripes } = scenario;
    this.arrivalsMs = new Array(queues).fill(0);
    this.waking = new Array(queues).fill(false);
    const memory = new SharedArrayBuffer(sharedStripeBytes(stripes, queues));
    this.shared = new WatchedStripes(world.dice, memory, stripes, queues);
    this.watch = new StripeWatch(world, this.shared.states, checker);
    this.shared.answered = (queue, answer) => this.answered(queue, answer);
    const parts = this.parts();
    this.source = this.openSource(parts.headers);
    parts.source = this.source;
    bug?.parts?.(parts, this.around);
    this.coordinator = new Coordinator(
      {
        stripeBytes: SECTOR << scenario.shift,
        diskBytes: scenario.diskSectors * SECTOR,
        trackWritten: scenario.trackWritten,
        autofetch: scenario.autofetch,
        autofetchBytesPerSecond: scenario.autofetchBytesPerSecond,
        mostUnrecorded: scenario.mostUnrecorded,
        journal: scenario.journal,
      },
      parts,
    );
    bug?.coordinator?.(this.coordinator, world);
    this.layers = this.arrivalsMs.map((_, queue) => this.layer(queue));
    this.coordinator.start();
  }

  /** A queue's thread is awake, and looks for answers. */
  awake(queue: number): void {
    this.layers[queue].receive();
  }

  private parts(): CoordinatorParts {
    const { world, disk, metadata, bug } = this.around;
    const { scenario } = world;
    // What the file's cache holds may not be durable: the program that wrote it may have been killed.
    if (!bug?.trustsCache) metadata.sectors.settle();
    const bytes = new Uint8Array(metadata.sectors.count * SECTOR);
    for (let i = 0; i < metadata.sectors.count; i++) {
      bytes.set(metadata.sectors.visible(i), i * SECTOR);
    }
    const diskBytes = scenario.diskSectors * SECTOR;
    const buffers = Array.from({ length: scenario.buffers }, (_, i) => {
      const buffer = { address: 4096 * (i + 1), bytes: new Uint8Array(SECTOR << scenario.shift) };
      wordsOf(buffer.bytes).fill(POISON);
      return buffer;
    });
    return {
      ...parseMetadata(bytes, diskBytes),
      shared: this.shared,
      source: null,
      target: new SimTarget(world, disk, this.watch),
      store: new SimStore(world, metadata, this.watch),
      clock: world.timeline,
      buffers,
      wake: (queue) => this.wake(queue),
      log: {
        warn: (message) => world.note(() => `main: ${message}`),
        info: (message) => world.note(() => `main: ${message}`),
      },
    };
  }

  /** There may be none where nothing is left to fetch. */
  private openSource(headers: Uint8Array): SimSource | null {
    const { world } = this.around;
    if (world.scenario.sourceBytes === 0) return null;
    const missing = headers.some((header) => (header & (HAS_SOURCE | FETCHED)) === HAS_SOURCE);
    if (!missing && world.dice.chance(2)) return null;
    const { disk } = this.around;
    return new SimSource(
      world,
      this.watch,
      (first, values) => disk.writeNow(first, values),
      () => this.askForImage(),
    );
  }

  /** All is local: main has the queues let go of the image. */
  private askForImage(): void {
    this.shared.imageDone = true;
    for (let queue = 0; queue < this.layers.length; queue++) this.wake(queue);
  }

  private imageReleased(queue: number): void {
    const image = this.images[queue];
    if (!image || image.closed) this.around.world.fail('an image was let go of twice');
    else if (image.inFlight > 0) this.around.world.fail('an image was let go of while it is read');
    else image.closed = true;
  }

  private layer(queue: number): LazyLayer {
    const { world, disk, opening, memory, bug } = this.around;
    const { scenario } = world;
    const table = new RequestTable();
    this.tables.push(table);
    // Before it sleeps again it looks at everything.
    const awake = () => world.timeline.after(0, () => this.awake(queue));
    const base = new SimDevice(world, disk, opening, memory, this.watch, awake);
    const image = scenario.image ? new SimImage(world, memory, awake) : null;
    this.images.push(image);
    const devices: { base: BlockDevice; image: BlockDevice | null } = { base, image };
    bug?.devices?.(devices, world);
    const options = {
      queue,
      stripeBytes: SECTOR << scenario.shift,
      diskBytes: scenario.diskSectors * SECTOR,
      trackWritten: scenario.trackWritten,
      imageBytes: image ? scenario.sourceBytes : 0,
      copyOnRead: scenario.copyOnRead,
      zeroing: scenario.zeroing,
    };
    const post = (message: QueueMessage) => this.post(message);
    const release = () => this.imageReleased(queue);
    const layer = new LazyLayer(
      devices.base,
      devices.image,
      this.shared,
      table,
      options,
      post,
      release,
    );
    bug?.layer?.(layer, world);
    return layer;
  }

  /** A message of a queue arrives at main some time later, and after those before it. */
  private post(message: QueueMessage): void {
    const { world } = this.around;
    const { timeline, dice, scenario } = world;
    const { queue } = message;
    const copy = structuredClone(message);
    // Not at the same time: sums of times are rounded.
    const atMs = Math.max(
      this.arrivalsMs[queue] + 0.001,
      timeline.now() + dice.delayMs(scenario.messageMs),
    );
    this.arrivalsMs[queue] = atMs;
    timeline.after(atMs - timeline.now(), () => {
      world.note(() => `main: gets ${JSON.stringify(copy)}`);
      if (copy.kind === 'ask')
        for (const run of copy.asks) eachStripe(run, (stripe) => this.watch.ask(stripe));
      if (copy.kind === 'wish') for (const stripe of copy.stripes) this.watch.wish(stripe);
      if (copy.kind === 'claimDone')
        for (const run of copy.stripes) eachStripe(run, (stripe) => this.watch.claimEnded(stripe));
      this.coordinator.receive(copy);
    });
  }

  private answered(queue: number, { stripe, want, result }: Answer): void {
    this.around.world.note(
      () => `main: answers ${queue}: stripe ${stripe} want ${want}: ${result}`,
    );
    if (want === Want.CLAIM && result === CLAIMED) this.watch.claim(stripe);
  }

  private wake(queue: number): void {
    const { timeline, dice, scenario } = this.around.world;
    if (this.waking[queue]) return;
    this.waking[queue] = true;
    timeline.after(dice.delayMs(scenario.messageMs), () => {
      this.waking[queue] = false;
      this.awake(queue);
    });
  }
}
