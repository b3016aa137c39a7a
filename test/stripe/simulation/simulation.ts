/**
 * One run: a disk with its metadata, a source, a guest, and the program that serves it, which crashes
 * and starts again. Everything is decided by the seed.
 */
import { FLUSH, READ } from '../../../src/device/request.ts';
import { FETCHED, HAS_SOURCE } from '../../../src/stripe/shared_state.ts';
import type { Bug } from './bug.ts';
import { Checker, firstSector, sourceSector } from './checker.ts';
import { Guest } from './guest.ts';
import { Memory } from './memory.ts';
import { Model } from './model.ts';
import { Program, type Surroundings } from './program.ts';
import type { Ending, Life, Scenario } from './scenario.ts';
import { SimFile } from './sim_file.ts';
import { SECTOR } from './values.ts';
import { Violation, World } from './world.ts';

/** Virtual time after which nobody may be waiting any more, once nothing fails. */
const PATIENCE_MS = 200_000;
const AUTOFETCH_PATIENCE_MS = 20_000_000;
/** Metadata that fails for good is tried five times before the guest is told. */
const DEAD_METADATA_PATIENCE_MS = 60_000;
/** Requests that still come when main has given up. */
const LAST_REQUESTS = 5;
const STEPS_AFTER_STOP = 20;
const MAX_STEPS = 300_000;

export interface Outcome {
  /** What was found to be wrong, or null. */
  violation: string | null;
  /** Events that happened. */
  steps: number;
}

export interface RunOptions {
  bug?: Bug;
  /** Is told what happens. */
  trace?: (line: string) => void;
  /** Ends the first life after so many events, whatever the seed says. */
  cutAt?: { steps: number; ending: Ending };
  /** What is to be other than the seed has it. */
  scenario?: Partial<Scenario>;
}

/** Runs one seed. */
export function simulate(seed: number, options: RunOptions = {}): Outcome {
  const simulation = new Simulation(seed, options);
  try {
    simulation.run();
  } catch (error) {
    if (!(error instanceof Violation)) simulation.world.fail(`thrown: ${(error as Error).stack}`);
  }
  return { violation: simulation.world.violation, steps: simulation.world.timeline.steps };
}

class Simulation {
  readonly world: World;
  private readonly checker: Checker;
  private readonly model: Model;
  private readonly around: Surroundings;
  private readonly guest: Guest;
  private program: Program | null = null;

  constructor(
    seed: number,
    private readonly options: RunOptions,
  ) {
    const world = new World(seed, options.trace ?? null, options.scenario ?? {});
    this.world = world;
    const { scenario } = world;
    const { faults, diskSectors, unitBytes } = scenario;
    this.checker = new Checker(
      world,
      () => this.around.disk.sectors,
      () => this.around.metadata.sectors,
      () => this.model,
    );
    this.model = new Model(diskSectors, (i) => firstSector(scenario, i), this.checker.changed);
    const disk = new SimFile(
      world,
      'disk',
      diskSectors,
      (i) => firstSector({ ...scenario, hasSource: [] }, i),
      { read: faults.dataRead, write: faults.dataWrite, sync: faults.dataSync },
      scenario.diskMs,
      this.checker.changed,
    );
    const bytes = this.firstMetadata(unitBytes);
    const metadata = new SimFile(
      world,
      'metadata',
      bytes.length / SECTOR,
      (i) => bytes.slice(i * SECTOR, (i + 1) * SECTOR),
      { read: 0, write: faults.metadataWrite, sync: faults.metadataSync },
      scenario.diskMs,
      this.checker.metadataChanged,
    );
    const memory = new Memory(scenario.queues * scenario.depth * diskSectors);
    const { checker } = this;
    const opening = disk.open();
    const bug = options.bug ?? null;
    this.around = { world, disk, metadata, checker, memory, opening, bug };
    this.guest = new Guest(world, this.model, checker, memory);
    world.note(() => JSON.stringify(scenario));
  }

  run(): void {
    const { lives } = this.world.scenario;
    const { cutAt } = this.options;
    if (cutAt) lives.unshift({ ...lives[0], ...cutAt });
    lives.forEach((life, i) => {
      this.start(life);
      if (i < lives.length - 1) this.live(life);
      else this.liveOn();
    });
  }

