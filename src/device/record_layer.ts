/**
 * Records what comes from above in an I/O log: writes before they go on, reads when they have succeeded
 * and before anybody is told. So what follows an answer is recorded after it, on whatever queue.
 */
import { Filter } from './filter.ts';
import type { IoLog } from './io_log.ts';
import {
  type BlockDevice,
  type BlockRequest,
  READ,
  type RequestOwner,
  type RequestTable,
  StandIn,
  WRITE,
  WRITE_ZEROES,
} from './request.ts';

export class RecordLayer extends Filter implements RequestOwner {
  private readonly free: StandIn[] = [];

  /** @param below gets requests whose data is in memory */
  constructor(
    below: BlockDevice,
    private readonly requests: RequestTable,
    private readonly log: IoLog,
  ) {
    super(below);
  }

  override submit(request: BlockRequest): void {
    if (request.op !== READ) {
      if (request.op === WRITE || request.op === WRITE_ZEROES) this.log.record('WRITE', request);
      this.below.submit(request);
      return;
    }
    const { nextIndex } = this.requests;
    const reading =
      this.free.pop() ?? this.requests.add(new StandIn(nextIndex, this, request.iovecs));
    reading.for(request);
    this.below.submit(reading);
  }

  completed(reading: BlockRequest): void {
    const request = this.takeBack(reading as StandIn);
    request.result = reading.result;
    if (request.result === 0) this.log.record('READ', request);
    request.owner.completed(request);
  }

  abandoned(reading: BlockRequest): void {
    const request = this.takeBack(reading as StandIn);
    request.owner.abandoned?.(request);
  }

  private takeBack(reading: StandIn): BlockRequest {
    const request = reading.request as BlockRequest;
    reading.request = null;
    this.free.push(reading);
    return request;
  }
}
