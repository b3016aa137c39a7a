/**
 * Takes requests apart that zero many stripes which aren't had yet: they go part by part, and a few of
 * them at a time, so that neither a queue nor main has a disk's worth of stripes on its hands. A part
 * begins when the one before is recorded; with the last one the request is done.
 */
import {
  BlockRequest,
  RequestList,
  type RequestOwner,
  type RequestTable,
} from '../device/request.ts';

/** A part of a request. */
class Part extends BlockRequest {
  whole: BlockRequest | null = null;
}

export class LargeZeroes implements RequestOwner {
  /** Requests that have not been begun. */
  private readonly waiting = new RequestList();
  private readonly free: Part[] = [];
  private parts = 0;
  private waitingCount = 0;

  /**
   * @param most requests at a time
   * @param endOf where a part ends that begins at an offset of the disk, `end` at the latest
   * @param submit carries out a part
   */
  constructor(
    private readonly requests: RequestTable,
    private readonly most: number,
    private readonly endOf: (offset: number, end: number) => number,
    private readonly submitPart: (part: BlockRequest) => void,
  ) {}

  /** Requests that wait for others to be done. */
  get inFlight(): number {
    return this.waitingCount;
  }

  submit(request: BlockRequest): void {
    this.waiting.push(request);
    this.waitingCount++;
    this.begin();
  }

  completed(request: BlockRequest): void {
    const part = request as Part;
    const whole = part.whole as BlockRequest;
    if (part.result === 0 && part.offset + part.length < whole.offset + whole.length) {
      this.goOn(part, whole);
      return;
    }
    this.release(part);
    whole.result = part.result;
    whole.owner.completed(whole);
    this.begin();
  }

  /** Nothing is left to do of what a part has done: the whole of it can be begun again. */
  abandoned(request: BlockRequest): void {
    const part = request as Part;
    const whole = part.whole as BlockRequest;
    this.release(part);
    whole.owner.abandoned?.(whole);
    this.begin();
  }

  /** Takes back the requests that have not been begun. */
  *unbegun(): Generator<BlockRequest> {
    for (let request = this.next(); request; request = this.next()) yield request;
  }

  private begin(): void {
    while (this.parts < this.most) {
      const whole = this.next();
      if (!whole) return;
      this.parts++;
      const { requests } = this;
      const part =
        this.free.pop() ?? requests.add(new Part(requests.nextIndex, this, whole.iovecs));
      part.whole = whole;
      part.copy(whole);
      part.length = 0;
      this.goOn(part, whole);
    }
  }

  private next(): BlockRequest | null {
    const request = this.waiting.shift();
    if (request) this.waitingCount--;
    return request;
  }

  private goOn(part: Part, whole: BlockRequest): void {
    part.offset += part.length;
    part.length = this.endOf(part.offset, whole.offset + whole.length) - part.offset;
    this.submitPart(part);
  }

  private release(part: Part): void {
    part.whole = null;
    this.parts--;
    this.free.push(part);
  }
}
