import { readdirSync, readFileSync } from 'node:fs';

/** How many more descriptors this process may open; infinity where the kernel doesn't tell. */
export function freeDescriptors(): number {
  const limits = readFileSync('/proc/self/limits', 'utf8');
  const most = Number(limits.match(/^Max open files +(\d+)/m)?.[1] ?? Number.POSITIVE_INFINITY);
  return most - readdirSync('/proc/self/fd').length;
}
