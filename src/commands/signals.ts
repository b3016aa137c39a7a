import type { Log } from '../log.ts';

const STOPS = [
  ['SIGTERM', 15],
  ['SIGINT', 2],
] as const;

/** What the user has sent the process to end it. */
export class StopSignals {
  /** The first SIGTERM or SIGINT. */
  readonly stop: Promise<undefined>;
  /** The second one, where the server has something to do at it. */
  readonly force: Promise<undefined>;
  stopping = false;
  /** Does what the first signal does. */
  readonly ask: () => void;
  private readonly stopNow: () => void;

  /**
   * SIGHUP is ignored: a terminal that goes away must not take a disk with it.
   * @param forces how many signals after the first one are told instead of ending the process at once
   */
  constructor(log: Log, forces = 0) {
    const stop = Promise.withResolvers<undefined>();
    const force = Promise.withResolvers<undefined>();
    this.stop = stop.promise;
    this.stopNow = () => {
      this.stopping = true;
      stop.resolve(undefined);
    };
    this.force = force.promise;
    let count = 0;
    for (const [signal, number] of STOPS) {
      process.on(signal, () => {
        if (++count > 1 + forces) {
          log.warn(`${signal} again: ending without waiting for requests in flight`);
          process.exit(128 + number);
        } else if (count > 1) {
          log.warn(`${signal} again: going on at once`);
          force.resolve(undefined);
        } else {
          log.info(`${signal}: finishing the requests in flight`);
          this.stopNow();
        }
      });
    }
    process.on('SIGHUP', () => log.debug('SIGHUP is ignored'));
    this.ask = () => {
      if (this.stopping) return;
      log.info('a client asks for the end: finishing the requests in flight');
      this.stopNow();
    };
  }
}
