/** What a ublk device is made with, as the main thread and the threads of its server know it. */
import type { UblkMode, UblkRecovery } from '../../config/device_config.ts';
import type { IoEngine } from '../../device/disk.ts';
import type { DeviceInfo } from './protocol.ts';

export interface UblkOptions {
  deviceId: string;
  numQueues: number;
  /** Requests in flight on each queue. */
  queueSize: number;
  /** Bytes of the longest request. */
  maxIoBytes: number;
  /** Undefined: what is best here. */
  mode?: UblkMode;
  recovery: UblkRecovery;
  /** For users without privileges. */
  unprivileged: boolean;
  cpus?: number[];
  ioEngine: IoEngine;
  /** Bytes of a stripe of a lazy disk, 0 for others. */
  stripeBytes: number;
}

/** A device that was made, or found again. */
export interface UblkDevice {
  info: DeviceInfo;
  mode: UblkMode;
  /** It had a server before, which has died or left it. */
  recovered: boolean;
  /** Its character device, open. */
  charFd: number;
  /** For each queue the processors that its requests come from. */
  affinity: Uint8Array[];
  /** Opcodes from before Linux 6.4. */
  legacy: boolean;
}
