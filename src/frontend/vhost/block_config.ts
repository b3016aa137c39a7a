/** What the device offers: virtio-blk features and its configuration space (virtio 1.2, 5.2). */
import type { DiskFacts } from '../../device/disk.ts';
import { MAX_RANGE_SECTORS, maxZeroSectors } from '../limits.ts';

/** Feature bit numbers of virtio-blk (5.2.3), rings (6) and vhost-user. */
export const F = {
  SIZE_MAX: 1,
  SEG_MAX: 2,
  RO: 5,
  BLK_SIZE: 6,
  FLUSH: 9,
  TOPOLOGY: 10,
  CONFIG_WCE: 11,
  MQ: 12,
  DISCARD: 13,
  WRITE_ZEROES: 14,
  RING_INDIRECT_DESC: 28,
  RING_EVENT_IDX: 29,
  VHOST_PROTOCOL_FEATURES: 30,
  VERSION_1: 32,
} as const;

/** Names of feature bits, as users know them. */
export function featureNames(bits: bigint): string[] {
  const names = Object.entries(F).filter(([, bit]) => (bits >> BigInt(bit)) & 1n);
  return names.map(([name]) => name.toLowerCase());
}

/** Ranges in one discard or write-zeroes request. */
export const MAX_RANGES = 64;

export const CONFIG_BYTES = 60;
const WRITEBACK_OFFSET = 32;
/** Cloud Hypervisor gives its own registers' offset of the space as the offset in it. */
const PCI_CONFIG_OFFSET = 0x100;

export interface BlockConfigOptions {
  numQueues: number;
  /** Bytes. */
  segSizeMax: number;
  segCountMax: number;
}

/** The virtio features offered for a disk. */
export function offeredFeatures(facts: DiskFacts): bigint {
  const bits: number[] = [
    F.SIZE_MAX,
    F.SEG_MAX,
    F.BLK_SIZE,
    F.FLUSH,
    F.TOPOLOGY,
    F.CONFIG_WCE,
    F.MQ,
    F.RING_INDIRECT_DESC,
    F.RING_EVENT_IDX,
    F.VHOST_PROTOCOL_FEATURES,
    F.VERSION_1,
  ];
  if (facts.readOnly) bits.push(F.RO);
  else bits.push(F.WRITE_ZEROES);
  if (!facts.readOnly && facts.canPunch) bits.push(F.DISCARD);
  return bits.reduce((all, bit) => all | (1n << BigInt(bit)), 0n);
}

/** struct virtio_blk_config, 5.2.4; the guest may write its `writeback`. */
export class BlockConfig {
  private readonly bytes = new Uint8Array(CONFIG_BYTES);

  constructor(facts: DiskFacts, options: BlockConfigOptions) {
    const view = new DataView(this.bytes.buffer);
    const block = facts.logicalBlock;
    const sectorsPerBlock = block / 512;
    view.setBigUint64(0, BigInt(facts.sizeBytes / 512), true);
    view.setUint32(8, options.segSizeMax, true);
    view.setUint32(12, options.segCountMax, true);
    view.setUint32(20, block, true);
    view.setUint8(24, Math.log2(facts.physicalBlock / block));
    view.setUint8(25, 0);
    view.setUint16(26, 1, true);
    view.setUint32(28, Math.floor(facts.optimalIo / block), true);
    view.setUint8(WRITEBACK_OFFSET, facts.writeThrough ? 0 : 1);
    view.setUint16(34, options.numQueues, true);
    if (facts.readOnly) return;
    if (facts.canPunch) {
      view.setUint32(36, MAX_RANGE_SECTORS, true);
      view.setUint32(40, MAX_RANGES, true);
      view.setUint32(44, Math.max(sectorsPerBlock, facts.physicalBlock / 512), true);
    }
    view.setUint32(48, maxZeroSectors(facts), true);
    view.setUint32(52, MAX_RANGES, true);
    view.setUint8(56, facts.canPunch ? 1 : 0);
  }

  /**
   * Copies a part of the space; what lies beyond the structure reads as zero.
   * @param offset in bytes; 0x100 counts as 0
   */
  read(offset: number, length: number): Uint8Array {
    const from = offset === PCI_CONFIG_OFFSET ? 0 : offset;
    const part = new Uint8Array(length);
    part.set(this.bytes.subarray(from, from + length));
    return part;
  }

  /** The guest's write: only `writeback` changes. Returns what it is afterwards. */
  write(offset: number, data: Uint8Array): boolean {
    const from = offset === PCI_CONFIG_OFFSET ? 0 : offset;
    const at = WRITEBACK_OFFSET - from;
    if (at >= 0 && at < data.length) this.bytes[WRITEBACK_OFFSET] = data[at] === 0 ? 0 : 1;
    return this.writeback;
  }

  get writeback(): boolean {
    return this.bytes[WRITEBACK_OFFSET] === 1;
  }

  set writeback(on: boolean) {
    this.bytes[WRITEBACK_OFFSET] = on ? 1 : 0;
  }
}
