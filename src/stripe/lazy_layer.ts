/**
 * The top of a lazy disk's stack, on a queue's thread: passes requests whose stripes are local, asks main
 * for the others' stripes, and parks those requests until all of their stripes are answered for. Parked
 * requests hold up nobody.
 *
 * A request that overwrites a whole stripe that isn't local doesn't need what is there: it asks for a
 * claim, fills the stripe, and is answered when main has made that durable.
 */
import { EIO } from '../../ffi/errno.ts';
import {
  type BlockDevice,
  BlockRequest,
  DISCARD,
  FLUSH,
  READ,
  type RequestOwner,
  type RequestTable,
  StandIn,
  WRITE_ZEROES,
} from '../device/request.ts';
import { LargeZeroes } from './large_zeroes.ts';
import {
  type Answer,
  type Ask,
  CLAIMED,
  FETCHED,
  HAS_SOURCE,
  type QueueMessage,
  runsOf,
  type SharedStripes,
  Want,
  WRITTEN,
} from './shared_state.ts';

export interface LazyOptions {
  queue: number;
  stripeBytes: number;
  diskBytes: number;
  trackWritten: boolean;
  /** Bytes of the image that unfetched stripes may be read from; 0: none. */
  imageBytes: number;
  /** What is read from the image is to become local. */
  copyOnRead?: boolean;
  /** So many stripes at a time are asked for to be zeroed, for so many requests. */
  zeroing?: { stripes: number; requests: number };
}

/** A request that waits for main. */
class Parked {
  /** Stripes that are its own to fill. */
  readonly claims: number[] = [];
  /** Answers that are still to come. */
  missing = 0;
  /** The first error among them. */
  result = 0;
  /** It is being carried out, or has been, and then waits for its claims to be recorded. */
  filling = false;
  filled = false;
  /** Nobody wants it any more; answers to what it asked are still to come. */
  abandoned = false;

  constructor(readonly request: BlockRequest) {}
}

/** Carries out a request that holds claims, so that its end is told to us first. */
class Filling extends BlockRequest {
  parked: Parked | null = null;
}

/** Of so many stripes main is told also while the image is being read. */
const MOST_WISHES = 16;
const ZEROING = { stripes: 256, requests: 16 };

export class LazyLayer implements BlockDevice, RequestOwner {
  /** Who waits for a stripe to be local, and for its write to be recorded. */
  private readonly waiting = [new Map<number, Parked[]>(), new Map<number, Parked[]>()];
  /** Who wants to fill a stripe, in the order in which main was asked; the first may be doing it. */
  private readonly claiming = new Map<number, Parked[]>();
  private readonly fillings: Filling[] = [];
  /** Reads from the image on behalf of requests, which are still whole if that fails. */
  private readonly imageReads: StandIn[] = [];
  private readonly imageOwner: RequestOwner = {
    completed: (request) => this.imageWasRead(request as StandIn),
  };
  private readonly answer: Answer = { stripe: 0, want: Want.LOCAL, result: 0 };
  private readonly parked = new Set<Parked>();
  /** Stripes that were read from the image: a bit of each, and those that main is still to be told of. */
  private readonly wished: Uint8Array;
  private readonly wishes: number[] = [];
  private readonly large: LargeZeroes;
  /** Of a request that zeroes. */
  private readonly mostStripes: number;

  /**
   * @param base the disk's own data
   * @param image plain data of unfetched stripes for reads that don't make them local, or null
   * @param post sends a message to main
   * @param releaseImage lets go of the image's files, which nothing reads any more
   */
  constructor(
    private readonly base: BlockDevice,
    private image: BlockDevice | null,
    private readonly shared: SharedStripes,
    private readonly requests: RequestTable,
    private readonly options: LazyOptions,
    private readonly post: (message: QueueMessage) => void,
    private readonly releaseImage: () => void = () => {},
  ) {
    this.wished = new Uint8Array(Math.ceil(shared.states.length / 8));
    const { stripes, requests: most } = options.zeroing ?? ZEROING;
    this.mostStripes = stripes;
    this.large = new LargeZeroes(
      requests,
      most,
      (offset, end) => this.endOfPart(offset, end),
      (part) => this.submitPart(part),
    );
  }

  get inFlight(): number {
    const reading = this.image?.inFlight ?? 0;
    return this.base.inFlight + reading + this.parked.size + this.large.inFlight;
  }

