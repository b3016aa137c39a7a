import { type DeviceConfig, defaultTuning } from '../config/device_config.ts';
import { loadDeviceConfig } from '../config/load_device_config.ts';
import { expandXts, freeXts } from '../crypto/xts.ts';
import { checkDisk, checkSocketFolder, failures } from '../doctor/disk_checks.ts';
import { type Finding, ok, warn } from '../doctor/finding.ts';
import { type Host, thisHost } from '../doctor/host.ts';
import { checkHost } from '../doctor/host_checks.ts';
import { UsageError, UserError } from '../errors.ts';
import { escapeControls, type Log } from '../log.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { metricsPath } from './served_disk.ts';
import { checkSocketPlaces, refuseBusySocket } from './socket_places.ts';
import { sourceExtent } from './stripe_sources.ts';
import { version } from './version.ts';

/** `ubiblk doctor`: whether this host, and a disk, can be served well (docs/doctor.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  if (args.has('kek') && !args.has('config')) {
    throw new UsageError("option '--kek' needs '--config FILE'");
  }
  const findings = await findAll(args, thisHost, log);
  const count = (level: Finding['level']) => findings.filter((of) => of.level === level).length;
  const [failed, warned] = [count('fail'), count('warn')];
  if (args.has('json')) writeOutput(`${JSON.stringify({ version, failed, warned, findings })}\n`);
  else writeOutput(findings.map(lineOf).join(''));
  return failed > 0 ? 1 : 0;
}

function lineOf({ level, check, message, fix }: Finding): string {
  const text = fix === '' ? message : `${message}. ${fix}`;
  return `${level.toUpperCase().padEnd(4)}  ${check.padEnd(14)}  ${escapeControls(text)}\n`;
}

async function findAll(args: Arguments, host: Host, log: Log): Promise<Finding[]> {
  const ours = ok('version', `ubiblk ${version}, Bun ${Bun.version}`);
  const file = args.value('config');
  if (file === undefined) return [ours, ...checkHost(host, needsOf(defaultTuning, false))];
  const doubts: string[] = [];
  try {
    const { config, wipeSecrets } = loadDeviceConfig(file, {
      kekFile: args.value('kek'),
      strict: args.has('strict'),
      allowWeakKey: args.has('allow-weak-key'),
      warn: (line) => doubts.push(line),
    });
    try {
      const read = doubts.length > 0 ? doubts.map(doubt) : [ok('configuration', `'${file}'`)];
      const needs = needsOf(config, config.encryptionKey !== undefined);
      const ofDisk = await findOfDisk(config, host, log);
      return [ours, ...checkHost(host, needs), ...read, ...ofDisk];
    } finally {
      wipeSecrets();
    }
  } catch (error) {
    const ofHost = checkHost(host, needsOf(defaultTuning, false));
    const remedy = 'Correct it: docs/configuration.md lists the fields.';
    const wrong = failures('configuration', error, remedy);
    return [ours, ...ofHost, ...doubts.map(doubt), ...wrong];
  }
}

function doubt(line: string): Finding {
  return warn('configuration', line, 'See docs/configuration.md.');
}

function needsOf(
  { ioEngine, numQueues }: Pick<DeviceConfig, 'ioEngine' | 'numQueues'>,
  encrypted: boolean,
) {
  return { syncEngine: ioEngine === 'sync', encrypted, numQueues };
}

async function findOfDisk(config: DeviceConfig, host: Host, log: Log): Promise<Finding[]> {
  const xts = config.encryptionKey ? expandXts(config.encryptionKey) : 0;
  try {
    const { findings, stripeBytes } = await checkDisk(config, host, xts, log);
    if (stripeBytes !== null && config.stripeSource) {
      findings.push(...(await findOfSource(config.stripeSource, stripeBytes, log)));
    }
    return [...findings, ...(await findOfSockets(config))];
  } finally {
    freeXts(xts);
  }
}

async function findOfSource(
  source: NonNullable<DeviceConfig['stripeSource']>,
  stripeBytes: number,
  log: Log,
): Promise<Finding[]> {
  try {
    const { description } = await sourceExtent(source, stripeBytes, log);
    return [ok('stripe source', description)];
  } catch (error) {
    return failures('stripe source', error);
  }
}

async function findOfSockets(config: DeviceConfig): Promise<Finding[]> {
  const sockets = [
    ['socket', config.socket],
    ['rpc socket', config.rpcSocketPath],
    ['metrics', metricsPath(config)],
  ] as const;
  const findings: Finding[] = [];
  const free: [name: string, path: string][] = [];
  for (const [name, path] of sockets) {
    if (path === undefined) continue;
    if (await isServed(path)) {
      findings.push(ok(name, `a server listens at '${path}'`));
      continue;
    }
    try {
      // With those before it: no two may have one path.
      checkSocketPlaces([...free, [name, path]]);
      free.push([name, path]);
      findings.push(checkSocketFolder(name, path));
    } catch (error) {
      findings.push(...failures(name, error, 'Choose another path.'));
    }
  }
  return findings;
}

async function isServed(path: string): Promise<boolean> {
  try {
    await refuseBusySocket(path);
    return false;
  } catch (error) {
    return error instanceof UserError;
  }
}
