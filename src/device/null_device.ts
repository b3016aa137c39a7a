/** A disk that does nothing, at once: what is read is whatever the buffer held. For benchmarks. */
import type { BlockDevice, BlockRequest } from './request.ts';

export class NullDevice implements BlockDevice {
  readonly inFlight = 0;

  submit(request: BlockRequest): void {
    request.result = 0;
    request.owner.completed(request);
  }
}