  submit(request: BlockRequest): void {
    const { op } = request;
    if (op === FLUSH || this.shared.quiet) this.base.submit(request);
    else if ((op === DISCARD || op === WRITE_ZEROES) && this.isLarge(request))
      this.large.submit(request);
    else this.submitPart(request);
  }

  private submitPart(request: BlockRequest): void {
    const { stripeBytes, imageBytes } = this.options;
    const first = Math.floor(request.offset / stripeBytes);
    const end = request.offset + request.length;
    const last = Math.floor((end - 1) / stripeBytes);
    const read = request.op === READ;
    let stripe = first;
    while (stripe <= last && this.isReady(stripe, read)) stripe++;
    if (stripe > last) this.base.submit(request);
    else if (read && first === last && this.image && end <= imageBytes) {
      if (this.options.copyOnRead) this.wish(first);
      this.readImage(this.image, request);
    } else {
      this.park(request, first, last);
    }
  }

  private isLarge({ offset, length }: BlockRequest): boolean {
    return this.endOfPart(offset, offset + length) < offset + length;
  }

  /** Before the stripe that would be one too many to ask for. */
  private endOfPart(offset: number, end: number): number {
    const { stripeBytes } = this.options;
    let missing = 0;
    for (let stripe = Math.floor(offset / stripeBytes); stripe * stripeBytes < end; stripe++) {
      if (this.isReady(stripe, false)) continue;
      if (missing++ === this.mostStripes) return stripe * stripeBytes;
    }
    return end;
  }

  /** Takes main's answers; to be called whenever the queue is awake. */
  receive(): void {
    const { answer, shared } = this;
    while (shared.take(this.options.queue, answer)) {
      const { stripe, want, result } = answer;
      if (want === Want.CLAIM) this.claimAnswered(stripe, result);
      else this.waitAnswered(stripe, want, result);
    }
    if (this.wishes.length > 0) this.tellWishes();
    if (shared.imageDone && this.image?.inFlight === 0) {
      this.image = null;
      this.releaseImage();
      this.post({ kind: 'imageReleased', queue: this.options.queue });
    }
  }

  /** A request with claims has been carried out. */
  completed(request: BlockRequest): void {
    const filling = request as Filling;
    const parked = filling.parked as Parked;
    filling.parked = null;
    this.fillings.push(filling);
    if (filling.result !== 0) {
      this.finish(parked, filling.result);
      return;
    }
    parked.filled = true;
    parked.missing = parked.claims.length;
    const stripes = runsOf(parked.claims);
    this.post({ kind: 'claimDone', queue: this.options.queue, stripes, ok: true });
  }

  /** Requests that wait for main are given up; those that are being carried out end as they do. */
  abandon(): void {
    this.giveUp((request) => request.owner.abandoned?.(request));
  }

  failWaiting(): void {
    this.giveUp((request) => {
      request.result = -EIO;
      request.owner.completed(request);
    });
  }

  reset(): void {
    this.base.reset?.();
    this.image?.reset?.();
  }

  private giveUp(tell: (request: BlockRequest) => void): void {
    for (const request of this.large.unbegun()) tell(request);
    for (const parked of this.parked) {
      if (parked.filling) continue;
      parked.abandoned = true;
      this.leave(parked);
      tell(parked.request);
    }
  }

  private isReady(stripe: number, read: boolean): boolean {
    const state = this.shared.look(stripe);
    if ((state & (HAS_SOURCE | FETCHED)) === HAS_SOURCE) return false;
    return read || !this.options.trackWritten || (state & WRITTEN) !== 0;
  }

  /** Main doesn't forget it. */
  private wish(stripe: number): void {
    const bit = 1 << (stripe & 7);
    if (this.wished[stripe >> 3] & bit) return;
    this.wished[stripe >> 3] |= bit;
    this.wishes.push(stripe);
  }

  /** Not before the reads of the image that somebody waits for. */
  private tellWishes(): void {
    if (this.image && this.image.inFlight > 0 && this.wishes.length < MOST_WISHES) return;
    this.post({ kind: 'wish', queue: this.options.queue, stripes: this.wishes.splice(0) });
  }

  private readImage(image: BlockDevice, request: BlockRequest): void {
    const { nextIndex } = this.requests;
    const reading =
      this.imageReads.pop() ??
      this.requests.add(new StandIn(nextIndex, this.imageOwner, request.iovecs));
    reading.for(request);
    image.submit(reading);
  }