  private firstMetadata(unitBytes: number): Uint8Array {
    const { layout } = this.checker;
    const bytes = new Uint8Array(Math.ceil(layout.sizeBytes / unitBytes) * unitBytes);
    const headers = Uint8Array.from(this.world.scenario.hasSource, (has) => (has ? HAS_SOURCE : 0));
    layout.encode(headers, 0, bytes);
    return bytes;
  }

  private start({ requests }: Life): void {
    this.world.note(() => '--- the program starts');
    this.program = new Program(this.around);
    this.checker.restarted();
    this.guest.begin(this.program, requests);
  }

  /** One event, and a look at everything; false where nothing is left to happen. */
  private step(): boolean {
    const { world } = this;
    const more = world.timeline.step();
    this.checker.check(this.program?.shared.states ?? null);
    world.check();
    if (world.timeline.steps > MAX_STEPS) this.fail('it goes on and on');
    return more;
  }

  private fail(text: string): never {
    this.world.fail(text);
    throw new Violation(text);
  }

  /** Goes on until something is so. */
  private until(reached: () => boolean, patienceMs: number, what: () => string): void {
    const { timeline } = this.world;
    const deadlineMs = timeline.now() + patienceMs;
    while (!reached()) {
      if (!this.step()) this.fail(`nothing goes on: ${what()}`);
      if (timeline.now() > deadlineMs) this.fail(`it takes too long: ${what()}`);
    }
  }

  /** @param extraMs beyond what it takes when all is well */
  private untilAnswered(extraMs = 0): void {
    const { guest } = this;
    const { stripes, sourceMs, diskMs, thinkMs } = this.world.scenario;
    const workMs = stripes * (sourceMs + diskMs) * 5 + guest.left * thinkMs * 20;
    const patienceMs = PATIENCE_MS + workMs + extraMs;
    this.until(
      () => guest.left === 0 && guest.waiting === 0,
      patienceMs,
      () => `the guest waits for ${guest.describeWaiting()}`,
    );
  }

  /** A life that ends before its time. */
  private live({ steps, ending }: Life): void {
    for (let i = 0; i < steps && this.step(); ) i++;
    if (ending === 'stop') this.stop();
    this.world.note(() => `--- ${ending}`);
    this.around.disk.abandon();
    this.around.metadata.abandon();
    this.world.timeline.clear();
    this.program = null;
    if (ending === 'power cut') this.cutPower();
    else {
      this.around.disk.sectors.endAll();
      this.model.restarted(null);
    }
    this.world.check();
  }

  private cutPower(): void {
    const { disk, metadata } = this.around;
    this.checker.check(null);
    const { dice } = this.world;
    disk.sectors.cut((versions) => dice.below(versions));
    metadata.sectors.cut((versions) => dice.below(versions));
    this.around.opening.seen = disk.open().seen;
    const { scenario } = this.world;
    this.model.restarted((sector) => {
      const stripe = sector >> scenario.shift;
      const missing = scenario.hasSource[stripe] && !(this.checker.durableBits(stripe) & FETCHED);
      return missing ? sourceSector(scenario, sector) : disk.sectors.visible(sector);
    });
  }

  /** Its requests are answered before a program stops, whatever they wait for. */
  private finishRequests(): void {
    const { world, guest, program } = this;
    const { dice, timeline, faulty, scenario } = world;
    const way = dice.pick(['wait', 'leave', 'fail', 'give up']);
    world.note(() => `--- requests at the end: ${way}`);
    guest.left = way === 'give up' ? Math.min(guest.left, LAST_REQUESTS) : 0;
    if (way === 'wait') {
      world.faulty = false;
    } else if (way === 'leave' || way === 'fail') {
      world.sourceGone = true;
      guest.leaving = way === 'leave';
      guest.givenUp = way === 'fail';
      // As a queue that stops does: also what comes to wait only then is given up.
      const pause = () => {
        if (way === 'leave') guest.pauseAll();
        else for (let queue = 0; queue < scenario.queues; queue++) guest.failWaiting(queue);
        if (guest.waiting > 0) timeline.after(dice.delayMs(scenario.diskMs) + 1, pause);
      };
      timeline.after(dice.delayMs(scenario.diskMs), pause);
    } else {
      world.sourceGone = true;
      guest.givenUp = true;
      timeline.after(dice.delayMs(scenario.sourceMs), () => program?.coordinator.giveUp());
    }
    this.untilAnswered();
    world.faulty = faulty;
    world.sourceGone = false;
  }

