import { UsageError, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { BlockClient, type DeviceDescription } from '../probe/block_client.ts';
import { FrontendConnection } from '../probe/frontend_connection.ts';
import { type Measurement, measure, readTwice, writeAndCompare } from '../probe/phases.ts';
import { deviceLines, jsonReport, measurementLine, rows } from '../probe/report.ts';
import { sizeText } from '../size_text.ts';
import type { Arguments } from './arguments.ts';
import { writeOutput } from './output.ts';
import { secondsOf } from './seconds.ts';
import { parseSize } from './size.ts';

const DEFAULT_SPAN_BYTES = 64 * 1024 * 1024;
const TRANSFER_BYTES = 128 * 1024;
const MAX_DEPTH = 256;

interface Settings {
  socket: string;
  depth: number;
  secondsPerPhase: number;
  /** Bytes; undefined: the default, or the whole disk where it is smaller. */
  span: number | undefined;
  write: boolean;
  hugePages: boolean;
  json: boolean;
  timeoutMs: number;
}

/** `ubiblk probe`: uses a served disk as a virtual machine would (docs/probe.md). */
export async function run(args: Arguments, log: Log): Promise<number> {
  const settings = readSettings(args);
  const connection = FrontendConnection.connect(settings.socket, settings.timeoutMs);
  try {
    const client = new BlockClient(connection, {
      depth: settings.depth,
      transferBytes: TRANSFER_BYTES,
      hugePages: settings.hugePages,
      timeoutMs: settings.timeoutMs,
    });
    log.debug('connected', { requestBytes: client.transferBytes });
    probe(client, settings);
    client.close();
  } finally {
    connection.close();
  }
  return 0;
}

function readSettings(args: Arguments): Settings {
  const size = args.value('size');
  return {
    socket: args.required('socket'),
    depth: depth(args),
    secondsPerPhase: secondsOf(args, 'seconds', 2),
    span: size === undefined ? undefined : parseSize('--size', size),
    write: args.has('write'),
    hugePages: args.has('huge-pages'),
    json: args.has('json'),
    timeoutMs: secondsOf(args, 'timeout', 10) * 1000,
  };
}

function depth(args: Arguments): number {
  const text = args.value('depth') ?? '32';
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < 1 || value > MAX_DEPTH) {
    throw new UsageError(`--depth must be a whole number from 1 to ${MAX_DEPTH}, not '${text}'`);
  }
  return value;
}

function probe(client: BlockClient, settings: Settings): void {
  const { write, json } = settings;
  const { device } = client;
  const print = (text: string) => {
    if (!json) writeOutput(text);
  };
  const id = client.readId();
  print(deviceLines(device, id));
  const spanBytes = spanOf(device, settings);
  if (write)
    writeAndCompare(client, spanBytes, settings.depth, Math.floor(Math.random() * 2 ** 32));
  else readTwice(client, spanBytes, settings.depth);
  const how = write ? 'written, flushed, read back' : 'read twice (--write checks more)';
  print(rows([['checked', `${sizeText(spanBytes)} ${how}: every byte the same`]]));

  const measurements: Measurement[] = [];
  for (const random of [true, false]) {
    for (const writes of write ? [false, true] : [false]) {
      const measurement = measure(client, {
        name: `${random ? 'random' : 'sequential'} ${writes ? 'write' : 'read'}`,
        random,
        write: writes,
        spanBytes,
        depth: settings.depth,
        durationS: settings.secondsPerPhase,
      });
      print(measurementLine(measurement));
      measurements.push(measurement);
    }
  }
  const checked = { bytes: spanBytes, written: write };
  if (json) writeOutput(jsonReport(settings.socket, device, id, checked, measurements));
}

/** How much of the disk is used, from its start on. */
function spanOf(device: DeviceDescription, { span, write }: Settings): number {
  const { capacityBytes, logicalBlockBytes } = device;
  if (write && device.readOnly) {
    throw new UserError('the disk is read-only; leave --write out to check and measure reads');
  }
  if (span !== undefined && span > capacityBytes) {
    throw new UserError(`the disk has only ${capacityBytes} bytes; give a smaller --size`);
  }
  const bytes = span ?? Math.min(DEFAULT_SPAN_BYTES, capacityBytes);
  const whole = bytes - (bytes % logicalBlockBytes);
  if (whole === 0) {
    throw new UserError(
      `there is no block of ${logicalBlockBytes} bytes to use in ${bytes} bytes of the disk`,
    );
  }
  return whole;
}
