/** What a frontend and a server agree on before memory and rings are set up. */
import { UserError } from '../errors.ts';
import { CONFIG_BYTES, F } from '../frontend/vhost/block_config.ts';
import {
  PROTOCOL_F_CONFIG,
  PROTOCOL_F_CONFIGURE_MEM_SLOTS,
  PROTOCOL_F_MQ,
  PROTOCOL_F_REPLY_ACK,
  Request,
} from '../frontend/vhost/protocol.ts';
import { configPayload, type FrontendConnection, u64Payload } from './frontend_connection.ts';

/** As Linux takes them. */
const MAX_BLOCK_BYTES = 64 * 1024;

/** What this driver understands. */
const UNDERSTOOD = bitsOf(
  F.SIZE_MAX,
  F.SEG_MAX,
  F.RO,
  F.BLK_SIZE,
  F.FLUSH,
  F.TOPOLOGY,
  F.CONFIG_WCE,
  F.MQ,
  F.RING_INDIRECT_DESC,
  F.RING_EVENT_IDX,
  F.VHOST_PROTOCOL_FEATURES,
  F.VERSION_1,
);
const UNDERSTOOD_PROTOCOL = bitsOf(
  PROTOCOL_F_MQ,
  PROTOCOL_F_REPLY_ACK,
  PROTOCOL_F_CONFIG,
  PROTOCOL_F_CONFIGURE_MEM_SLOTS,
);

/** The device as its configuration space describes it; fields of features it doesn't have are null. */
export interface DeviceDescription {
  capacityBytes: number;
  readOnly: boolean;
  logicalBlockBytes: number;
  physicalBlockBytes: number | null;
  optimalIoBytes: number | null;
  queues: number;
  segmentsMax: number | null;
  segmentBytesMax: number | null;
  /** Whether writes may stay in a cache until a flush. */
  writeback: boolean;
}

export class Negotiation {
  /** Virtio and vhost-user feature bits offered. */
  readonly features: bigint;
  readonly protocolFeatures: bigint;
  private readonly acked: bigint;
  private readonly protocolAcked: bigint;

  /**
   * Accepts what is understood of what the server offers.
   * @throws UserError where it doesn't answer, or offers too little
   */
  constructor(readonly connection: FrontendConnection) {
    this.features = this.askBits(Request.GET_FEATURES);
    if (!has(this.features, F.VERSION_1) || !has(this.features, F.VHOST_PROTOCOL_FEATURES)) {
      throw new UserError(
        `the server at '${connection.socketPath}' is too old: it does not offer ` +
          'VERSION_1 and protocol features',
      );
    }
    this.protocolFeatures = this.askBits(Request.GET_PROTOCOL_FEATURES);
    if (!has(this.protocolFeatures, PROTOCOL_F_CONFIG)) {
      throw new UserError(
        `the server at '${connection.socketPath}' has no configuration space; is it a ` +
          'vhost-user-blk server?',
      );
    }
    this.acked = this.features & UNDERSTOOD;
    this.protocolAcked = this.protocolFeatures & UNDERSTOOD_PROTOCOL;
    connection.send(Request.SET_PROTOCOL_FEATURES, u64Payload(this.protocolAcked));
    this.tell(Request.SET_OWNER, new Uint8Array(0));
    this.tell(Request.SET_FEATURES, u64Payload(this.acked));
  }

  /** Whether a virtio feature (`F`) was agreed on. */
  has(bit: number): boolean {
    return has(this.acked, bit);
  }

  /** Whether memory goes in single regions, and not in one table. */
  get hasMemorySlots(): boolean {
    return has(this.protocolAcked, PROTOCOL_F_CONFIGURE_MEM_SLOTS);
  }

  /** Sends a message without an answer of its own; learns whether it was done where it can. */
  tell(request: number, payload: Uint8Array, fds: readonly number[] = []): void {
    if (has(this.protocolAcked, PROTOCOL_F_REPLY_ACK)) {
      this.connection.askAck(request, payload, fds);
    } else {
      this.connection.send(request, payload, fds);
    }
  }

  /** Reads struct virtio_blk_config, virtio 1.2, 5.2.4. @throws UserError */
  describe(): DeviceDescription {
    const { connection, features } = this;
    const { payload } = connection.ask(Request.GET_CONFIG, configPayload(0, CONFIG_BYTES));
    if (payload.byteLength < 12 + CONFIG_BYTES) {
      throw new UserError(
        `the server at '${connection.socketPath}' refused to show its configuration`,
      );
    }
    const config = new DataView(payload.buffer, 12);
    const where = (bit: number, value: number) => (this.has(bit) ? value : null);
    const block = where(F.BLK_SIZE, config.getUint32(20, true)) ?? 512;
    if (block < 512 || block > MAX_BLOCK_BYTES || !Number.isInteger(Math.log2(block))) {
      throw this.nonsense(`blocks of ${block} bytes`);
    }
    const capacityBytes = Number(config.getBigUint64(0, true)) * 512;
    if (!Number.isSafeInteger(capacityBytes)) throw this.nonsense('a capacity beyond any disk');
    return {
      capacityBytes,
      readOnly: has(features, F.RO),
      logicalBlockBytes: block,
      physicalBlockBytes: where(F.TOPOLOGY, block * 2 ** config.getUint8(24)),
      optimalIoBytes: where(F.TOPOLOGY, block * config.getUint32(28, true)),
      queues: where(F.MQ, config.getUint16(34, true)) ?? 1,
      // Zero says nothing, in servers that fill the field in for nobody.
      segmentsMax: where(F.SEG_MAX, config.getUint32(12, true)) || null,
      segmentBytesMax: where(F.SIZE_MAX, config.getUint32(8, true)) || null,
      writeback: where(F.CONFIG_WCE, config.getUint8(32)) !== 0 && has(features, F.FLUSH),
    };
  }

  private nonsense(claim: string): UserError {
    return new UserError(`the server at '${this.connection.socketPath}' claims ${claim}`);
  }

  private askBits(request: number): bigint {
    const { payload } = this.connection.ask(request);
    return payload.byteLength === 8 ? payload.getBigUint64(0, true) : 0n;
  }
}

function bitsOf(...bits: readonly number[]): bigint {
  return bits.reduce((all, bit) => all | (1n << BigInt(bit)), 0n);
}

function has(bits: bigint, bit: number): boolean {
  return ((bits >> BigInt(bit)) & 1n) === 1n;
}
