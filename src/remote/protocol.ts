/** The bytes of the stripe protocol (docs/remote-stripes.md). Integers are little-endian. */
import { UserError } from '../errors.ts';
import { MetadataError, type MetadataVersion, parseStripeMap } from '../stripe/metadata_layout.ts';

/** Requests. */
export const OP_METADATA = 0x00;
export const OP_READ_STRIPE = 0x01;
export const OP_HELLO = 0x02;

/** READ_STRIPE: its opcode and the number of a stripe. */
export const READ_STRIPE_BYTES = 9;

/** The first byte of every answer; all but OK are the whole of it. */
export const STATUS_OK = 0x00;
export const STATUS_INVALID_STRIPE = 0x01;
export const STATUS_NO_DATA = 0x02;
export const STATUS_NOT_FETCHED = 0x03;
export const STATUS_INVALID_COMMAND = 0xfe;
export const STATUS_SERVER_ERROR = 0xff;

export const PROTOCOL_VERSION = 1;

/** Behind OK in the answer to HELLO, and to the other two: a length. */
export const HELLO_BYTES = 4;
export const LENGTH_BYTES = 8;

/** Metadata is no larger: 64 Mi stripes. */
export const MIN_METADATA_BYTES = 512;
export const MAX_METADATA_BYTES = 64 << 20;

const STATUS_NAMES = new Map<number, string>([
  [STATUS_INVALID_STRIPE, 'INVALID_STRIPE'],
  [STATUS_NO_DATA, 'NO_DATA'],
  [STATUS_NOT_FETCHED, 'NOT_FETCHED'],
  [STATUS_INVALID_COMMAND, 'INVALID_COMMAND'],
  [STATUS_SERVER_ERROR, 'SERVER_ERROR'],
]);

/** `NO_DATA`, or `status 0x55`. */
export function statusName(status: number): string {
  return STATUS_NAMES.get(status) ?? `status 0x${status.toString(16).padStart(2, '0')}`;
}

/** Whether a status says that a stripe can't be had, and the connection is as good as before. */
export function saysNoStripe(status: number): boolean {
  return (
    status === STATUS_INVALID_STRIPE ||
    status === STATUS_NO_DATA ||
    status === STATUS_NOT_FETCHED ||
    status === STATUS_SERVER_ERROR
  );
}

/** Writes a READ_STRIPE request to the start of `bytes`. */
export function writeReadStripe(bytes: Uint8Array, stripe: number): void {
  const view = new DataView(bytes.buffer, bytes.byteOffset, READ_STRIPE_BYTES);
  view.setUint8(0, OP_READ_STRIPE);
  view.setBigUint64(1, BigInt(stripe), true);
}

/** A length, or infinity where it is none that could be. */
export function readLength(bytes: Uint8Array): number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, LENGTH_BYTES);
  const length = view.getBigUint64(0, true);
  return length > BigInt(Number.MAX_SAFE_INTEGER) ? Number.POSITIVE_INFINITY : Number(length);
}

export function writeLength(bytes: Uint8Array, length: number): void {
  new DataView(bytes.buffer, bytes.byteOffset, LENGTH_BYTES).setBigUint64(0, BigInt(length), true);
}

/** What a server says of its stripes. */
export interface RemoteStripes {
  version: MetadataVersion;
  stripeBytes: number;
  /** One for each stripe, with the bits of metadata files. */
  headers: Uint8Array;
}

/**
 * Reads the metadata that a server has sent, of either generation.
 * @throws UserError where it is none
 */
export function parseRemoteMetadata(blob: Uint8Array, server: string): RemoteStripes {
  try {
    return parseStripeMap(blob);
  } catch (error) {
    if (!(error instanceof MetadataError)) throw error;
    throw new UserError(`the metadata that ${server} has sent ${error.message}`);
  }
}
