/**
 * What an NBD server says to a client before its first request ("Newstyle negotiation" of the
 * protocol): bytes of one option in, bytes to send out. The same for every way that bytes come.
 */
import {
  BASE_ALLOCATION,
  CAN_MULTI_CONN,
  FLAG_FIXED_NEWSTYLE,
  FLAG_NO_ZEROES,
  HAS_FLAGS,
  Info,
  MAX_QUERIES,
  MAX_STRING,
  NBD_MAGIC,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  Opt,
  READ_ONLY,
  Rep,
  SEND_CACHE,
  SEND_DF,
  SEND_FAST_ZERO,
  SEND_FLUSH,
  SEND_FUA,
  SEND_TRIM,
  SEND_WRITE_ZEROES,
  STRIPES_CONTEXT,
  textOf,
} from '../../device/nbd/protocol.ts';

/** The one export of a server, as clients are told of it. */
export interface NbdExport {
  name: string;
  sizeBytes: number;
  readOnly: boolean;
  /** Whether space can be given back. */
  canTrim: boolean;
  /** Bytes: what offsets and lengths are multiples of, what suits best, and the most of a request. */
  minBlock: number;
  preferredBlock: number;
  maxPayload: number;
  /** Whether there are stripes to tell of. */
  hasStripes: boolean;
}

/** `required`: nothing but TLS is agreed on; `done`: it has been. */
export type TlsState = 'none' | 'required' | 'done';

/** What follows when the answer is sent. */
export type NextPhase = 'options' | 'tls' | 'requests' | 'end';

/** Bits of the contexts that a client has chosen, and their numbers on the wire. */
export const ALLOCATION = 1;
export const STRIPES = 2;

/** Magic, option and length, before an option's data. */
export const OPTION_HEAD_BYTES = 16;
/** What the server says first. */
export const GREETING_BYTES = 18;

const NO_DATA = new Uint8Array(0);

/** Transmission flags of an export. */
export function exportFlags(of: NbdExport, structured: boolean): number {
  let flags = HAS_FLAGS | SEND_FLUSH | CAN_MULTI_CONN | SEND_CACHE | (structured ? SEND_DF : 0);
  if (of.readOnly) return flags | READ_ONLY;
  flags |= SEND_FUA | SEND_WRITE_ZEROES | SEND_FAST_ZERO;
  return of.canTrim ? flags | SEND_TRIM : flags;
}

export function greeting(): Uint8Array {
  const bytes = Buffer.alloc(GREETING_BYTES);
  bytes.writeBigUInt64BE(NBD_MAGIC, 0);
  bytes.writeBigUInt64BE(OPTION_MAGIC, 8);
  bytes.writeUInt16BE(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES, 16);
  return bytes;
}

/** An option is answered with an error. */
class Refusal extends Error {
  constructor(
    readonly type: number,
    words: string,
  ) {
    super(words);
  }
}

export class Negotiation {
  structured = false;
  /** Of ALLOCATION and STRIPES, for the export that is used. */
  contexts = 0;
  next: NextPhase = 'options';
  private replies: Uint8Array[] = [];
  private fixed = true;
  noZeroes = true;

  constructor(
    private readonly of: NbdExport,
    private readonly tls: TlsState,
  ) {}

  /** Takes the client's flags. @returns false where they can't be */
  setFlags(flags: number): boolean {
    this.fixed = (flags & FLAG_FIXED_NEWSTYLE) !== 0;
    this.noZeroes = (flags & FLAG_NO_ZEROES) !== 0;
    return (flags & ~(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)) === 0;
  }

  /**
   * Answers an option.
   * @param data null where there was too much of it, which has been passed over
   * @returns what is to be sent; then `next` says how it goes on
   */
  answer(option: number, data: Uint8Array | null): Uint8Array {
    this.replies = [];
    try {
      this.take(option, data);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.error(option, error.type, error.message);
    }
    return Buffer.concat(this.replies);
  }