  /** What could not be read waits until main has fetched its stripe, which tries on. */
  private imageWasRead(reading: StandIn): void {
    const request = reading.request as BlockRequest;
    reading.request = null;
    this.imageReads.push(reading);
    const stripe = Math.floor(request.offset / this.options.stripeBytes);
    if (reading.result === 0) {
      this.shared.countFromImage(this.options.queue, request.length);
      request.result = 0;
      request.owner.completed(request);
    } else if (this.isReady(stripe, true)) {
      this.base.submit(request);
    } else {
      this.park(request, stripe, stripe);
    }
  }

  private park(request: BlockRequest, first: number, last: number): void {
    const parked = new Parked(request);
    const asks: Ask[] = [];
    for (let stripe = first; stripe <= last; stripe++) {
      if (this.isReady(stripe, request.op === READ)) continue;
      parked.missing++;
      const want = this.wantOf(request, stripe);
      const list = want === Want.CLAIM ? this.claiming : this.waiting[want];
      const others = list.get(stripe);
      if (others) others.push(parked);
      else list.set(stripe, [parked]);
      // One question is enough for all that wait for the same.
      if (others && want !== Want.CLAIM) continue;
      const before = asks.at(-1);
      if (before?.want === want && before.first + before.count === stripe) before.count++;
      else asks.push({ first: stripe, count: 1, want });
    }
    // Main may have published them since the caller looked.
    if (parked.missing === 0) {
      this.base.submit(request);
      return;
    }
    this.parked.add(parked);
    if (asks.length > 0) this.post({ kind: 'ask', queue: this.options.queue, asks });
  }

  private wantOf(request: BlockRequest, stripe: number): Want {
    if (request.op === READ) return Want.LOCAL;
    const { stripeBytes, diskBytes } = this.options;
    const start = stripe * stripeBytes;
    const end = Math.min(start + stripeBytes, diskBytes);
    const whole = request.offset <= start && request.offset + request.length >= end;
    if (whole && !this.isReady(stripe, true)) return Want.CLAIM;
    return Want.WRITTEN;
  }

  private waitAnswered(stripe: number, want: Want, result: number): void {
    const list = this.waiting[want];
    const waiters = list.get(stripe);
    if (!waiters) return;
    list.delete(stripe);
    for (const parked of waiters) if (!parked.abandoned) this.answered(parked, result);
  }

  private claimAnswered(stripe: number, result: number): void {
    const claimers = this.claiming.get(stripe);
    const parked = claimers?.[0];
    if (!parked) return;
    if (parked.abandoned) {
      this.leaveClaim(stripe);
      if (result === CLAIMED) this.giveBack([stripe]);
    } else if (result === CLAIMED) {
      parked.claims.push(stripe);
      this.answered(parked, 0);
    } else {
      this.leaveClaim(stripe);
      this.answered(parked, result);
    }
  }

  private leaveClaim(stripe: number): void {
    const claimers = this.claiming.get(stripe);
    claimers?.shift();
    if (claimers?.length === 0) this.claiming.delete(stripe);
  }

  private answered(parked: Parked, result: number): void {
    if (result < 0) parked.result = result;
    if (--parked.missing > 0) return;
    if (parked.filled) {
      parked.claims.length = 0;
      this.finish(parked, parked.result);
    } else if (parked.result !== 0) {
      this.finish(parked, parked.result);
    } else if (parked.claims.length === 0) {
      this.parked.delete(parked);
      this.base.submit(parked.request);
    } else {
      this.fill(parked);
    }
  }

  private fill(parked: Parked): void {
    const { request } = parked;
    parked.filling = true;
    const filling =
      this.fillings.pop() ??
      this.requests.add(new Filling(this.requests.nextIndex, this, request.iovecs));
    filling.parked = parked;
    filling.copy(request);
    // A claimed stripe reads as zeroes after a discard, not as what was there before.
    filling.op = request.op === DISCARD ? WRITE_ZEROES : request.op;
    filling.unmap = request.unmap || request.op === DISCARD;
    this.base.submit(filling);
  }

  /** Gives up what claims are left, and tells the request's owner. */
  private finish(parked: Parked, result: number): void {
    this.leave(parked);
    parked.request.result = result;
    parked.request.owner.completed(parked.request);
  }

  private leave(parked: Parked): void {
    const stripes = parked.claims.splice(0);
    for (const stripe of stripes) this.leaveClaim(stripe);
    if (stripes.length > 0) this.giveBack(stripes);
    this.parked.delete(parked);
  }

  /** Tells main that claimed stripes are as they were. */
  private giveBack(claims: number[]): void {
    const stripes = runsOf(claims);
    this.post({ kind: 'claimDone', queue: this.options.queue, stripes, ok: false });
  }
}
