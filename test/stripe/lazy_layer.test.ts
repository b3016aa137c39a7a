/** A queue's requests whose stripes aren't local: read from the image, and what becomes of them if not. */
import { beforeEach, expect, test } from 'bun:test';
import { EIO } from '../../ffi/errno.ts';
import { openLibrary } from '../../ffi/library.ts';
import { IovecTable } from '../../ffi/ring.ts';
import {
  type BlockDevice,
  BlockRequest,
  READ,
  RequestTable,
  WRITE,
} from '../../src/device/request.ts';
import { LazyLayer } from '../../src/stripe/lazy_layer.ts';
import {
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
const STRIPES = 8;
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

function layerWith(copyOnRead: boolean): LazyLayer {
  const options = {
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
function request(op: typeof READ | typeof WRITE, stripe: number, ...addresses: number[]) {
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
    message.kind === 'ask' ? message.asks.map(({ stripe }) => stripe) : [],
  );
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
    expect(asked()).toEqual(copyOnRead ? [3] : []);
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
