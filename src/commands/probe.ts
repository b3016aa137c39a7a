import { UsageError, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import { BlockClient } from '../probe/block_client.ts';
import { compareDisk, copyDisk } from '../probe/disk_file.ts';
import { FrontendConnection } from '../probe/frontend_connection.ts';
import { hostFacts } from '../probe/host_facts.ts';
import { Negotiation } from '../probe/negotiation.ts';
import { type Measurement, measure, readTwice, writeAndCompare } from '../probe/phases.ts';
import { deviceLines, featureLine } from '../probe/reference_lines.ts';
import {
  configLines,
  type Findings,
  featureLines,
  jsonReport,
  measurementLine,
  memoryLine,
  queueLines,
  rows,
} from '../probe/report.ts';
import { sizeText } from '../size_text.ts';
import type { Arguments } from './arguments.ts';
import { exitOnSignals } from './end_signals.ts';
import { writeOutput } from './output.ts';
import { Progress } from './progress.ts';
import { secondsOf } from './seconds.ts';
import { parseSize } from './size.ts';
import type { ProgramName } from './table.ts';
import { commit, version } from './version.ts';

const DEFAULT_SPAN_BYTES = 64 * 1024 * 1024;
const TRANSFER_BYTES = 128 * 1024;
const MAX_DEPTH = 256;
const MAX_QUEUES = 64;

/** Each does what the ones before it do, but for `copy` and `verify`: the first five have numbers. */
const STAGES = [
  'setup',
  'config',
  'memory',
  'virtqueue',
  'copy',
  'verify',
  'check',
  'bench',
] as const;
type Stage = (typeof STAGES)[number];
const NUMBERED = 5;

interface Settings {
  socket: string;
  stage: Stage;
  /** Where `copy` writes to, and what `verify` compares with. */
  output: string;
  verify: string;
  depth: number;
  queues: number;
  secondsPerPhase: number;
  /** Bytes; undefined: the default, or the whole disk where it is smaller. */
  span: number | undefined;
  write: boolean;
  hugePages: boolean;
  json: boolean;
  timeoutMs: number;
  /** Called as the reference system's program: prints lines as that one did. */
  asReference: boolean;
}

/** `ubiblk probe`: uses a served disk as a virtual machine would (docs/probe.md). */
export async function run(args: Arguments, log: Log, program?: ProgramName): Promise<number> {
  const settings = readSettings(args, program);
  const connection = FrontendConnection.connect(settings.socket, settings.timeoutMs);
  try {
    await new Probe(settings, connection, log).run();
  } finally {
    connection.close();
  }
  return 0;
}

function readSettings(args: Arguments, program?: ProgramName): Settings {
  const socket = args.required('socket');
  const size = args.value('size');
  const [output, verify] = [fileOf(args, 'output'), fileOf(args, 'verify')];
  const stage = stageOf(args, program, output, verify);
  if (stage === 'copy' && output === undefined) {
    throw new UsageError("stage 'copy' needs '--output FILE'");
  }
  if (stage === 'verify' && verify === undefined) {
    throw new UsageError("stage 'verify' needs '--verify FILE'");
  }
  const only = (option: string, ...stages: Stage[]) => {
    if (args.has(option) && !stages.includes(stage)) {
      throw new UsageError(`option '--${option}' is not for stage '${stage}'`);
    }
  };
  only('output', 'copy');
  only('verify', 'verify');
  only('write', 'check', 'bench');
  only('seconds', 'bench');
  only('size', 'copy', 'verify', 'check', 'bench');
  return {
    socket,
    stage,
    output: output ?? '',
    verify: verify ?? '',
    depth: numberOf(args, 'depth', 32, MAX_DEPTH),
    queues: numberOf(args, 'queues', 1, MAX_QUEUES),
    secondsPerPhase: secondsOf(args, 'seconds', 2),
    span: size === undefined ? undefined : parseSize('--size', size),
    write: args.has('write'),
    hugePages: args.has('huge-pages'),
    json: args.has('json'),
    timeoutMs: secondsOf(args, 'timeout', 10) * 1000,
    asReference: program !== undefined && !args.has('json'),
  };
}

function fileOf(args: Arguments, option: string): string | undefined {
  const path = args.value(option);
  if (path === '') throw new UsageError(`option '--${option}' needs a path that is not empty`);
  return path;
}

function stageOf(
  args: Arguments,
  program: ProgramName | undefined,
  output: string | undefined,
  verify: string | undefined,
): Stage {
  const text = args.value('stage');
  if (text === undefined) {
    if (program !== undefined || output !== undefined) return 'copy';
    return verify === undefined ? 'bench' : 'verify';
  }
  const numbers = STAGES.slice(0, NUMBERED).map((_, number) => String(number));
  const stage = STAGES.find((name, number) => name === text || numbers[number] === text);
  if (stage !== undefined) return stage;
  throw new UsageError(
    `--stage must be one of ${STAGES.join(', ')}, or a number from 0 to ${NUMBERED - 1}, not '${text}'`,
  );
}

function numberOf(args: Arguments, option: string, otherwise: number, most: number): number {
  const text = args.value(option) ?? String(otherwise);
  const value = Number(text);
  if (!/^\d+$/.test(text) || value < 1 || value > most) {
    throw new UsageError(`--${option} must be a whole number from 1 to ${most}, not '${text}'`);
  }
  return value;
}

/** One run, stage by stage, and what it finds. */
class Probe {
  constructor(
    private readonly settings: Settings,
    private readonly connection: FrontendConnection,
    private readonly log: Log,
  ) {}

  async run(): Promise<void> {
    const { settings } = this;
    const agreed = new Negotiation(this.connection);
    const findings: Findings = { socket: settings.socket, stage: settings.stage, agreed };
    this.print(settings.asReference ? featureLine(agreed.features) : featureLines(agreed));
    if (settings.stage !== 'setup') await this.useDevice(findings);
    if (settings.json) writeOutput(jsonReport(findings));
  }

  private async useDevice(findings: Findings): Promise<void> {
    const { settings } = this;
    const { stage, depth, queues, hugePages, timeoutMs } = settings;
    const device = findings.agreed.describe();
    findings.device = device;
    this.print(configLines(device));
    if (settings.asReference) this.print(deviceLines(device));
    if (stage === 'config') return;
    const client = new BlockClient(findings.agreed, device, {
      depth,
      queues,
      transferBytes: TRANSFER_BYTES,
      hugePages,
      timeoutMs,
    });
    this.log.debug('connected', { requestBytes: client.transferBytes });
    findings.memoryBytes = client.memoryBytes;
    this.print(memoryLine(client));
    if (stage === 'memory') {
      client.release();
      return;
    }
    client.startQueues();
    findings.inUse = { queues, depth };
    findings.id = await client.readId();
    this.print(queueLines(queues, depth, findings.id));
    await this.useDisk(client, findings);
    client.close();
  }

  private async useDisk(client: BlockClient, findings: Findings): Promise<void> {
    const { stage } = this.settings;
    if (stage === 'copy') await this.copy(client, findings);
    if (stage === 'verify') await this.verify(client, findings);
    if (stage === 'check' || stage === 'bench') await this.check(client, findings);
    if (stage === 'bench') await this.bench(client, findings);
  }

  private async copy(client: BlockClient, findings: Findings): Promise<void> {
    const { output, asReference } = this.settings;
    const bytes = this.wholeSpan(client);
    const progress = new Progress();
    exitOnSignals((signal) => {
      progress.clear();
      this.log.error(`${signal}: ended before the copy was complete; nothing is left of it`);
    });
    const update = (done: number, total: number) => progress.update(done, total);
    const writtenBytes = await copyDisk(client, output, bytes, update, this.log);
    progress.clear();
    findings.copied = { file: output, bytes, writtenBytes };
    const what = `${sizeText(bytes)} to '${output}', ${sizeText(writtenBytes)} of them not zeroes`;
    this.print(asReference ? 'Progress: Done!\n' : rows([['copied', what]]));
  }

  private async verify(client: BlockClient, findings: Findings): Promise<void> {
    const { verify, span } = this.settings;
    if (span !== undefined) this.wholeSpan(client);
    const progress = new Progress();
    const update = (done: number, total: number) => progress.update(done, total);
    const bytes = await compareDisk(client, verify, span, update);
    progress.clear();
    findings.verified = { file: verify, bytes };
    this.print(rows([['verified', `${sizeText(bytes)}: every byte as in '${verify}'`]]));
  }

  private async check(client: BlockClient, findings: Findings): Promise<void> {
    const { write } = this.settings;
    const bytes = this.testSpan(client);
    if (write) await writeAndCompare(client, bytes, Math.floor(Math.random() * 2 ** 32));
    else await readTwice(client, bytes);
    findings.checked = { bytes, written: write };
    const how = write ? 'written, flushed, read back' : 'read twice (--write checks more)';
    this.print(rows([['checked', `${sizeText(bytes)} ${how}: every byte the same`]]));
  }

  private async bench(client: BlockClient, findings: Findings): Promise<void> {
    const { write, secondsPerPhase } = this.settings;
    const measurements: Measurement[] = [];
    for (const random of [true, false]) {
      for (const writes of write ? [false, true] : [false]) {
        const measurement = await measure(client, {
          name: `${random ? 'random' : 'sequential'} ${writes ? 'write' : 'read'}`,
          random,
          write: writes,
          spanBytes: this.testSpan(client),
          durationS: secondsPerPhase,
        });
        this.print(measurementLine(measurement));
        measurements.push(measurement);
      }
    }
    findings.measurements = measurements;
    findings.host = hostFacts(version, commit);
  }

  /** How much of the disk is copied or compared. */
  private wholeSpan({ device }: BlockClient): number {
    const { span = device.capacityBytes } = this.settings;
    if (span > device.capacityBytes || span % device.logicalBlockBytes !== 0) {
      throw new UserError(
        `the disk has ${device.capacityBytes} bytes in blocks of ${device.logicalBlockBytes}; give a ` +
          '--size that fits',
      );
    }
    return span;
  }

  /** How much of the disk is checked and measured, from its start on. */
  private testSpan({ device }: BlockClient): number {
    const { capacityBytes, logicalBlockBytes } = device;
    const { span, write } = this.settings;
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

  private print(text: string): void {
    if (!this.settings.json) writeOutput(text);
  }
}
