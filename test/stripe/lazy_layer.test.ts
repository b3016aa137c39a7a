/** A queue's requests whose stripes aren't local: read from the image, and what becomes of them if not. */
import { beforeEach, expect, spyOn, test } from 'bun:test';
import { EIO } from '../../ffi/errno.ts';
import { openLibrary } from '../../ffi/library.ts';
import { IovecTable } from '../../ffi/ring.ts';
import {
  type BlockDevice,
  type BlockOp,
  BlockRequest,
  DISCARD,
  READ,
  RequestTable,
  WRITE,
  WRITE_ZEROES,
} from '../../src/device/request.ts';
import { LazyLayer } from '../../src/stripe/lazy_layer.ts';
import {
  CLAIMED,
  eachStripe,
  FETCHED,
  GRANTED,
  HAS_SOURCE,
  type QueueMessage,
  SharedStripes,
  sharedStripeBytes,
  Want,
} from '../../src/stripe/shared_state.ts';

openLibrary();

const STRIPE = 65536;
const STRIPES = 40;
const SECTOR = 512;

/** Holds what it is given until a test ends it. */
class FakeDevice implements BlockDevice {
  readonly requests: BlockRequest[] = [];

  get inFlight(): number {
    return this.requests.length;
  }

  submit(request: BlockRequest): void {
    this.requests.push(request);
  }

  end(result: number): void {
    const request = this.requests.shift() as BlockRequest;
    request.result = result;
    request.owner.completed(request);
  }
}

let shared: SharedStripes;
let base: FakeDevice;
let image: FakeDevice;
let table: RequestTable;
let posted: QueueMessage[];
let answers: [number, number][];
let abandoned: number[];

beforeEach(() => {
  shared = new SharedStripes(new SharedArrayBuffer(sharedStripeBytes(STRIPES, 1)), STRIPES, 1);
  shared.states.fill(HAS_SOURCE);
  base = new FakeDevice();
  image = new FakeDevice();
  table = new RequestTable();
  posted = [];
  answers = [];
  abandoned = [];
});

/** Of stripes and requests that are zeroed at a time. */
const zeroing = { stripes: 8, requests: 2 };

function layerWith(copyOnRead: boolean): LazyLayer {
  const options = {
    zeroing,
    queue: 0,
    stripeBytes: STRIPE,
    diskBytes: STRIPES * STRIPE,
    trackWritten: false,
    imageBytes: STRIPES * STRIPE,
    copyOnRead,
  };
  return new LazyLayer(base, image, shared, table, options, (message) => posted.push(message));
}

const iovecs = new IovecTable(8);

/** A request in as many parts as there are addresses, one sector each. */
function request(op: BlockOp, stripe: number, ...addresses: number[]) {
  const owner = {
    completed: ({ index, result }: BlockRequest) => answers.push([index, result]),
    abandoned: ({ index }: BlockRequest) => abandoned.push(index),
  };
  const made = table.add(new BlockRequest(table.nextIndex, owner, iovecs));
  made.op = op;
  made.offset = stripe * STRIPE + SECTOR;
  made.length = addresses.length * SECTOR;
  made.segments = addresses.length;
  made.address = addresses[0];
  for (const [i, address] of addresses.entries()) iovecs.set(i, address, SECTOR);
  return made;
}

/** Main fetches a stripe and says so. */
function fetched(layer: LazyLayer, stripe: number): void {
  shared.states[stripe] |= FETCHED;
  shared.put(0, { stripe, want: Want.LOCAL, result: GRANTED });
  layer.receive();
}

function asked(): number[] {
  return posted.flatMap((message) =>
    message.kind === 'ask' ? message.asks.map(({ first }) => first) : [],
  );
}

/** What of the disk is to become local without anybody who waits for it. */
function wished(): number[] {
  return posted.flatMap((message) => (message.kind === 'wish' ? message.stripes : []));
}

