/**
 * The numbers of the NBD protocol and the layouts of its messages, all in network byte order.
 * Sections are those of the protocol's document, doc/proto.md of NetworkBlockDevice/nbd.
 */
import {
  EINVAL,
  EIO,
  ENOMEM,
  ENOSPC,
  EOPNOTSUPP,
  EOVERFLOW,
  EPERM,
  EROFS,
} from '../../../ffi/errno.ts';

/** "Newstyle negotiation": what the server says first, `NBDMAGIC` and `IHAVEOPT`. */
export const NBD_MAGIC = 0x4e42444d41474943n;
export const OPTION_MAGIC = 0x49484156454f5054n;
export const OPTION_REPLY_MAGIC = 0x3e889045565a9n;
/** Of a server that speaks the protocol of before 2011. */
export const OLD_STYLE_MAGIC = 0x00420281861253n;

/** Handshake flags, of server and client alike. */
export const FLAG_FIXED_NEWSTYLE = 1;
export const FLAG_NO_ZEROES = 2;

/** Transmission flags. */
export const HAS_FLAGS = 1 << 0;
export const READ_ONLY = 1 << 1;
export const SEND_FLUSH = 1 << 2;
export const SEND_FUA = 1 << 3;
export const SEND_TRIM = 1 << 5;
export const SEND_WRITE_ZEROES = 1 << 6;
export const SEND_DF = 1 << 7;
export const CAN_MULTI_CONN = 1 << 8;
export const SEND_CACHE = 1 << 10;
export const SEND_FAST_ZERO = 1 << 11;

/** Options: "Option types". */
export const Opt = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
} as const;

/** "Option reply types". */
export const Rep = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: 0x8000_0001,
  ERR_POLICY: 0x8000_0002,
  ERR_INVALID: 0x8000_0003,
  ERR_PLATFORM: 0x8000_0004,
  ERR_TLS_REQD: 0x8000_0005,
  ERR_UNKNOWN: 0x8000_0006,
  ERR_SHUTDOWN: 0x8000_0007,
  ERR_BLOCK_SIZE_REQD: 0x8000_0008,
  ERR_TOO_BIG: 0x8000_0009,
} as const;
export const REP_IS_ERROR = 0x8000_0000;

/** Kinds of `Rep.INFO`. */
export const Info = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

/** "Request types". */
export const Cmd = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
} as const;

/** "Command flags". */
export const CMD_FUA = 1 << 0;
export const CMD_NO_HOLE = 1 << 1;
export const CMD_DF = 1 << 2;
export const CMD_REQ_ONE = 1 << 3;
export const CMD_FAST_ZERO = 1 << 4;

export const REQUEST_MAGIC = 0x25609513;
export const SIMPLE_REPLY_MAGIC = 0x67446698;
export const STRUCTURED_REPLY_MAGIC = 0x668e33ef;

/** "Structured reply types". */
export const Chunk = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;
export const CHUNK_IS_ERROR = 0x8000;
export const CHUNK_DONE = 1;

/** States of `base:allocation`. */
export const STATE_HOLE = 1;
export const STATE_ZERO = 2;
export const BASE_ALLOCATION = 'base:allocation';
/** Ours: the bits of a stripe, FETCHED, WRITTEN and HAS_SOURCE. */
export const STRIPES_CONTEXT = 'ubiblk:stripes';

export const REQUEST_BYTES = 28;
export const SIMPLE_REPLY_BYTES = 16;
export const CHUNK_BYTES = 20;
/** Flags, type, cookie, offset, length: places in a request. */
export const AT_FLAGS = 4;
export const AT_TYPE = 6;
export const AT_COOKIE = 8;
export const AT_OFFSET = 16;
export const AT_LENGTH = 24;

/** What one request may carry where nothing else was agreed: "Block size constraints". */
export const MAX_PAYLOAD = 32 << 20;
/** "Export names", and descriptions, messages and names of contexts. */
export const MAX_STRING = 4096;
/** Longer options than a name and some queries aren't read. */
export const MAX_OPTION_BYTES = 65536;
/** Contexts in one option. */
export const MAX_QUERIES = 64;

/** "Error values", and our own for them. */
const ERRORS = [
  [1, EPERM],
  [5, EIO],
  [12, ENOMEM],
  [22, EINVAL],
  [28, ENOSPC],
  [75, EOVERFLOW],
  [95, EOPNOTSUPP],
] as const;
export const NBD_EINVAL = 22;
export const NBD_EPERM = 1;
export const NBD_ENOTSUP = 95;
export const NBD_EOVERFLOW = 75;
export const NBD_ENOSPC = 28;
export const NBD_EIO = 5;

/** The number on the wire for -errno. */
export function errorToWire(result: number): number {
  if (result === -EROFS) return NBD_EPERM;
  return ERRORS.find(([, errno]) => errno === -result)?.[0] ?? NBD_EIO;
}

/** -errno for a number on the wire; what isn't known is taken as EINVAL, as the protocol says. */
export function errorFromWire(error: number): number {
  return -(ERRORS.find(([wire]) => wire === error)?.[1] ?? EINVAL);
}

/** What a server has told of an export. */
export interface ExportFacts {
  sizeBytes: number;
  /** Transmission flags. */
  flags: number;
  /** Bytes; 1, 4096 and 32 MiB where the server says nothing. */
  minBlock: number;
  preferredBlock: number;
  maxPayload: number;
  structured: boolean;
  /** Number of `base:allocation` on this connection, -1 where it isn't offered. */
  allocationId: number;
}

/** A text as the protocol has it, or null where it isn't UTF-8 or holds a zero. */
export function textOf(bytes: Uint8Array): string | null {
  try {
    const text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
    return text.includes('\0') ? null : text;
  } catch {
    return null;
  }
}
