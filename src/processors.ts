import { readFileSync } from 'node:fs';

/** The last CPU of the kernel's list of CPUs that can ever be there, as in `0-63` or `0,2-3`. */
export function highestPossibleCpu(): number {
  const cpuSetBits = 1024;
  try {
    const list = readFileSync('/sys/devices/system/cpu/possible', 'utf8');
    return Number(/(\d+)\s*$/.exec(list)?.[1] ?? cpuSetBits - 1);
  } catch {
    return cpuSetBits - 1;
  }
}
