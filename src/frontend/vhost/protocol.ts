/** The vhost-user protocol's numbers and message header (docs/interop/vhost-user of QEMU). */

export const HEADER_BYTES = 12;
/** Longer payloads are refused; the largest message we know is far shorter. */
export const MAX_PAYLOAD = 4096;
export const VERSION = 1;
export const FLAG_VERSION_MASK = 3;
export const FLAG_REPLY = 1 << 2;
export const FLAG_NEED_REPLY = 1 << 3;

export const Request = {
  GET_FEATURES: 1,
  SET_FEATURES: 2,
  SET_OWNER: 3,
  RESET_OWNER: 4,
  SET_MEM_TABLE: 5,
  SET_VRING_NUM: 8,
  SET_VRING_ADDR: 9,
  SET_VRING_BASE: 10,
  GET_VRING_BASE: 11,
  SET_VRING_KICK: 12,
  SET_VRING_CALL: 13,
  SET_VRING_ERR: 14,
  GET_PROTOCOL_FEATURES: 15,
  SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17,
  SET_VRING_ENABLE: 18,
  GET_CONFIG: 24,
  SET_CONFIG: 25,
  GET_INFLIGHT_FD: 31,
  SET_INFLIGHT_FD: 32,
  GET_MAX_MEM_SLOTS: 36,
  ADD_MEM_REG: 37,
  REM_MEM_REG: 38,
} as const;

const NAMES = new Map<number, string>(Object.entries(Request).map(([name, code]) => [code, name]));

/** `SET_MEM_TABLE`, or `request 77`. */
export function requestName(code: number): string {
  return NAMES.get(code) ?? `request ${code}`;
}

/** Bit numbers of protocol features. */
export const PROTOCOL_F_MQ = 0;
export const PROTOCOL_F_REPLY_ACK = 3;
export const PROTOCOL_F_CONFIG = 9;
export const PROTOCOL_F_INFLIGHT_SHMFD = 12;
export const PROTOCOL_F_CONFIGURE_MEM_SLOTS = 15;

/** In the payload of SET_VRING_KICK, CALL and ERR. */
export const VRING_IDX_MASK = 0xff;
export const VRING_NOFD_MASK = 0x100;
/** SET_VRING_ADDR: the used ring's writes are to be logged; migration isn't offered. */
export const VRING_F_LOG = 1;

/** Regions of one SET_MEM_TABLE, and memory slots in all. */
export const MAX_TABLE_REGIONS = 32;
export const MAX_MEMORY_SLOTS = 509;

/** QEMU's limit for rings; smaller values of queue_size don't keep its default out. */
const RING_SIZE_ALWAYS_SERVED = 1024;

/** The largest ring that is served with a configured `queue_size`. */
export function largestRing(queueSize: number): number {
  return Math.max(queueSize, RING_SIZE_ALWAYS_SERVED);
}

/** The frontend broke the protocol: its connection is closed, nothing else happens. */
export class ProtocolError extends Error {}

/** Reads a 64-bit number; @throws ProtocolError where it isn't one that JavaScript holds exactly */
export function readU64(view: DataView, offset: number): number {
  const value = view.getUint32(offset, true) + view.getUint32(offset + 4, true) * 2 ** 32;
  if (value > Number.MAX_SAFE_INTEGER) throw new ProtocolError('an address or size is too large');
  return value;
}

export function writeU64(view: DataView, offset: number, value: number): void {
  view.setBigUint64(offset, BigInt(value), true);
}
