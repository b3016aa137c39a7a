/**
 * Numbers and structures of the ublk driver (include/uapi/linux/ublk_cmd.h, and
 * Documentation/block/ublk.rst of the kernel).
 */

const IOC_READ = 2;
const IOC_WRITE = 1;

function ioc(direction: number, number: number, bytes: number): number {
  return ((direction << 30) | (bytes << 16) | ('u'.charCodeAt(0) << 8) | number) >>> 0;
}

/** struct ublksrv_ctrl_cmd, struct ublksrv_io_cmd. */
export const CONTROL_BYTES = 32;
const IO_COMMAND_BYTES = 16;

const get = (number: number) => ({ legacy: number, op: ioc(IOC_READ, number, CONTROL_BYTES) });
const change = (number: number) => ({
  legacy: number,
  op: ioc(IOC_READ | IOC_WRITE, number, CONTROL_BYTES),
});

/** A control command: its ioctl-encoded number (Linux 6.4), and the one that was before it. */
export interface ControlCommand {
  readonly op: number;
  readonly legacy: number;
}

/** UBLK_U_CMD_*; those above 0x12 have no older number. */
export const Control = {
  GET_QUEUE_AFFINITY: get(0x01),
  GET_DEV_INFO: get(0x02),
  ADD_DEV: change(0x04),
  DEL_DEV: change(0x05),
  START_DEV: change(0x06),
  STOP_DEV: change(0x07),
  SET_PARAMS: change(0x08),
  GET_PARAMS: get(0x09),
  START_USER_RECOVERY: change(0x10),
  END_USER_RECOVERY: change(0x11),
  GET_DEV_INFO2: get(0x12),
  GET_FEATURES: get(0x13),
  DEL_DEV_ASYNC: get(0x14),
  QUIESCE_DEV: change(0x16),
} as const;
export type ControlName = keyof typeof Control;

const io = (number: number) => ({
  legacy: number,
  op: ioc(IOC_READ | IOC_WRITE, number, IO_COMMAND_BYTES),
});

/** UBLK_U_IO_*. */
export const Io = { FETCH_REQ: io(0x20), COMMIT_AND_FETCH_REQ: io(0x21), NEED_GET_DATA: io(0x22) };

/** Results of an I/O command: a request is there, its data must be asked for, the device ends. */
export const IO_RES_OK = 0;
export const IO_RES_NEED_GET_DATA = 1;

/** Feature bits, UBLK_F_*. */
export const F = {
  SUPPORT_ZERO_COPY: 0,
  URING_CMD_COMP_IN_TASK: 1,
  NEED_GET_DATA: 2,
  USER_RECOVERY: 3,
  USER_RECOVERY_REISSUE: 4,
  UNPRIVILEGED_DEV: 5,
  CMD_IOCTL_ENCODE: 6,
  USER_COPY: 7,
  ZONED: 8,
  USER_RECOVERY_FAIL_IO: 9,
  UPDATE_SIZE: 10,
  AUTO_BUF_REG: 11,
  QUIESCE: 12,
  PER_IO_DAEMON: 13,
  BUF_REG_OFF_DAEMON: 14,
  BATCH_IO: 15,
  INTEGRITY: 16,
  SAFE_STOP_DEV: 17,
  NO_AUTO_PART_SCAN: 18,
  SHMEM_ZC: 19,
} as const;
export type Feature = keyof typeof F;

export function featureBits(...features: readonly Feature[]): bigint {
  return features.reduce((bits, feature) => bits | (1n << BigInt(F[feature])), 0n);
}

export function hasFeature(bits: bigint, feature: Feature): boolean {
  return ((bits >> BigInt(F[feature])) & 1n) === 1n;
}

/** Names of feature bits as the kernel's documentation has them, in lower case. */
export function featureNames(bits: bigint): string[] {
  const names: string[] = [];
  const known = new Map<number, string>(Object.entries(F).map(([name, bit]) => [bit, name]));
  for (let bit = 0; bit < 64; bit++) {
    if ((bits >> BigInt(bit)) & 1n) names.push(known.get(bit)?.toLowerCase() ?? `bit_${bit}`);
  }
  return names;
}

/** UBLK_S_DEV_*. */
export const DEVICE_STATES = ['dead', 'live', 'quiesced', 'fail_io'] as const;
export type DeviceState = (typeof DEVICE_STATES)[number];

/** UBLK_MAX_QUEUE_DEPTH, UBLK_MAX_NR_QUEUES and the most that one request can move. */
export const MAX_QUEUE_DEPTH = 4096;

/** struct ublksrv_ctrl_dev_info. */
export interface DeviceInfo {
  /** -1 lets the kernel choose. */
  id: number;
  queues: number;
  depth: number;
  state: DeviceState;
  maxIoBytes: number;
  /** Process of the server, 0 or -1 where there is none. */
  pid: number;
  flags: bigint;
  /** Kept by the kernel for the server. */
  userFlags: bigint;
  ownerUid: number;
  ownerGid: number;
}

export const INFO_BYTES = 64;

export function writeDeviceInfo(view: DataView, info: DeviceInfo): void {
  view.setUint16(0, info.queues, true);
  view.setUint16(2, info.depth, true);
  view.setUint16(4, DEVICE_STATES.indexOf(info.state), true);
  view.setUint16(6, 0, true);
  view.setUint32(8, info.maxIoBytes, true);
  view.setInt32(12, info.id, true);
  view.setInt32(16, info.pid, true);
  view.setUint32(20, 0, true);
  view.setBigUint64(24, info.flags, true);
  view.setBigUint64(32, info.userFlags, true);
  view.setUint32(40, info.ownerUid, true);
  view.setUint32(44, info.ownerGid, true);
  view.setBigUint64(48, 0n, true);
  view.setBigUint64(56, 0n, true);
}

