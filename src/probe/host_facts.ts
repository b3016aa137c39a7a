/** Where a measurement was made. */
import { cpus, release } from 'node:os';

export interface HostFacts {
  /** The processor's name. */
  processor: string;
  processors: number;
  /** As `uname -r` tells it. */
  kernel: string;
  /** Of ubiblk. */
  version: string;
  commit: string;
}

/** This host, with a version and a commit of ubiblk. */
export function hostFacts(version: string, commit: string): HostFacts {
  const found = cpus();
  const processor = found[0]?.model.trim() ?? 'unknown';
  return { processor, processors: found.length, kernel: release(), version, commit };
}
