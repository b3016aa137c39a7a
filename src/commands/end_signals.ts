import { readFileSync } from 'node:fs';
import { constants } from 'node:os';

const endSignals = ['SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGTERM', 'SIGXCPU'] as const;

/**
 * From now on signals end the process through its `exit` event, with 128 + their number: what must
 * not be left behind is removed there. Signals that were ignored when the process began (`nohup`)
 * stay so.
 * @param say is called before the end
 */
export function exitOnSignals(say: (signal: string) => void): void {
  const ignored = BigInt(
    `0x${/^SigIgn:\s*(\w+)/m.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? 0}`,
  );
  for (const signal of endSignals) {
    const number = constants.signals[signal];
    if ((ignored >> BigInt(number - 1)) & 1n) continue;
    process.on(signal, () => {
      say(signal);
      process.exit(128 + number);
    });
  }
}
