/**
 * What the main thread and the queue threads share of a lazy disk: one byte for each stripe, which
 * only main writes, and for each queue a ring of answers to what it asked main for. Nobody waits here:
 * main wakes a queue by its eventfd, a queue asks main by a message.
 */

/** Bits of a stripe's byte, as in the metadata file. */
export const FETCHED = 1;
export const WRITTEN = 2;
export const HAS_SOURCE = 4;

/** What a queue can ask for. */
export const Want = {
  /** The stripe's content is on the disk. */
  LOCAL: 0,
  /** And that it was written to is recorded. */
  WRITTEN: 1,
  /** To make it local by overwriting all of it; or, if it is local meanwhile, that. */
  CLAIM: 2,
} as const;
export type Want = (typeof Want)[keyof typeof Want];

/** Results of an answer besides -errno. */
export const GRANTED = 0;
/** The stripe is for this request alone to fill; `claimDone` must follow. */
export const CLAIMED = 1;

/** Stripes that follow each other: messages of thousands are small, and quick to send. */
export interface StripeRun {
  first: number;
  count: number;
}

export interface Ask extends StripeRun {
  want: Want;
}

/** What a queue tells main. */
export type QueueMessage =
  | { kind: 'ask'; queue: number; asks: Ask[] }
  /** Stripes that are to become local when there is nothing else to do; no answer comes. */
  | { kind: 'wish'; queue: number; stripes: number[] }
  /** The request that held the claims has been carried out on the disk, or has failed. */
  | { kind: 'claimDone'; queue: number; stripes: StripeRun[]; ok: boolean }
  /** The queue reads the image no more, and has let go of it. */
  | { kind: 'imageReleased'; queue: number };

/** Calls for each stripe of a run, in order. */
export function eachStripe({ first, count }: StripeRun, call: (stripe: number) => void): void {
  for (let stripe = first; stripe < first + count; stripe++) call(stripe);
}

/** The runs that stripes make, in order. */
export function runsOf(stripes: readonly number[]): StripeRun[] {
  const runs: StripeRun[] = [];
  let last: StripeRun | null = null;
  for (const stripe of stripes) {
    if (last && stripe === last.first + last.count) {
      last.count++;
    } else {
      last = { first: stripe, count: 1 };
      runs.push(last);
    }
  }
  return runs;
}

export interface Answer {
  stripe: number;
  want: Want;
  /** GRANTED, CLAIMED or -errno. */
  result: number;
}

const HEADER_WORDS = 16;
/** Answers that a queue's ring holds; more wait at main. A power of two. */
const RING_ANSWERS = 1024;
const ANSWER_WORDS = 2;
/** Word of the header: every stripe is local, and nothing is recorded of writes. */
const QUIET = 0;
/** Word of the header: nothing is left to fetch, and the image is to be closed. */
const IMAGE_DONE = 1;
/** Words of a queue's ring before its answers: how many were put in and taken out. */
const PUT = 0;
const TAKEN = 1;
const RING_HEADER_WORDS = 32;
const RING_WORDS = RING_HEADER_WORDS + RING_ANSWERS * ANSWER_WORDS;

/** Bytes of shared memory for so many stripes and queues. */
export function sharedStripeBytes(stripes: number, queues: number): number {
  return (HEADER_WORDS + queues * RING_WORDS) * 4 + queues * 8 + stripes;
}

export class SharedStripes {
  /** One byte for each stripe: FETCHED, WRITTEN, HAS_SOURCE. */
  readonly states: Uint8Array;
  private readonly words: Int32Array;
  /** Bytes that each queue has read from the image for its requests. */
  private readonly fromImage: Float64Array;

  constructor(
    readonly shared: SharedArrayBuffer,
    stripes: number,
    private readonly queues: number,
  ) {
    const words = HEADER_WORDS + queues * RING_WORDS;
    this.words = new Int32Array(shared, 0, words);
    this.fromImage = new Float64Array(shared, words * 4, queues);
    this.states = new Uint8Array(shared, words * 4 + queues * 8, stripes);
  }

  /** Whether every stripe is local and no write needs to be recorded: nobody need look further. */
  get quiet(): boolean {
    return Atomics.load(this.words, QUIET) === 1;
  }

  set quiet(quiet: boolean) {
    Atomics.store(this.words, QUIET, quiet ? 1 : 0);
  }

  /** Whether queues are to let go of the image. */
  get imageDone(): boolean {
    return Atomics.load(this.words, IMAGE_DONE) === 1;
  }

  set imageDone(done: boolean) {
    Atomics.store(this.words, IMAGE_DONE, done ? 1 : 0);
  }

  /** Queue: so many bytes of a request came from the image. */
  countFromImage(queue: number, bytes: number): void {
    this.fromImage[queue] += bytes;
  }

  /** Main: the sum of that over all queues. */
  get bytesFromImage(): number {
    return this.fromImage.reduce((sum, bytes) => sum + bytes, 0);
  }

  /** Queue: a stripe's bits, which main may change between two looks at them. */
  look(stripe: number): number {
    return Atomics.load(this.states, stripe);
  }

  /** Main: puts an answer into a queue's ring; false where it is full. */
  put(queue: number, { stripe, want, result }: Answer): boolean {
    const base = this.ring(queue);
    const put = Atomics.load(this.words, base + PUT);
    if (((put - Atomics.load(this.words, base + TAKEN)) | 0) >= RING_ANSWERS) return false;
    const at = base + RING_HEADER_WORDS + (put & (RING_ANSWERS - 1)) * ANSWER_WORDS;
    this.words[at] = stripe;
    // Errnos are below 4096.
    this.words[at + 1] = (want << 16) | (result & 0xffff);
    Atomics.store(this.words, base + PUT, (put + 1) | 0);
    return true;
  }

  /** Queue: takes its next answer into `answer`; false where there is none. */
  take(queue: number, answer: Answer): boolean {
    const base = this.ring(queue);
    const taken = Atomics.load(this.words, base + TAKEN);
    if (taken === Atomics.load(this.words, base + PUT)) return false;
    const at = base + RING_HEADER_WORDS + (taken & (RING_ANSWERS - 1)) * ANSWER_WORDS;
    const word = this.words[at + 1];
    answer.stripe = this.words[at];
    answer.want = (word >> 16) as Want;
    answer.result = (word << 16) >> 16;
    Atomics.store(this.words, base + TAKEN, (taken + 1) | 0);
    return true;
  }

  private ring(queue: number): number {
    if (queue >= this.queues) throw new Error(`there is no queue ${queue}`);
    return HEADER_WORDS + queue * RING_WORDS;
  }
}