  /** @throws Refusal */
  private take(option: number, data: Uint8Array | null): void {
    // Of a client that knows no replies to options there is but one that it can understand.
    if (!this.fixed && option !== Opt.EXPORT_NAME) this.next = 'end';
    else if (option === Opt.EXPORT_NAME) this.exportName(data);
    else if (option === Opt.ABORT) this.end(option);
    else if (option === Opt.STARTTLS) this.startTls(option, data);
    else if (this.tls === 'required') this.error(option, Rep.ERR_TLS_REQD, 'TLS is required here');
    else if (data === null) this.error(option, Rep.ERR_TOO_BIG, 'the option is too long');
    else this.inTheOpen(option, data);
  }

  private inTheOpen(option: number, data: Uint8Array): void {
    switch (option) {
      case Opt.LIST:
        this.list(option, data);
        break;
      case Opt.INFO:
      case Opt.GO:
        this.info(option, data);
        break;
      case Opt.STRUCTURED_REPLY:
        if (data.length > 0) {
          this.error(option, Rep.ERR_INVALID, 'the option takes no data');
        } else {
          this.structured = true;
          this.reply(option, Rep.ACK, NO_DATA);
        }
        break;
      case Opt.LIST_META_CONTEXT:
      case Opt.SET_META_CONTEXT:
        this.metaContext(option, data);
        break;
      default:
        this.error(option, Rep.ERR_UNSUP, 'this option is not known here');
    }
  }

  private exportName(data: Uint8Array | null): void {
    const name = data && textOf(data);
    if (this.tls === 'required' || name === null || !this.isOurs(name)) {
      // The protocol has no answer to this option but the export.
      this.next = 'end';
      return;
    }
    const bytes = Buffer.alloc(this.noZeroes ? 10 : 134);
    bytes.writeBigUInt64BE(BigInt(this.of.sizeBytes), 0);
    bytes.writeUInt16BE(exportFlags(this.of, this.structured), 8);
    this.forgetContextsOf(name);
    this.replies.push(bytes);
    this.next = 'requests';
  }

  private end(option: number): void {
    this.reply(option, Rep.ACK, NO_DATA);
    this.next = 'end';
  }

  private startTls(option: number, data: Uint8Array | null): void {
    if (this.tls === 'none') {
      this.error(option, Rep.ERR_POLICY, 'this server was started without --tls-psk');
    } else if (this.tls === 'done' || data?.length !== 0) {
      this.error(option, Rep.ERR_INVALID, 'TLS is not begun this way');
    } else {
      this.reply(option, Rep.ACK, NO_DATA);
      this.next = 'tls';
    }
  }

  private list(option: number, data: Uint8Array): void {
    if (data.length > 0) throw new Refusal(Rep.ERR_INVALID, 'the option takes no data');
    const name = Buffer.from(this.of.name);
    const server = Buffer.alloc(4 + name.length);
    server.writeUInt32BE(name.length, 0);
    name.copy(server, 4);
    this.reply(option, Rep.SERVER, server);
    this.reply(option, Rep.ACK, NO_DATA);
  }

  private info(option: number, data: Uint8Array): void {
    const reader = new Reader(data);
    const name = reader.text();
    const count = reader.u16();
    const wanted = Array.from({ length: reader.failed ? 0 : count }, () => reader.u16());
    if (!reader.whole || name === null) {
      throw new Refusal(Rep.ERR_INVALID, 'the option is malformed');
    }
    if (!this.isOurs(name)) {
      throw new Refusal(Rep.ERR_UNKNOWN, 'there is no such export');
    }
    const { of } = this;
    const facts = Buffer.alloc(12);
    facts.writeUInt16BE(Info.EXPORT, 0);
    facts.writeBigUInt64BE(BigInt(of.sizeBytes), 2);
    facts.writeUInt16BE(exportFlags(of, this.structured), 10);
    this.reply(option, Rep.INFO, facts);
    const sizes = Buffer.alloc(14);
    sizes.writeUInt16BE(Info.BLOCK_SIZE, 0);
    sizes.writeUInt32BE(of.minBlock, 2);
    sizes.writeUInt32BE(of.preferredBlock, 6);
    sizes.writeUInt32BE(of.maxPayload, 10);
    this.reply(option, Rep.INFO, sizes);
    if (wanted.includes(Info.NAME)) {
      this.reply(
        option,
        Rep.INFO,
        Buffer.concat([Buffer.from([0, Info.NAME]), Buffer.from(of.name)]),
      );
    }
    this.reply(option, Rep.ACK, NO_DATA);
    if (option !== Opt.GO) return;
    this.forgetContextsOf(name);
    this.next = 'requests';
  }

