import { loadListenConfig } from '../config/load_remote_config.ts';
import { freeXts } from '../crypto/xts.ts';
import { type Disk, openDisk } from '../device/disk.ts';
import type { Log } from '../log.ts';
import { DiskReader } from '../remote/plain_reader.ts';
import { ServedStripes } from '../remote/served_disk.ts';
import { SENDERS } from '../remote/socket_threads.ts';
import { StripeServer } from '../remote/stripe_server.ts';
import type { StripeSource } from '../stripe/interfaces.ts';
import type { Arguments } from './arguments.ts';
import { freeDescriptors } from './descriptors.ts';
import { openDiskStripes } from './disk_stripes.ts';
import { kekFileOf } from './kek_file.ts';
import { expandKeys, readSettings, type Settings, unlinkKek } from './served_disk.ts';
import { notifyServiceManager } from './service_manager.ts';
import { StopSignals } from './signals.ts';
import { Watchdog } from './watchdog.ts';

const DRAIN_MS = 10_000;
/** Descriptors for all but clients: those that are refused, look-ups of names, and sending of files. */
const SPARE_DESCRIPTORS = 16 + SENDERS;

/** `ubiblk serve stripes`: gives a disk's stripes to other hosts (docs/remote-stripes.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const listenFile = args.required('listen-config');
  const settings = await readSettings(args, log);
  const kekFile = kekFileOf(args);
  let xts = 0;
  try {
    const listen = loadListenConfig(listenFile, {
      ...(kekFile !== undefined && { kekFile }),
      strict: args.has('strict'),
      warn: (line) => log.warn(line),
    });
    try {
      xts = expandKeys(settings.config, log);
      return await serve(args, settings, listen.config, xts, log);
    } finally {
      listen.wipeSecrets();
    }
  } finally {
    settings.wipeSecrets();
    freeXts(xts);
  }
}

async function serve(
  args: Arguments,
  settings: Settings,
  listen: ReturnType<typeof loadListenConfig>['config'],
  xts: number,
  log: Log,
): Promise<number> {
  const { address, psk, operationTimeoutMs, maxClients } = listen;
  const disk = await openDisk({ ...settings.config, directIo: false, readOnly: true }, log);
  let source: StripeSource | null = null;
  let server: StripeServer | null = null;
  try {
    const served = await openStripes(disk, settings, xts, log);
    source = served.source;
    settings.wipeSecrets();
    await unlinkKek(args);
    const signals = new StopSignals(log);
    if (!psk)
      log.warn('stripes are served in the clear, to anybody: give psk_identity and psk_secret');
    server = await StripeServer.start(
      served,
      {
        address,
        ...(psk && { psk }),
        operationMs: operationTimeoutMs,
        maxClients: possibleClients(maxClients, source, log),
      },
      log,
    );
    log.info(`serving ${served.stripes} stripes of '${disk.path}' at ${server.localAddress}`);
    notifyServiceManager('READY=1');
    const watchdog = Watchdog.start(null, log);
    await signals.stop;
    watchdog.end();
    notifyServiceManager('STOPPING=1');
    await server.drain(DRAIN_MS);
    const { stripes, bytes } = server.counts;
    log.info('stopped', { stripes, bytes });
    return 0;
  } finally {
    await source?.close();
    // What is still being sent of it ends with the process.
    if (!server?.clientCount) disk.close();
  }
}

/** Without descriptors for more, clients would wait, and the event loop would not. */
function possibleClients(wanted: number, source: StripeSource | null, log: Log): number {
  const free = freeDescriptors() - SPARE_DESCRIPTORS - (source?.parallel ?? 0);
  const possible = Math.max(1, Math.min(wanted, free));
  if (possible < wanted) {
    log.warn(
      `max_clients is taken as ${possible} instead of ${wanted}: this process may open no more files; ` +
        'raise its limit (LimitNOFILE, ulimit -n)',
    );
  }
  return possible;
}

/** What there is to serve. @throws UserError where some of it can't be had */
async function openStripes(
  disk: Disk,
  { config }: Settings,
  xts: number,
  log: Log,
): Promise<ServedStripes> {
  const facts = { ...disk.facts, xts };
  const { shift, headers, source } = await openDiskStripes(disk, config, xts, log);
  return new ServedStripes(shift, facts.sizeBytes, headers, new DiskReader(facts), source);
}