  /** The program is told to stop; its guest is gone by then. */
  private stop(): void {
    const { world, program } = this;
    this.finishRequests();
    this.around.metadata.dead = world.dice.chance(4);
    let stopped = false;
    world.timeline.after(0, () => {
      program?.coordinator.stop().then(() => {
        stopped = true;
      });
    });
    this.until(
      () => stopped,
      PATIENCE_MS,
      () => 'the program does not stop',
    );
    this.around.metadata.dead = false;
    if (!program) return;
    if (program.source && !program.source.closed) this.fail('the source was not closed at the end');
    if (program.watch.busy > 0) this.fail('main has stopped in the middle of something');
    program.watch.stopped = true;
    for (let i = 0; i < STEPS_AFTER_STOP && this.step(); ) i++;
  }

  /** The last life, at whose end all is quiet and complete. */
  private liveOn(): void {
    const { world, guest, around } = this;
    if (world.scenario.metadataDies) {
      for (let i = world.dice.below(200); i > 0 && this.step(); ) i--;
      world.faulty = false;
      around.metadata.dead = true;
      world.note(() => '--- the metadata file fails from now on');
      this.untilAnswered(DEAD_METADATA_PATIENCE_MS);
      around.metadata.dead = false;
    } else if (guest.left > 0) {
      while (guest.left > 0 && this.step());
    }
    world.faulty = false;
    world.note(() => '--- nothing fails any more');
    this.untilAnswered();
    this.complete();
    this.compareAll();
    while (this.step());
    this.checkRest();
    this.stop();
  }

  /** Autofetch ends by itself; without it the guest's reads bring everything. */
  private complete(): void {
    const { autofetch, image, copyOnRead } = this.world.scenario;
    const { source } = this.program as Program;
    if (!source || (image && !autofetch && !copyOnRead)) return;
    if (!autofetch) this.readAll();
    this.until(
      () => source.closed,
      AUTOFETCH_PATIENCE_MS,
      () => `not everything is fetched: ${JSON.stringify(this.program?.coordinator.status)}`,
    );
  }

  /** The guest flushes and reads everything; what it sees is what a power cut leaves. */
  private compareAll(): void {
    const { guest } = this;
    // The first flush may tell of an error of the past, the next one may not.
    guest.submit(FLUSH, 0, 0, false);
    this.untilAnswered();
    guest.submit(FLUSH, 0, 0, false);
    this.untilAnswered();
    this.readAll();
  }

  private readAll(): void {
    const { diskSectors, shift } = this.world.scenario;
    const perStripe = 1 << shift;
    const step = diskSectors > 1000 ? diskSectors : perStripe;
    for (let first = 0; first < diskSectors; first += step) {
      const count = Math.min(step, diskSectors - first);
      while (!this.guest.submit(READ, first, count, false)) this.step();
    }
    this.untilAnswered();
  }

  private checkRest(): void {
    const { coordinator, shared, layers, source, images } = this.program as Program;
    const { trackWritten, hasSource } = this.world.scenario;
    const status = coordinator.status;
    const fetched = shared.states.filter((state) => (state & FETCHED) !== 0).length;
    const sources = hasSource.filter((has) => has).length;
    const rest = [
      status.queued,
      status.inFlight,
      status.failing.length,
      status.failingCount,
      status.slow.length,
      status.metadataFailing,
      status.metadata.pending,
    ];
    const wrong =
      status.total !== hasSource.length ||
      status.source !== sources ||
      status.fetched !== fetched ||
      rest.some((number) => Number(number) !== 0);
    if (wrong) this.fail(`the status is wrong: ${JSON.stringify(status)}, fetched ${fetched}`);
    if (fetched === sources && !trackWritten && !shared.quiet) this.fail('all is local, not quiet');
    if (source?.closed && images.some((image) => image && !image.closed)) {
      this.fail('all is local, and the image is still open');
    }
    if (layers.some(({ inFlight }) => inFlight !== 0)) this.fail('a queue is not at rest');
  }
}