  private contextsOf = '';

  /** Contexts count only for the export that they were chosen for. */
  private forgetContextsOf(name: string): void {
    if (name !== this.contextsOf) this.contexts = 0;
  }

  private metaContext(option: number, data: Uint8Array): void {
    const reader = new Reader(data);
    const name = reader.text();
    const count = reader.u32();
    if (reader.failed || name === null) {
      throw new Refusal(Rep.ERR_INVALID, 'the option is malformed');
    }
    if (count > MAX_QUERIES) throw new Refusal(Rep.ERR_TOO_BIG, 'too many queries');
    const queries = Array.from({ length: count }, () => reader.text());
    const set = option === Opt.SET_META_CONTEXT;
    if (!reader.whole || (set && !this.structured)) {
      throw new Refusal(Rep.ERR_INVALID, 'the option is malformed, or comes too early');
    }
    if (set) this.contexts = 0;
    if (!this.isOurs(name)) throw new Refusal(Rep.ERR_UNKNOWN, 'there is no such export');
    let found = 0;
    for (const [bit, context] of this.offered) {
      const matches = (query: string | null) =>
        query === context || (!set && context.startsWith(query ?? '-') && query?.endsWith(':'));
      if ((!set && count === 0) || queries.some(matches)) found |= bit;
    }
    for (const [bit, context] of this.offered) {
      if ((found & bit) === 0) continue;
      const bytes = Buffer.concat([Buffer.alloc(4), Buffer.from(context)]);
      bytes.writeUInt32BE(set ? bit : 0, 0);
      this.reply(option, Rep.META_CONTEXT, bytes);
    }
    this.reply(option, Rep.ACK, NO_DATA);
    if (!set) return;
    this.contexts = found;
    this.contextsOf = name;
  }

  private get offered(): [number, string][] {
    const base: [number, string] = [ALLOCATION, BASE_ALLOCATION];
    return this.of.hasStripes ? [base, [STRIPES, STRIPES_CONTEXT]] : [base];
  }

  /** The empty name is that of the default export, which this is. */
  private isOurs(name: string): boolean {
    return name === '' || name === this.of.name;
  }

  private error(option: number, type: number, words: string): void {
    this.reply(option, type, Buffer.from(words));
  }

  private reply(option: number, type: number, data: Uint8Array): void {
    const head = Buffer.alloc(20);
    head.writeBigUInt64BE(OPTION_REPLY_MAGIC, 0);
    head.writeUInt32BE(option, 8);
    head.writeUInt32BE(type, 12);
    head.writeUInt32BE(data.length, 16);
    this.replies.push(head, data);
  }
}

/** Takes numbers and texts off the data of an option, which may be cut short anywhere. */
class Reader {
  failed = false;
  private at = 0;
  private readonly view: DataView;

  constructor(private readonly bytes: Uint8Array) {
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  /** Whether everything was there, and nothing is left. */
  get whole(): boolean {
    return !this.failed && this.at === this.bytes.length;
  }

  u16(): number {
    const at = this.take(2);
    return at < 0 ? 0 : this.view.getUint16(at);
  }

  u32(): number {
    const at = this.take(4);
    return at < 0 ? 0 : this.view.getUint32(at);
  }

  /** A length and as many bytes of text; null where it isn't one. */
  text(): string | null {
    const length = this.u32();
    if (length > MAX_STRING) this.failed = true;
    const at = this.take(length);
    return at < 0 ? null : textOf(this.bytes.subarray(at, at + length));
  }

  private take(count: number): number {
    if (this.failed || this.at + count > this.bytes.length) {
      this.failed = true;
      return -1;
    }
    this.at += count;
    return this.at - count;
  }
}
