/** A probe's findings, for people and for programs. */

import { sizeText } from '../size_text.ts';
import type { DeviceDescription } from './block_client.ts';
import { protocolFeatureNames, virtioFeatureNames } from './features.ts';
import type { Measurement } from './phases.ts';

const MIB = 1024 * 1024;

/** The features and the configuration space. */
export function deviceLines(device: DeviceDescription, id: string): string {
  const segments =
    device.segmentsMax === null && device.segmentBytesMax === null
      ? 'any number and size'
      : `up to ${device.segmentsMax ?? 'any number'} of ${sizeText(device.segmentBytesMax)}`;
  return rows([
    ['features', virtioFeatureNames(device.features).join(' ')],
    ['protocol features', protocolFeatureNames(device.protocolFeatures).join(' ')],
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
    ['id', id === '' ? '(empty)' : `'${id}'`],
  ]);
}

export function measurementLine(m: Measurement): string {
  const request = `${sizeText(m.requestBytes)}, depth ${m.depth}`;
  const rate = `${Math.round(m.iops)} IOPS, ${(m.bytesPerSecond / MIB).toFixed(0)} MiB/s`;
  const latency = `mean ${m.meanUs.toFixed(1)} us, p99 ${m.p99Us.toFixed(1)} us`;
  return rows([[m.name, `${request}: ${rate}, ${latency}`]]);
}

/** What `--json` prints. */
export function jsonReport(
  socket: string,
  device: DeviceDescription,
  id: string,
  checked: { bytes: number; written: boolean },
  measurements: readonly Measurement[],
): string {
  const { features, protocolFeatures, ...fields } = device;
  const report = {
    socket,
    features: virtioFeatureNames(features),
    protocolFeatures: protocolFeatureNames(protocolFeatures),
    ...fields,
    id,
    checked,
    measurements,
  };
  return `${JSON.stringify(report, null, 2)}\n`;
}

export function rows(entries: readonly (readonly [string, string])[]): string {
  return entries.map(([name, value]) => `${name.padEnd(18)} ${value}\n`).join('');
}
