/**
 * Loads a configuration, and looks for what is named on the command line, before and after its secrets
 * are wiped; the test is in memory.test.ts.
 */
import { loadDeviceConfig } from '../../src/config/load_device_config.ts';
import { UserError } from '../../src/errors.ts';
import { type Finding, type Needles, openMemory } from '../memory_scan.ts';

export interface Order {
  file: string;
  kekFile?: string;
  needles: Needles;
}

export interface Report {
  /** The disk's path, where the configuration was accepted. */
  path: string | undefined;
  loaded: Finding[];
  wiped: Finding[];
}

function load(file: string, kekFile: string | undefined) {
  try {
    return loadDeviceConfig(file, { kekFile, strict: true });
  } catch (error) {
    if (error instanceof UserError) return undefined;
    throw error;
  }
}

if (import.meta.main) {
  const { file, kekFile, needles } = JSON.parse(process.argv[2]) as Order;
  const search = openMemory();
  const result = load(file, kekFile);
  const loaded = search(needles);
  result?.wipeSecrets();
  const wiped = search(needles);
  const report: Report = { path: result?.config.path, loaded, wiped };
  process.stdout.write(JSON.stringify(report));
}
