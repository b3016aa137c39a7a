import type { IovecTable } from '../../../ffi/ring.ts';
import {
  type BlockOp,
  BlockRequest,
  DISCARD,
  FLUSH,
  opName,
  READ,
  type RequestOwner,
  WRITE,
  WRITE_ZEROES,
} from '../../../src/device/request.ts';
import type { Checker } from './checker.ts';
import type { Memory } from './memory.ts';
import type { Model, ModelFlush, ModelRead, ModelWrite } from './model.ts';
import type { Program } from './program.ts';
import { POISON, SECTOR, ZERO } from './values.ts';
import type { World } from './world.ts';

/** What a request ends with that was given up: no layer gives this one. */
const ECANCELED = 125;
/** A fault this long ago may still be the reason for an answer. */
const FAULT_MEMORY_MS = 500;
/** More than a queue's ring has room for answers: requests for all of the disk get interesting. */
const MANY_STRIPES = 1024;

interface Slot {
  queue: number;
  request: BlockRequest;
  busy: boolean;
  beganMs: number;
  write: ModelWrite | null;
  read: ModelRead | null;
  flush: ModelFlush | null;
}

/** Uses the disk through all of its queues, and compares what it is told with the model. */
export class Guest implements RequestOwner {
  /** Requests that it will still make. */
  left = 0;
  /** Requests may fail because the program gives up waiting. */
  givenUp = false;
  /** What queues give up is not begun again. */
  leaving = false;
  /** A queue fails what waits. */
  private failing = false;
  private readonly slots: Slot[] = [];
  private readonly slotOf = new Map<BlockRequest, Slot>();
  private values = 0;
  private thinking = false;
  private program: Program | null = null;

  constructor(
    private readonly world: World,
    private readonly model: Model,
    private readonly checker: Checker,
    private readonly memory: Memory,
  ) {}

  /** Begins to use a program that has just started. */
  begin(program: Program, requests: number): void {
    const { queues, depth, diskSectors } = this.world.scenario;
    this.program = program;
    this.left = requests;
    this.givenUp = false;
    this.leaving = false;
    this.slots.length = 0;
    this.slotOf.clear();
    for (let queue = 0; queue < queues; queue++) {
      const table = program.tables[queue];
      for (let i = 0; i < depth; i++) {
        const request = new BlockRequest(table.nextIndex, this, null as unknown as IovecTable);
        table.add(request);
        request.address = this.memory.address(this.slots.length * diskSectors);
        request.segments = 1;
        const slot = {
          queue,
          request,
          busy: false,
          beganMs: 0,
          write: null,
          read: null,
          flush: null,
        };
        this.slots.push(slot);
        this.slotOf.set(request, slot);
      }
    }
    this.thinking = false;
    this.think();
  }

  /** Requests that are not answered. */
  get waiting(): number {
    return this.slots.filter(({ busy }) => busy).length;
  }

  describeWaiting(): string {
    return this.slots
      .filter(({ busy }) => busy)
      .map(({ queue, request: { op, offset, length }, beganMs }) => {
        const range = `${offset / SECTOR}+${length / SECTOR}`;
        return `${opName(op)} ${range} on queue ${queue} since ${beganMs.toFixed(3)}`;
      })
      .join(', ');
  }

  /** Makes a request now; false where none of the queues has room. */
  submit(op: BlockOp, first: number, count: number, durable: boolean): boolean {
    const free = this.slots.filter(({ busy }) => !busy);
    if (free.length === 0) return false;
    const slot = this.world.dice.pick(free);
    const { request } = slot;
    slot.busy = true;
    slot.beganMs = this.world.timeline.now();
    request.op = op;
    request.offset = first * SECTOR;
    request.length = count * SECTOR;
    request.durable = durable && op !== READ && op !== FLUSH;
    request.unmap = op === WRITE_ZEROES && this.world.dice.chance(2);
    request.result = 1;
    this.world.note(
      () =>
        `guest: ${opName(op)}${request.durable ? ' (durable)' : ''} ${first}+${count} on queue ${slot.queue}`,
    );
    if (op === READ) {
      for (let i = 0; i < count; i++) this.memory.store(request.address, i, POISON);
      slot.read = this.model.read(first, count);
    } else if (op === FLUSH) {
      slot.flush = this.model.flush();
    } else {
      slot.write = this.beginWrite(request, first, count);
    }
    this.program?.layers[slot.queue].submit(request);
    return true;
  }

  completed(request: BlockRequest): void {
    const slot = this.slotOf.get(request);
    if (!slot?.busy) {
      this.world.fail(`a request was answered twice: ${opName(request.op)}`);
      return;
    }
    slot.busy = false;
    this.world.note(
      () =>
        `guest: ${opName(request.op)} ${request.offset / SECTOR}+${request.length / SECTOR} ends with ${request.result}`,
    );
    this.checkResult(slot);
    this.compare(slot);
    const { queue } = slot;
    if (this.world.scenario.eager && this.world.dice.chance(2)) this.program?.awake(queue);
    this.think();
  }

  /** A queue has given a request up, and has done nothing of it. */
  abandoned(request: BlockRequest): void {
    const slot = this.slotOf.get(request);
    if (!slot?.busy) {
      this.world.fail(`a request was given up that nobody made: ${opName(request.op)}`);
      return;
    }
    this.world.note(() => `guest: ${opName(request.op)} on queue ${slot.queue} is given up`);
    const { timeline, dice, scenario } = this.world;
    const layer = this.program?.layers[slot.queue];
    timeline.after(dice.delayMs(scenario.messageMs), () => {
      if (this.leaving) this.forget(slot);
      else layer?.submit(request);
    });
  }

