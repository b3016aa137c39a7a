/** The Workers of a server, as its main thread sees them. */
import { errnoName } from '../../ffi/errno.ts';
import { shim } from '../../ffi/library.ts';
import { UserError } from '../errors.ts';
import type { QueueMessage } from '../stripe/shared_state.ts';

/** What a Worker answers: that it is ready, that it has ended, or why it can't start. */
export type WorkerAnswer =
  | { kind: 'ready' }
  | { kind: 'ended' }
  | { kind: 'stripes'; message: QueueMessage }
  | { kind: 'refused'; message: string; user: boolean };

/** A Worker that blocks for ever once it is started: never terminated, it ends with the process. */
export class Thread {
  /** Resolves when its work is done. */
  readonly ended: Promise<undefined>;
  /** Resolves where it has died of an internal error; never rejects. */
  readonly failed: Promise<Error>;
  private readonly ready = Promise.withResolvers<void>();

  /** @param stripes takes what a queue tells main of the stripes of its disk */
  constructor(
    private readonly worker: Worker,
    stripes: (message: QueueMessage) => void = () => {},
  ) {
    const ended = Promise.withResolvers<undefined>();
    const failed = Promise.withResolvers<Error>();
    this.ended = ended.promise;
    this.failed = failed.promise;
    worker.onmessage = (event: MessageEvent<WorkerAnswer>) => {
      const answer = event.data;
      if (answer.kind === 'ready') this.ready.resolve();
      else if (answer.kind === 'ended') ended.resolve(undefined);
      else if (answer.kind === 'stripes') stripes(answer.message);
      else this.ready.reject(errorOf(answer));
    };
    worker.onerror = (event) => {
      const error = new Error(`a thread ended: ${event.message}`);
      this.ready.reject(error);
      failed.resolve(error);
    };
  }

  /**
   * Tells it what to do; resolves when it is ready.
   * @throws UserError or Error where it can't
   */
  async start(message: unknown): Promise<void> {
    this.worker.postMessage(message);
    await this.ready.promise;
  }
}

/** The error that a Worker has told of. */
export function errorOf({ message, user }: { message: string; user: boolean }): Error {
  return user ? new UserError(message) : new Error(message);
}

/** @throws UserError where the process has no descriptor left */
export function eventFd(): number {
  const fd = shim.ubiblk_eventfd();
  if (fd < 0) throw new UserError(`no event descriptor: ${errnoName(fd)}; raise 'ulimit -n'`);
  return fd;
}