for (const copyOnRead of [false, true]) {
  test(`a read goes to the image, and its stripe is fetched if it is to be: ${copyOnRead}`, () => {
    const layer = layerWith(copyOnRead);
    const read = request(READ, 3, 4096);
    layer.submit(read);
    expect([image.inFlight, base.inFlight]).toEqual([1, 0]);
    expect(image.requests[0]).toMatchObject({ op: READ, offset: read.offset, address: 4096 });
    image.end(0);
    expect(answers).toEqual([[read.index, 0]]);
    layer.receive();
    expect([asked(), wished()]).toEqual([[], copyOnRead ? [3] : []]);
  });

  test(`a read that the image fails waits for its stripe, and is whole then: ${copyOnRead}`, () => {
    const layer = layerWith(copyOnRead);
    const read = request(READ, 3, 4096, 16384, 32768);
    layer.submit(read);
    // What a transfer does that falls short after a part and a half.
    const [reading] = image.requests;
    reading.iovecs.set(reading.iovec + 1, 16384 + 256, SECTOR - 256);
    reading.iovec += 1;
    reading.segments -= 1;
    reading.address = 16384 + 256;
    image.end(-EIO);
    expect(answers).toEqual([]);
    expect(layer.inFlight).toBe(1);
    expect(asked()).toEqual([3]);
    fetched(layer, 3);
    expect(base.requests).toEqual([read]);
    expect(read).toMatchObject({ segments: 3, iovec: 0, length: 3 * SECTOR });
    const parts = [0, 1, 2].map((i) => [iovecs.address(i), iovecs.length(i)]);
    expect(parts).toEqual([4096, 16384, 32768].map((address) => [address, SECTOR]));
    base.end(0);
    expect(answers).toEqual([[read.index, 0]]);
    expect(layer.inFlight).toBe(0);
  });

  test(`a read that the image fails goes to the disk if that has the stripe meanwhile: ${copyOnRead}`, () => {
    const layer = layerWith(copyOnRead);
    const read = request(READ, 3, 4096);
    layer.submit(read);
    fetched(layer, 3);
    image.end(-EIO);
    expect(base.requests).toEqual([read]);
  });

  test(`one that waits for its stripe is given up: ${copyOnRead}`, () => {
    const layer = layerWith(copyOnRead);
    const reads = [request(READ, 3, 4096), request(READ, 3, 8192)];
    for (const read of reads) layer.submit(read);
    image.end(-EIO);
    layer.abandon();
    expect(abandoned).toEqual([reads[0].index]);
    // The other one only begins to wait now.
    image.end(-EIO);
    expect(layer.inFlight).toBe(1);
    layer.abandon();
    expect(abandoned).toEqual(reads.map(({ index }) => index));
    expect(layer.inFlight).toBe(0);
    fetched(layer, 3);
    expect(answers).toEqual([]);
    const again = request(READ, 3, 4096);
    layer.submit(again);
    expect(base.requests).toEqual([again]);
  });
}

test('a write waits for its stripe, whatever the image has', () => {
  const layer = layerWith(true);
  const write = request(WRITE, 5, 4096);
  layer.submit(write);
  expect([image.inFlight, base.inFlight]).toEqual([0, 0]);
  expect(asked()).toEqual([5]);
});

/** Main publishes a stripe right after the layer has looked at it for the first time. */
function publishedBehind(stripe: number, call: () => void): void {
  const { states } = shared;
  const spy = spyOn(shared, 'look').mockImplementation((looked) => {
    const state = states[looked];
    if (looked === stripe) states[stripe] |= FETCHED;
    return state;
  });
  call();
  spy.mockRestore();
}

test('a stripe that becomes local while the layer looks at it is not waited for', () => {
  const layer = layerWith(false);
  const write = request(WRITE, 5, 4096);
  publishedBehind(5, () => layer.submit(write));
  expect(base.requests).toEqual([write]);
  expect([layer.inFlight, asked()]).toEqual([1, []]);
  const read = request(READ, 6, 4096);
  layer.submit(read);
  publishedBehind(6, () => image.end(-EIO));
  expect(base.requests).toEqual([write, read]);
  const both = request(WRITE, 7, 4096);
  both.length = STRIPE;
  publishedBehind(7, () => layer.submit(both));
  expect(base.requests).toEqual([write, read]);
  expect(asked()).toEqual([8]);
  shared.states[8] |= FETCHED;
  shared.put(0, { stripe: 8, want: Want.WRITTEN, result: GRANTED });
  layer.receive();
  expect(base.requests).toEqual([write, read, both]);
});

test('what was read from the image is wished for once, and not before reads of the image', () => {
  const layer = layerWith(true);
  for (let stripe = 0; stripe < 10; stripe++) {
    layer.submit(request(READ, stripe, 4096));
    layer.submit(request(READ, stripe, 8192));
  }
  layer.receive();
  expect(wished()).toEqual([]);
  while (image.inFlight > 0) image.end(0);
  layer.receive();
  expect([wished(), posted.length]).toEqual([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], 1]);
  layer.submit(request(READ, 4, 4096));
  image.end(0);
  layer.receive();
  expect(posted.length).toBe(1);
});

test('where reads of the image never end, wishes come many at a time', () => {
  const layer = layerWith(true);
  for (let stripe = 0; stripe < 20; stripe++) layer.submit(request(READ, stripe, 4096));
  layer.receive();
  expect([wished().length, image.inFlight]).toEqual([20, 20]);
});

test('a stripe that was wished for is asked for by whoever waits for it', () => {
  const layer = layerWith(true);
  layer.submit(request(READ, 4, 4096));
  layer.submit(request(WRITE, 4, 4096));
  layer.submit(Object.assign(request(READ, 4, 4096), { length: 2 * STRIPE }));
  expect(asked()).toEqual([4, 4]);
  image.end(0);
  layer.receive();
  expect(wished()).toEqual([4]);
});

function zeroes(op: typeof DISCARD | typeof WRITE_ZEROES, offset: number, length: number) {
  return Object.assign(request(op, 0, 0), { offset, length });
}

