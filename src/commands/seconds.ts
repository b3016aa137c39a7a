import { UsageError } from '../errors.ts';
import type { Arguments } from './arguments.ts';

const MIN_SECONDS = 0.1;
const MAX_SECONDS = 3600;

/**
 * The value in seconds of an option, from a tenth to an hour.
 * @param otherwise where it was not given
 * @param least allowed
 * @throws UsageError for anything else
 */
export function secondsOf(
  args: Arguments,
  option: string,
  otherwise: number,
  least = MIN_SECONDS,
): number {
  const text = args.value(option) ?? String(otherwise);
  const value = Number(text);
  if (!/^\d+(\.\d+)?$/.test(text) || value < least || value > MAX_SECONDS) {
    throw new UsageError(
      `--${option} must be a number from ${least} to ${MAX_SECONDS}, not '${text}'`,
    );
  }
  return value;
}
