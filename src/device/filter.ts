/** A layer that passes on what it has nothing to say to. */
import type { BlockDevice, BlockRequest } from './request.ts';

export class Filter implements BlockDevice {
  constructor(protected readonly below: BlockDevice) {}

  get inFlight(): number {
    return this.below.inFlight;
  }

  submit(request: BlockRequest): void {
    this.below.submit(request);
  }

  receive(): void {
    this.below.receive?.();
  }

  abandon(): void {
    this.below.abandon?.();
  }

  failWaiting(): void {
    this.below.failWaiting?.();
  }

  reset(): void {
    this.below.reset?.();
  }
}
