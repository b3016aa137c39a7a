/** Log lines for requests that fail: each at first, then a few a minute, with how many were left out. */
import { errnoName } from '../../ffi/errno.ts';
import type { Log } from '../log.ts';
import type { FailureSink } from './file_device.ts';
import { opName } from './request.ts';

const PER_MINUTE = 10;

export function failureLog(log: Log): FailureSink {
  let minute = 0;
  let count = 0;
  return (request, result) => {
    const now = Math.floor(performance.now() / 60_000);
    if (now !== minute) {
      if (count > PER_MINUTE) log.error(`${count - PER_MINUTE} more requests failed`);
      minute = now;
      count = 0;
    }
    if (++count > PER_MINUTE) return;
    log.error(`${opName(request.op)} failed with ${errnoName(result)}`, {
      offset: request.offset,
      length: request.length,
    });
  };
}
