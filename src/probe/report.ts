/** A probe's findings, for people and for programs. */
import { printable } from '../printable.ts';
import { sizeText } from '../size_text.ts';
import type { BlockClient } from './block_client.ts';
import { protocolFeatureNames, virtioFeatureNames } from './features.ts';
import type { HostFacts } from './host_facts.ts';
import type { DeviceDescription, Negotiation } from './negotiation.ts';
import type { Measurement } from './phases.ts';

const MIB = 1024 * 1024;

/** Features offered, by name. */
export function featureLines({ features, protocolFeatures }: Negotiation): string {
  return rows([
    ['features', virtioFeatureNames(features).join(' ')],
    ['protocol features', protocolFeatureNames(protocolFeatures).join(' ')],
  ]);
}

/** The configuration space. */
export function configLines(device: DeviceDescription): string {
  const segments =
    device.segmentsMax === null && device.segmentBytesMax === null
      ? 'any number and size'
      : `up to ${device.segmentsMax ?? 'any number'} of ${sizeText(device.segmentBytesMax)}`;
  return rows([
    ['capacity', `${sizeText(device.capacityBytes)}${device.readOnly ? ', read-only' : ''}`],
    [
      'blocks',
      `${device.logicalBlockBytes} bytes` +
        (device.physicalBlockBytes === null ? '' : `, physical ${device.physicalBlockBytes}`) +
        (device.optimalIoBytes ? `, optimal ${sizeText(device.optimalIoBytes)}` : ''),
    ],
    ['queues', String(device.queues)],
    ['segments', segments],
    ['cache', device.writeback ? 'write-back' : 'write-through'],
  ]);
}

/** The memory that the server has taken. */
export function memoryLine({ memoryBytes }: BlockClient): string {
  return rows([['memory', `${sizeText(memoryBytes)}, shared`]]);
}

/** The queues that the server has taken, and the id that it has told over them. */
export function queueLines(queues: number, depth: number, id: string): string {
  const used = queues === 1 ? 'queue 0' : `queues 0 to ${queues - 1}, each`;
  return rows([
    ['in use', `${used} with up to ${depth} requests in flight`],
    ['id', id === '' ? '(empty)' : `'${printable(id)}'`],
  ]);
}

export function measurementLine(m: Measurement): string {
  const request = `${sizeText(m.requestBytes)}, depth ${m.depth}`;
  const rate = `${Math.round(m.iops)} IOPS, ${(m.bytesPerSecond / MIB).toFixed(0)} MiB/s`;
  const us = (value: number) => value.toFixed(1);
  const latency =
    `mean ${us(m.meanUs)} us, p50 ${us(m.p50Us)}, p90 ${us(m.p90Us)}, p99 ${us(m.p99Us)}, ` +
    `p99.9 ${us(m.p999Us)}, max ${us(m.maxUs)}`;
  return rows([[m.name, `${request}: ${rate}, ${latency}`]]);
}

/** What a probe has found so far; what its stage doesn't reach is left out. */
export interface Findings {
  socket: string;
  stage: string;
  agreed: Negotiation;
  device?: DeviceDescription;
  memoryBytes?: number;
  inUse?: { queues: number; depth: number };
  id?: string;
  copied?: { file: string; bytes: number; writtenBytes: number };
  verified?: { file: string; bytes: number };
  checked?: { bytes: number; written: boolean };
  measurements?: Measurement[];
  host?: HostFacts;
}

/** What `--json` prints. */
export function jsonReport(findings: Findings): string {
  const { socket, stage, agreed, device, ...more } = findings;
  const report = {
    socket,
    stage,
    features: virtioFeatureNames(agreed.features),
    protocolFeatures: protocolFeatureNames(agreed.protocolFeatures),
    ...device,
    ...more,
  };
  return `${JSON.stringify(report, null, 2)}\n`;
}

export function rows(entries: readonly (readonly [string, string])[]): string {
  return entries.map(([name, value]) => `${name.padEnd(18)} ${value}\n`).join('');
}
