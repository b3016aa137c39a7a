/** What an NBD client says before its first request: "Newstyle negotiation" of the protocol. */
import type { Psk } from '../crypto/tls_psk.ts';
import {
  BASE_ALLOCATION,
  type ExportFacts,
  FLAG_FIXED_NEWSTYLE,
  FLAG_NO_ZEROES,
  HAS_FLAGS,
  Info,
  MAX_OPTION_BYTES,
  MAX_PAYLOAD,
  NBD_MAGIC,
  OLD_STYLE_MAGIC,
  OPTION_MAGIC,
  OPTION_REPLY_MAGIC,
  Opt,
  REP_IS_ERROR,
  Rep,
  textOf,
} from '../device/nbd/protocol.ts';
import { UserError } from '../errors.ts';
import type { Channel, Memory } from '../remote/channel.ts';

/** The longest size that a number of bytes can have here. */
const MAX_SIZE = 2n ** 53n - 1n;
/** Room for an option and for the answers to it. */
export const HANDSHAKE_BYTES = MAX_OPTION_BYTES + 64;

interface Reply {
  type: number;
  data: Uint8Array;
}

/** The server doesn't take an option; the connection goes on. */
class Refused extends Error {
  constructor(
    readonly reply: number,
    what: string,
    said: string | null,
  ) {
    super(said ? `${what}: '${said.replace(/[^\x20-\x7e]/g, '?')}'` : what);
  }
}

export interface HandshakeOptions {
  /** Of the server, for messages. */
  name: string;
  exportName: string;
  /** With it the connection goes on over TLS, or ends. */
  psk?: Psk;
}

/**
 * Agrees with a server on how requests are made, and on the export.
 * @param scratch HANDSHAKE_BYTES of memory
 * @throws Error where the connection is of no use; UserError where trying again can't help
 */
export async function shakeHands(
  channel: Channel,
  scratch: Memory,
  options: HandshakeOptions,
): Promise<ExportFacts> {
  return await new Handshake(channel, scratch, options).run();
}

class Handshake {
  private readonly view: DataView;
  private noZeroes = false;
  private readonly facts: ExportFacts = {
    sizeBytes: 0,
    flags: 0,
    minBlock: 1,
    preferredBlock: 4096,
    maxPayload: MAX_PAYLOAD,
    structured: false,
    allocationId: -1,
  };

  constructor(
    private readonly channel: Channel,
    private readonly scratch: Memory,
    private readonly options: HandshakeOptions,
  ) {
    const { buffer, byteOffset, length } = scratch.bytes;
    this.view = new DataView(buffer, byteOffset, length);
  }

  async run(): Promise<ExportFacts> {
    const { channel, options, facts } = this;
    await this.greet();
    if (options.psk) {
      await this.acknowledged(Opt.STARTTLS, 'TLS');
      await channel.secure(options.psk);
    }
    facts.structured = await this.agreed(Opt.STRUCTURED_REPLY, new Uint8Array());
    if (facts.structured) await this.askContexts();
    await this.go();
    if ((facts.flags & HAS_FLAGS) === 0) throw this.wrong('has an export without flags');
    return facts;
  }

  private async greet(): Promise<void> {
    const { channel, scratch, view } = this;
    await channel.receive(scratch, 0, 16);
    if (view.getBigUint64(0) !== NBD_MAGIC) throw this.notOurs('does not greet as an NBD server');
    const style = view.getBigUint64(8);
    if (style === OLD_STYLE_MAGIC) throw this.notOurs('speaks the NBD protocol of before 2011');
    if (style !== OPTION_MAGIC) throw this.notOurs('does not greet as an NBD server');
    await channel.receive(scratch, 0, 2);
    const flags = view.getUint16(0);
    if ((flags & FLAG_FIXED_NEWSTYLE) === 0) {
      throw this.notOurs("speaks an NBD protocol without 'fixed newstyle' negotiation");
    }
    this.noZeroes = (flags & FLAG_NO_ZEROES) !== 0;
    view.setUint32(0, flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
    await channel.send(scratch, 0, 4);
  }

  private async askContexts(): Promise<void> {
    const name = Buffer.from(this.options.exportName);
    const query = Buffer.from(BASE_ALLOCATION);
    const data = Buffer.alloc(12 + name.length + query.length);
    data.writeUInt32BE(name.length, 0);
    name.copy(data, 4);
    data.writeUInt32BE(1, 4 + name.length);
    data.writeUInt32BE(query.length, 8 + name.length);
    query.copy(data, 12 + name.length);
    await this.agreed(Opt.SET_META_CONTEXT, data, ({ type, data: found }) => {
      if (type !== Rep.META_CONTEXT || found.length < 4) throw this.strange(type);
      if (textOf(found.subarray(4)) !== BASE_ALLOCATION) throw this.strange(type);
      this.facts.allocationId = new DataView(found.buffer, found.byteOffset).getUint32(0);
    });
  }

  private async go(): Promise<void> {
    const { exportName } = this.options;
    const name = Buffer.from(exportName);
    const data = Buffer.alloc(8 + name.length);
    data.writeUInt32BE(name.length, 0);
    name.copy(data, 4);
    data.writeUInt16BE(1, 4 + name.length);
    data.writeUInt16BE(Info.BLOCK_SIZE, 6 + name.length);
    let told = false;
    try {
      await this.option(Opt.GO, data, (reply) => {
        if (reply.type !== Rep.INFO || reply.data.length < 2) throw this.strange(reply.type);
        told = this.takeInfo(reply.data) || told;
      });
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.reply === Rep.ERR_UNSUP) return await this.goTheOldWay(name);
      throw this.refusal(error);
    }
    if (!told) throw this.wrong('does not tell the size of its export');
  }

