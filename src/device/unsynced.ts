/** Answers flushes at once, and syncs nothing (`skip_sync`). */
import { Filter } from './filter.ts';
import { type BlockRequest, FLUSH } from './request.ts';

export class UnsyncedLayer extends Filter {
  override submit(request: BlockRequest): void {
    if (request.op !== FLUSH) {
      this.below.submit(request);
      return;
    }
    request.result = 0;
    request.owner.completed(request);
  }
}
