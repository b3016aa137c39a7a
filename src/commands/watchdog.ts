import type { Heartbeat } from '../frontend/heartbeat.ts';
import type { Log } from '../log.ts';
import { notifyServiceManager } from './service_manager.ts';

/**
 * How often in its limit the service manager hears of us: a queue that a slow disk keeps from answering
 * for half of the limit is borne.
 */
const SIGNS_OF_LIFE = 4;

/**
 * The limit that the service manager has set, in milliseconds, where it watches this process
 * (sd_watchdog_enabled(3)).
 */
function watchdogLimitMs({ WATCHDOG_USEC, WATCHDOG_PID }: NodeJS.ProcessEnv): number | undefined {
  const limitUs = Number(WATCHDOG_USEC);
  if (!(limitUs > 0) || (WATCHDOG_PID && Number(WATCHDOG_PID) !== process.pid)) return undefined;
  return limitUs / 1000;
}

/**
 * Tells the service manager that the server lives, as long as every queue thread answers. Whoever is idle
 * answers, too. Without a watchdog in the unit nobody is asked.
 */
export class Watchdog {
  /** Queues that are known to be silent. */
  private told = '';
  private timer?: NodeJS.Timeout;

  /** @param heartbeat of the server's queues; null: it has none, and its event loop is all that is watched */
  static start(heartbeat: Heartbeat | null, log: Log): Watchdog {
    const watchdog = new Watchdog(heartbeat, log);
    const limitMs = watchdogLimitMs(process.env);
    if (limitMs === undefined) return watchdog;
    log.debug('the service manager watches', { limitMs });
    heartbeat?.ask();
    watchdog.timer = setInterval(() => watchdog.look(), limitMs / SIGNS_OF_LIFE).unref();
    return watchdog;
  }

  private constructor(
    private readonly heartbeat: Heartbeat | null,
    private readonly log: Log,
  ) {}

  /**
   * To be called before `STOPPING=1`. The service manager has another limit for the end, and a sign of life
   * would start its watchdog again, which knows nothing of how long the last sync of a disk takes.
   */
  end(): void {
    clearInterval(this.timer);
  }

  private look(): void {
    const { heartbeat, log } = this;
    const silent = (heartbeat?.silent ?? []).join(', ');
    if (silent !== this.told) {
      this.told = silent;
      if (silent === '') log.info('all queues answer again');
      else
        log.warn(`no answer of queue ${silent}: if it lasts, the service manager ends this server`);
    }
    if (silent !== '') return;
    notifyServiceManager('WATCHDOG=1');
    heartbeat?.ask();
  }
}