  /** @returns whether it was the export's size and flags */
  private takeInfo(data: Uint8Array): boolean {
    const view = new DataView(data.buffer, data.byteOffset, data.length);
    const kind = view.getUint16(0);
    if (kind === Info.EXPORT && data.length === 12) {
      this.setSize(view.getBigUint64(2));
      this.facts.flags = view.getUint16(10);
      return true;
    }
    if (kind === Info.BLOCK_SIZE && data.length === 14) {
      const [least, preferred, most] = [2, 6, 10].map((at) => view.getUint32(at));
      const powers = [least, preferred].every((size) => size > 0 && (size & (size - 1)) === 0);
      if (!powers || least > 65536 || preferred < least || most < preferred) {
        throw this.wrong('has impossible block sizes');
      }
      Object.assign(this.facts, {
        minBlock: least,
        preferredBlock: preferred,
        maxPayload: Math.min(most, MAX_PAYLOAD),
      });
    } else if (kind === Info.EXPORT || kind === Info.BLOCK_SIZE) {
      throw this.wrong(`tells of its export in ${data.length} bytes`);
    }
    return false;
  }

  /** NBD_OPT_EXPORT_NAME, of which a server can only end the connection. */
  private async goTheOldWay(name: Uint8Array): Promise<void> {
    const { channel, scratch, view } = this;
    await this.send(Opt.EXPORT_NAME, name);
    await channel.receive(scratch, 0, 10).catch((error) => {
      throw new Error(
        `${this.options.name} has no export '${this.options.exportName}': ${error.message}`,
      );
    });
    this.setSize(view.getBigUint64(0));
    this.facts.flags = view.getUint16(8);
    if (!this.noZeroes) await channel.receive(scratch, 0, 124);
  }

  private setSize(size: bigint): void {
    if (size > MAX_SIZE) throw this.notOurs(`has an export of ${size} bytes, which is too large`);
    this.facts.sizeBytes = Number(size);
  }

  private async acknowledged(option: number, what: string): Promise<void> {
    const { name } = this.options;
    try {
      await this.option(option, new Uint8Array());
    } catch (error) {
      if (error instanceof Refused)
        throw new UserError(`${name} refuses ${what}: ${error.message}`);
      throw error;
    }
  }

  /** @returns false where the server doesn't */
  private async agreed(
    option: number,
    data: Uint8Array,
    each?: (reply: Reply) => void,
  ): Promise<boolean> {
    try {
      await this.option(option, data, each);
      return true;
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      if (error.reply === Rep.ERR_TLS_REQD) throw this.refusal(error);
      return false;
    }
  }

  /** @throws Refused */
  private async option(
    option: number,
    data: Uint8Array,
    each: (reply: Reply) => void = ({ type }) => {
      throw this.strange(type);
    },
  ): Promise<void> {
    await this.send(option, data);
    // More answers than there can be things to tell are a server that never ends.
    for (let count = 0; count < 64; count++) {
      const reply = await this.receive(option);
      if (reply.type === Rep.ACK) return;
      if ((reply.type & REP_IS_ERROR) !== 0) {
        throw new Refused(reply.type, errorWords(reply.type), textOf(reply.data));
      }
      each(reply);
    }
    throw this.wrong('answers an option without end');
  }

  private async send(option: number, data: Uint8Array): Promise<void> {
    const { channel, scratch, view } = this;
    view.setBigUint64(0, OPTION_MAGIC);
    view.setUint32(8, option);
    view.setUint32(12, data.length);
    scratch.bytes.set(data, 16);
    await channel.send(scratch, 0, 16 + data.length);
  }

  private async receive(option: number): Promise<Reply> {
    const { channel, scratch, view } = this;
    await channel.receive(scratch, 0, 20);
    if (view.getBigUint64(0) !== OPTION_REPLY_MAGIC) throw this.wrong('answers options with noise');
    if (view.getUint32(8) !== option)
      throw this.wrong('answers another option than it was asked for');
    const type = view.getUint32(12);
    const length = view.getUint32(16);
    if (length > MAX_OPTION_BYTES) throw this.wrong(`answers an option with ${length} bytes`);
    await channel.receive(scratch, 0, length);
    return { type, data: scratch.bytes.slice(0, length) };
  }

  private refusal(error: Refused): UserError {
    const { name, exportName } = this.options;
    if (error.reply === Rep.ERR_TLS_REQD) {
      return new UserError(`${name} wants TLS; use a URI that begins with 'nbds'`);
    }
    return new UserError(`${name} refuses the export '${exportName}': ${error.message}`);
  }

  private strange(type: number): Error {
    return this.wrong(`answers an option with a reply of type ${type}`);
  }

  private wrong(what: string): Error {
    return new Error(`${this.options.name} ${what}: that is against the protocol`);
  }

  private notOurs(what: string): UserError {
    return new UserError(`${this.options.name} ${what}`);
  }
}

function errorWords(type: number): string {
  const [name = `error ${type - REP_IS_ERROR}`] =
    Object.entries(Rep).find(([, number]) => number === type) ?? [];
  return `NBD_REP_${name}`;
}