/** Main answers what was asked since the last time. @returns what that was: first, count and want */
function answerAll(layer: LazyLayer): [number, number, Want][] {
  const asked: [number, number, Want][] = [];
  for (const message of posted.splice(0)) {
    if (message.kind === 'ask') {
      for (const { want, ...run } of message.asks) {
        asked.push([run.first, run.count, want]);
        const result = want === Want.CLAIM ? CLAIMED : GRANTED;
        eachStripe(run, (stripe) => {
          if (want !== Want.CLAIM) shared.states[stripe] |= FETCHED;
          shared.put(0, { stripe, want, result });
        });
      }
    } else if (message.kind === 'claimDone') {
      for (const run of message.stripes) {
        eachStripe(run, (stripe) => {
          shared.states[stripe] |= FETCHED;
          shared.put(0, { stripe, want: Want.CLAIM, result: GRANTED });
        });
      }
    }
  }
  layer.receive();
  return asked;
}

for (const op of [DISCARD, WRITE_ZEROES] as const) {
  test(`many stripes are zeroed some at a time, and are all recorded before that is told: ${op}`, () => {
    const layer = layerWith(false);
    // Two that are there already, and a part of one at either end.
    shared.states[12] |= FETCHED;
    shared.states[13] |= FETCHED;
    const [offset, length] = [STRIPE / 2, 27 * STRIPE];
    const large = zeroes(op, offset, length);
    layer.submit(large);
    const asked: [number, number, Want][][] = [];
    const written: [number, number][] = [];
    while (answers.length === 0) {
      expect(layer.inFlight).toBe(1);
      asked.push(answerAll(layer));
      const [part] = base.requests;
      expect(part.op === WRITE_ZEROES || op === DISCARD).toBe(true);
      written.push([part.offset, part.length]);
      base.end(0);
      // Its record is waited for.
      answerAll(layer);
    }
    expect(asked).toEqual([
      [
        [0, 1, Want.WRITTEN],
        [1, 7, Want.CLAIM],
      ],
      [
        [8, 4, Want.CLAIM],
        [14, 4, Want.CLAIM],
      ],
      [[18, 8, Want.CLAIM]],
      [
        [26, 1, Want.CLAIM],
        [27, 1, Want.WRITTEN],
      ],
    ]);
    let at = offset;
    for (const [from, bytes] of written) {
      expect(from).toBe(at);
      at += bytes;
    }
    expect(at).toBe(offset + length);
    expect(answers).toEqual([[large.index, 0]]);
    expect(layer.inFlight).toBe(0);
  });
}

test('of many such requests some are begun, and each ends with its own result', () => {
  const layer = layerWith(false);
  const all = [0, 1, 2, 3].map((i) => zeroes(WRITE_ZEROES, i * 10 * STRIPE, 10 * STRIPE));
  for (const each of all) layer.submit(each);
  expect(layer.inFlight).toBe(4);
  expect(answerAll(layer)).toEqual([
    [0, 8, Want.CLAIM],
    [10, 8, Want.CLAIM],
  ]);
  base.end(-EIO);
  expect(answers).toEqual([[all[0].index, -EIO]]);
  base.end(0);
  // The third one has begun, and the second one has gone on when its first part was recorded.
  expect(answerAll(layer)).toEqual([[20, 8, Want.CLAIM]]);
  expect(answerAll(layer)).toEqual([[18, 2, Want.CLAIM]]);
});

test('requests that zero many stripes are given up, begun or not', () => {
  const layer = layerWith(false);
  const all = [0, 1, 2, 3].map((i) => zeroes(WRITE_ZEROES, i * 10 * STRIPE, 10 * STRIPE));
  for (const each of all) layer.submit(each);
  layer.abandon();
  expect(abandoned.toSorted()).toEqual(all.map(({ index }) => index));
  expect(layer.inFlight).toBe(0);
  answerAll(layer);
  answerAll(layer);
  expect([answers, base.requests]).toEqual([[], []]);
  const [again] = all;
  layer.submit(again);
  expect(layer.inFlight).toBe(1);
});

test('what waits fails when that takes too long, and what is being carried out ends as it does', () => {
  const layer = layerWith(false);
  const all = [
    request(WRITE, 1, 4096),
    zeroes(WRITE_ZEROES, 2 * STRIPE, STRIPE),
    ...[10, 20, 30].map((first) => zeroes(WRITE_ZEROES, first * STRIPE, 10 * STRIPE)),
  ];
  const [write, filling, ...large] = all;
  layer.submit(filling);
  answerAll(layer);
  for (const each of [write, ...large]) layer.submit(each);
  layer.failWaiting();
  const failed = [write, ...large].map(({ index }) => [index, -EIO]);
  expect(answers.toSorted()).toEqual(failed.toSorted() as [number, number][]);
  expect(layer.inFlight).toBeGreaterThan(0);
  // What comes of their questions is nobody's any more.
  base.end(0);
  answerAll(layer);
  answerAll(layer);
  expect(answers.at(-1)).toEqual([filling.index, 0]);
  expect([answers.length, base.requests.length, layer.inFlight]).toEqual([5, 0, 0]);
});

test('a request for stripes that are there is one request, however many they are', () => {
  const layer = layerWith(false);
  shared.states.fill(HAS_SOURCE | FETCHED);
  const large = zeroes(WRITE_ZEROES, 0, STRIPES * STRIPE);
  layer.submit(large);
  expect(base.requests).toEqual([large]);
});
