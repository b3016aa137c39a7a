import { UsageError } from '../errors.ts';
import { type LogFormat, type LogLevel, type LogSettings, logFormats, logLevels } from '../log.ts';
import type { Arguments } from './arguments.ts';

/**
 * What `--log-level` and `--log-format` say, else `UBIBLK_LOG`, else the command's default.
 * @throws UsageError for a word that is no level or format
 */
export function logSettings(
  args: Arguments,
  environment: Record<string, string | undefined>,
  defaultLevel: LogLevel,
): LogSettings {
  const option = args.value('log-level');
  const variable = environment.UBIBLK_LOG || undefined;
  const level =
    option === undefined
      ? oneOf<LogLevel>('UBIBLK_LOG', variable ?? defaultLevel, logLevels)
      : oneOf<LogLevel>('--log-level', option, logLevels);
  const format = args.value('log-format') ?? 'human';
  return { level, format: oneOf<LogFormat>('--log-format', format, logFormats) };
}

function oneOf<Word extends string>(what: string, value: string, words: readonly Word[]): Word {
  const word = words.find((candidate) => candidate === value);
  if (word === undefined) {
    throw new UsageError(`${what} must be one of ${words.join(', ')}, not '${value}'`);
  }
  return word;
}
