/** The main thread's end of the control thread: one command after the other, each with its answer. */
import { openLibrary } from '../../../ffi/library.ts';
import type { Log } from '../../log.ts';
import { workerUrl } from '../../worker_url.ts';
import { errorOf } from '../thread.ts';
import type { ControlCalls } from './control_worker.ts';

export interface UblkControlStart {
  libraryFd: number;
  legacy: boolean;
}

export interface ControlCall {
  name: keyof ControlCalls;
  args: unknown[];
}

export type ControlAnswer =
  | { kind: 'done'; result: unknown }
  | { kind: 'slow'; what: string }
  | { kind: 'refused'; message: string; user: boolean };

export class UblkControlThread {
  private answered: PromiseWithResolvers<unknown> | null = null;
  private tail: Promise<unknown> = Promise.resolve();

  private constructor(
    private readonly worker: Worker,
    private readonly log: Log,
  ) {
    worker.onmessage = (event: MessageEvent<ControlAnswer>) => this.receive(event.data);
    worker.onerror = (event) => this.answered?.reject(new Error(event.message));
  }

  /** @throws UserError where there is no driver, or no permission to use it */
  static async start(log: Log): Promise<UblkControlThread> {
    const thread = new UblkControlThread(new Worker(controlWorker), log);
    const legacy = process.env.UBIBLK_UBLK_OPCODES === 'legacy';
    await thread.call('open', { libraryFd: openLibrary(), legacy });
    return thread;
  }

  /**
   * Has one of the control thread's commands carried out, when those before it are done.
   * @throws UserError or Error, as the command does
   */
  async call<Name extends keyof ControlCalls>(
    name: Name,
    ...args: Parameters<ControlCalls[Name]>
  ): Promise<ReturnType<ControlCalls[Name]>> {
    const turn = this.tail.then(() => {
      this.answered = Promise.withResolvers<unknown>();
      this.worker.postMessage({ name, args } satisfies ControlCall);
      return this.answered.promise;
    });
    this.tail = turn.catch(() => {});
    return (await turn) as ReturnType<ControlCalls[Name]>;
  }

  private receive(answer: ControlAnswer): void {
    if (answer.kind === 'done') this.answered?.resolve(answer.result);
    else if (answer.kind === 'refused') this.answered?.reject(errorOf(answer));
    else this.log.warn(answer.what);
  }
}

const controlWorker = workerUrl('frontend/ublk/control_worker.ts');
