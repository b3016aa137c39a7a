/**
 * TLS 1.2 with a pre-shared key, PSK-AES256-GCM-SHA384 (RFC 5487), over memory: whoever has the socket
 * brings what came and takes what is to be sent. See c/tls_psk.c.
 */
import { EPIPE, failed } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import type { Secret } from './secret.ts';

/** Bytes of an identity, and of a secret, that TLS has room for. */
export const MAX_IDENTITY_BYTES = 256;
export const MAX_PSK_BYTES = 512;

export interface Psk {
  identity: string;
  secret: Secret;
}

/** The peer, or what is between, doesn't keep to the protocol, or has another key. */
export class TlsError extends Error {
  override name = 'TlsError';
}

/** Plain bytes that fit into the buffer for one step's records, which are 16 KiB each. */
export const TLS_SEND_BYTES = 4 * 16384;
const OUT_BYTES = TLS_SEND_BYTES + 4096;

/** struct ubiblk_tls_io, in 32-bit words after the three addresses. */
const IO_BYTES = 56;
const IN_LENGTH = 6;
const IN_TAKEN = 7;
const OUT_SIZE = 8;
const OUT_WRITTEN = 9;
const PLAIN_IN_LENGTH = 10;
const PLAIN_WRITTEN = 11;
const PLAIN_OUT_SIZE = 12;
const PLAIN_READ = 13;
const PLAIN_IN_ADDRESS = 1;
const PLAIN_OUT_ADDRESS = 2;

const nothing = new Uint8Array(1);

/** One session. What a step has done is in its fields until the next one. */
export class TlsSession {
  /** Hands have been shaken: both sides have the key. */
  established = false;
  /** The peer has said goodbye. */
  ended = false;
  /** Bytes of the last step's input that were used. */
  taken = 0;
  /** Plain bytes of the last step: of those to send, and received. */
  written = 0;
  read = 0;
  private readonly handle: number;
  private readonly out = new NativeBuffer(OUT_BYTES);
  private readonly outBytes = new Uint8Array(this.out.window());
  private readonly io = new NativeBuffer(IO_BYTES);
  private readonly words = new Uint32Array(this.io.window(0, IO_BYTES));
  private readonly addresses = new BigUint64Array(this.io.window(0, 24));
  private outLength = 0;

  /**
   * @param psk whose secret is used until the session is established
   * @throws Error where an identity or secret is too long, or memory for secrets is used up
   */
  constructor(role: 'client' | 'server', { identity, secret }: Psk) {
    openLibrary();
    const handle = new BigUint64Array(1);
    const name = Buffer.from(`${identity}\0`);
    const server = role === 'server' ? 1 : 0;
    const { address, lengthBytes } = secret;
    const result = shim.ubiblk_tls_open(server, name, address, lengthBytes, handle);
    if (result < 0) throw failed('a TLS session', result);
    this.handle = Number(handle[0]);
    this.addresses[0] = BigInt(this.out.address);
  }

  /** What is to be sent to the peer after a step, until the next one. */
  get toSend(): Uint8Array {
    return this.outBytes.subarray(0, this.outLength);
  }

  /**
   * Takes bytes that came from the peer, sends and receives plain ones.
   * @param input may be empty
   * @param sendAddress of plain bytes to send; at most TLS_SEND_BYTES of them are taken at a time
   * @param receiveAddress where plain bytes that came are put
   * @throws TlsError where the session can't go on; `toSend` then tells the peer
   */
  step(
    input: Uint8Array,
    sendAddress: number,
    sendLength: number,
    receiveAddress: number,
    receiveLength: number,
  ): void {
    const { words, addresses } = this;
    addresses[PLAIN_IN_ADDRESS] = BigInt(sendAddress);
    addresses[PLAIN_OUT_ADDRESS] = BigInt(receiveAddress);
    words[IN_LENGTH] = input.length;
    words[OUT_SIZE] = OUT_BYTES;
    words[PLAIN_IN_LENGTH] = sendLength;
    words[PLAIN_OUT_SIZE] = receiveLength;
    const from = input.length > 0 ? input : nothing;
    const result = shim.ubiblk_tls_step(this.handle, from, this.words);
    this.taken = words[IN_TAKEN];
    this.outLength = words[OUT_WRITTEN];
    this.written = words[PLAIN_WRITTEN];
    this.read = words[PLAIN_READ];
    if (result === 1) this.established = true;
    else if (result === -EPIPE) this.ended = true;
    else if (result < 0) throw new TlsError(this.reason());
  }

  /** Says goodbye, in `toSend`. */
  end(): void {
    this.words[OUT_SIZE] = OUT_BYTES;
    shim.ubiblk_tls_end(this.handle, this.words);
    this.outLength = this.words[OUT_WRITTEN];
  }

  /** Gives everything back. */
  close(): void {
    shim.ubiblk_tls_close(this.handle);
    this.out.free();
    this.io.free();
  }

  private reason(): string {
    const text = Buffer.alloc(128);
    shim.ubiblk_tls_error(this.handle, text, text.length);
    const words = text.toString('utf8', 0, text.indexOf(0));
    return sentences.get(words) ?? `TLS failed: ${words}`;
  }
}

/** What users can act on, for OpenSSL's reasons. */
const sentences = new Map([
  ['psk identity not found', 'the client has another PSK identity'],
  ['tlsv1 alert unknown psk identity', 'the server knows no such PSK identity'],
  [
    'decryption failed or bad record mac',
    'the peer has another PSK secret, or data was changed on the way',
  ],
  ['sslv3 alert bad record mac', 'the server has another PSK secret'],
  ['wrong version number', 'the peer speaks no TLS, or another version of it'],
  ['http request', 'the peer speaks HTTP, no TLS'],
  ['unsupported protocol', 'the peer speaks no TLS 1.2'],
  ['no shared cipher', 'the peer has no PSK-AES256-GCM-SHA384'],
  ['sslv3 alert handshake failure', 'the peer has no PSK-AES256-GCM-SHA384'],
]);