  /** Nobody hears of a request any more, of which nothing was done. */
  private forget(slot: Slot): void {
    slot.busy = false;
    slot.request.result = -ECANCELED;
    this.compare(slot);
  }

  /** Queues give up what waits for main. */
  pauseAll(): void {
    for (const layer of this.program?.layers ?? []) layer.abandon();
  }

  /** A queue fails what waits for main. */
  failWaiting(queue: number): void {
    this.failing = true;
    this.program?.layers[queue].failWaiting();
    this.failing = false;
  }

  private checkResult({ request, beganMs }: Slot): void {
    const { result, op } = request;
    if (result === 0 || op === FLUSH) return;
    if (result > 0) this.world.fail(`${opName(op)} ends with ${result}`);
    const givenUp = this.givenUp || this.failing;
    if (!givenUp && this.world.faultAtMs < beganMs - FAULT_MEMORY_MS) {
      this.world.fail(`${opName(op)} fails with ${result}, for no reason`);
    }
  }

  private compare(slot: Slot): void {
    const { request, write, read, flush } = slot;
    const ok = request.result === 0;
    if (write) {
      this.model.written(write, ok);
      if (ok) this.eachStripe(request, (stripe) => this.checker.noteWritten(stripe));
    }
    if (read) {
      const valueAt = (index: number) => this.memory.load(request.address, index);
      const wrong = this.model.readEnded(read, ok ? valueAt : null);
      if (wrong) this.world.fail(wrong);
    }
    if (flush) this.model.flushed(flush, ok);
    slot.write = null;
    slot.read = null;
    slot.flush = null;
  }

  private eachStripe({ offset, length }: BlockRequest, call: (stripe: number) => void): void {
    const { shift } = this.world.scenario;
    const last = (offset + length) / SECTOR - 1;
    for (let stripe = (offset / SECTOR) >> shift; stripe <= last >> shift; stripe++) call(stripe);
  }

  private beginWrite(request: BlockRequest, first: number, count: number): ModelWrite {
    this.eachStripe(request, (stripe) => this.checker.noteTouched(stripe));
    const base = this.values + 1;
    const data = request.op === WRITE;
    if (data) {
      this.values += count;
      for (let i = 0; i < count; i++) this.memory.store(request.address, i, base + i);
    }
    const valueAt = data ? (index: number) => base + index : () => ZERO;
    return this.model.write(first, count, valueAt, request.op === DISCARD, request.durable);
  }

  /** Makes a next request after a while. */
  private think(): void {
    if (this.thinking || this.left === 0) return;
    this.thinking = true;
    const { timeline, dice, scenario } = this.world;
    timeline.after(dice.delayMs(scenario.thinkMs), () => {
      this.thinking = false;
      if (this.left === 0) return;
      // With all slots in use, an answer goes on with it.
      if (this.submitAny()) this.think();
    });
  }

  private submitAny(): boolean {
    const { dice, scenario } = this.world;
    if (this.slots.every(({ busy }) => busy)) return false;
    this.left--;
    if (scenario.pauses > 0 && dice.chance(scenario.pauses)) {
      const queue = dice.below(scenario.queues);
      if (dice.chance(3)) this.failWaiting(queue);
      else this.program?.layers[queue].abandon();
    }
    const op = this.pickOp();
    const [first, count] = op === FLUSH ? [0, 0] : this.pickRange();
    if (!scenario.overlaps && op !== FLUSH && this.touches(op, first, count)) return true;
    return this.submit(op, first, count, dice.chance(4));
  }

  private pickOp(): BlockOp {
    const ops = [READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES] as const;
    const { weights } = this.world.scenario;
    let rest = this.world.dice.below(weights.reduce((sum, weight) => sum + weight, 0));
    let i = 0;
    while (rest >= weights[i]) rest -= weights[i++];
    return ops[i];
  }

  private pickRange(): [number, number] {
    const { dice, scenario } = this.world;
    const { diskSectors, shift, stripes } = scenario;
    const perStripe = 1 << shift;
    const clip = (first: number, end: number): [number, number] => {
      const from = Math.min(Math.max(first, 0), diskSectors - 1);
      return [from, Math.min(Math.max(end, from + 1), diskSectors) - from];
    };
    const start = dice.below(stripes) << shift;
    if (stripes > MANY_STRIPES && dice.chance(4)) return [0, diskSectors];
    const several = start + perStripe * dice.between(1, 4);
    switch (dice.below(8)) {
      case 0:
      case 1:
        return clip(start, start + perStripe);
      case 2:
        return clip(start, several);
      case 3:
        // Whole stripes, and a part of the one before or behind.
        return clip(start - dice.below(perStripe), several + dice.below(perStripe));
      case 4:
        return dice.chance(8) ? [0, diskSectors] : clip(diskSectors - perStripe, diskSectors);
      default: {
        const first = dice.below(diskSectors);
        return clip(first, first + dice.between(1, dice.chance(2) ? 2 : 3 * perStripe));
      }
    }
  }

  /** Whether a request in flight is at those sectors; reads don't mind each other. */
  private touches(op: BlockOp, first: number, count: number): boolean {
    return this.slots.some(({ busy, request }) => {
      if (!busy || request.op === FLUSH || (op === READ && request.op === READ)) return false;
      const from = request.offset / SECTOR;
      return from < first + count && first < from + request.length / SECTOR;
    });
  }
}