export function readDeviceInfo(view: DataView): DeviceInfo {
  return {
    id: view.getInt32(12, true),
    queues: view.getUint16(0, true),
    depth: view.getUint16(2, true),
    state: DEVICE_STATES[view.getUint16(4, true)] ?? 'dead',
    maxIoBytes: view.getUint32(8, true),
    pid: view.getInt32(16, true),
    flags: view.getBigUint64(24, true),
    userFlags: view.getBigUint64(32, true),
    ownerUid: view.getUint32(40, true),
    ownerGid: view.getUint32(44, true),
  };
}

/** struct ublk_params: what of it is used here. Sizes are in bytes, powers of two. */
export interface DeviceParams {
  readOnly: boolean;
  volatileCache: boolean;
  fua: boolean;
  logicalBlock: number;
  physicalBlock: number;
  minIo: number;
  optimalIo: number;
  maxIoBytes: number;
  sectors: number;
  /** Most sectors of one discard, 0 where it isn't offered; of one write-zeroes. */
  maxDiscardSectors: number;
  maxWriteZeroesSectors: number;
  discardGranularity: number;
  /** What addresses in memory must be aligned to, in bytes; at least 4. */
  dmaAlignment: number;
}

const ATTR_READ_ONLY = 1 << 0;
const ATTR_VOLATILE_CACHE = 1 << 2;
const ATTR_FUA = 1 << 3;
const TYPE_BASIC = 1 << 0;
const TYPE_DISCARD = 1 << 1;
const TYPE_DMA_ALIGN = 1 << 4;

/** Bytes, of the kernel's own. */
const DEFAULT_DMA_ALIGNMENT = 4;

/** As far as the alignment; kernels that know less of it ignore the rest. */
export const PARAMS_BYTES = 120;

export function writeDeviceParams(view: DataView, params: DeviceParams): void {
  for (let at = 0; at < PARAMS_BYTES; at += 4) view.setUint32(at, 0, true);
  const aligned = params.dmaAlignment > DEFAULT_DMA_ALIGNMENT;
  view.setUint32(0, PARAMS_BYTES, true);
  view.setUint32(4, TYPE_BASIC | TYPE_DISCARD | (aligned ? TYPE_DMA_ALIGN : 0), true);
  const attributes =
    (params.readOnly ? ATTR_READ_ONLY : 0) |
    (params.volatileCache ? ATTR_VOLATILE_CACHE : 0) |
    (params.fua ? ATTR_FUA : 0);
  view.setUint32(8, attributes, true);
  view.setUint8(12, Math.log2(params.logicalBlock));
  view.setUint8(13, Math.log2(params.physicalBlock));
  view.setUint8(14, Math.log2(params.optimalIo));
  view.setUint8(15, Math.log2(params.minIo));
  view.setUint32(16, params.maxIoBytes / 512, true);
  view.setBigUint64(24, BigInt(params.sectors), true);
  view.setUint32(44, params.discardGranularity, true);
  view.setUint32(48, params.maxDiscardSectors, true);
  view.setUint32(52, params.maxWriteZeroesSectors, true);
  // The driver knows no discard of several ranges.
  view.setUint16(56, 1, true);
  if (aligned) view.setUint32(108, params.dmaAlignment - 1, true);
}

export function readDeviceParams(view: DataView): DeviceParams {
  const attributes = view.getUint32(8, true);
  const discards = (view.getUint32(4, true) & TYPE_DISCARD) !== 0;
  const power = (at: number) => 2 ** view.getUint8(at);
  return {
    readOnly: (attributes & ATTR_READ_ONLY) !== 0,
    volatileCache: (attributes & ATTR_VOLATILE_CACHE) !== 0,
    fua: (attributes & ATTR_FUA) !== 0,
    logicalBlock: power(12),
    physicalBlock: power(13),
    optimalIo: power(14),
    minIo: power(15),
    maxIoBytes: view.getUint32(16, true) * 512,
    sectors: Number(view.getBigUint64(24, true)),
    discardGranularity: discards ? view.getUint32(44, true) : 0,
    maxDiscardSectors: discards ? view.getUint32(48, true) : 0,
    maxWriteZeroesSectors: discards ? view.getUint32(52, true) : 0,
    dmaAlignment:
      (view.getUint32(4, true) & TYPE_DMA_ALIGN) !== 0
        ? view.getUint32(108, true) + 1
        : DEFAULT_DMA_ALIGNMENT,
  };
}

/** struct ublksrv_io_desc, in 32-bit words: op and flags, sectors, first sector (64 bits), address. */
export const DESCRIPTOR_WORDS = 6;

export const IO_OP_READ = 0;
export const IO_OP_WRITE = 1;
export const IO_OP_FLUSH = 2;
export const IO_OP_DISCARD = 3;
export const IO_OP_WRITE_ZEROES = 5;
export const IO_OP_MASK = 0xff;
export const IO_F_FUA = 1 << 13;
export const IO_F_NOUNMAP = 1 << 15;

/** Where a request's memory is in the character device's file (UBLKSRV_IO_BUF_OFFSET). */
const BUFFERS_OFFSET = 0x8000_0000;
const TAG_SHIFT = 25;
const QUEUE_SHIFT = 41;

/** Place of the first byte of a request's memory, for pread(2) and pwrite(2). */
export function bufferOffset(queue: number, tag: number): number {
  return BUFFERS_OFFSET + queue * 2 ** QUEUE_SHIFT + tag * 2 ** TAG_SHIFT;
}

export const CONTROL_PATH = '/dev/ublk-control';

export function charPath(id: number): string {
  return `/dev/ublkc${id}`;
}

export function blockPath(id: number): string {
  return `/dev/ublkb${id}`;
}
