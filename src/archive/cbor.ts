/**
 * The few kinds of CBOR (RFC 8949) that a stripe mapping has. An array of numbers that stands for bytes
 * goes straight into a buffer: as numbers of JavaScript it would take eight times the memory of an index
 * that may have tens of megabytes.
 */
import { ArchiveError } from './archive_error.ts';

const UNSIGNED = 0;
const BYTES = 2;
const TEXT = 3;
const ARRAY = 4;
const MAP = 5;

const utf8 = new TextDecoder('utf-8', { fatal: true });

/** Writes into memory of the given size; the caller knows how much it takes. */
export class CborWriter {
  private at = 0;
  private readonly buffer: Buffer;

  constructor(sizeBytes: number) {
    this.buffer = Buffer.alloc(sizeBytes);
  }

  /** What was written. */
  get bytes(): Buffer {
    return this.buffer.subarray(0, this.at);
  }

  unsigned(value: number): void {
    this.head(UNSIGNED, value);
  }

  text(text: string): void {
    this.head(TEXT, Buffer.byteLength(text));
    this.at += this.buffer.write(text, this.at);
  }

  byteString(bytes: Uint8Array): void {
    this.head(BYTES, bytes.length);
    this.buffer.set(bytes, this.at);
    this.at += bytes.length;
  }

  /** Bytes as an array of unsigned numbers. */
  numbers(bytes: Uint8Array): void {
    this.head(ARRAY, bytes.length);
    for (let i = 0; i < bytes.length; i++) {
      const byte = bytes[i];
      if (byte > 23) this.buffer[this.at++] = 24;
      this.buffer[this.at++] = byte;
    }
  }

  map(entries: number): void {
    this.head(MAP, entries);
  }

  /** So many bytes of zeroes, which are no item. */
  zeroes(count: number): void {
    this.at += count;
  }

  private head(kind: number, value: number): void {
    const { buffer } = this;
    const first = kind << 5;
    if (value < 24) this.at = buffer.writeUInt8(first | value, this.at);
    else if (value < 2 ** 8) this.at = buffer.writeUInt16BE(((first | 24) << 8) | value, this.at);
    else if (value < 2 ** 16) this.at = buffer.writeUInt16BE(value, this.first(first | 25));
    else if (value < 2 ** 32) this.at = buffer.writeUInt32BE(value, this.first(first | 26));
    else this.at = buffer.writeBigUInt64BE(BigInt(value), this.first(first | 27));
  }

  private first(byte: number): number {
    return this.buffer.writeUInt8(byte, this.at);
  }
}

/** Reads one item after the other, of definite length. Each call throws an ArchiveError on anything else. */
export class CborReader {
  private at = 0;
  private readonly buffer: Buffer;

  constructor(bytes: Uint8Array) {
    this.buffer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  }

  get ended(): boolean {
    return this.at === this.buffer.length;
  }

  unsigned(): number {
    return this.head(UNSIGNED);
  }

  text(): string {
    try {
      return utf8.decode(this.take(this.head(TEXT)));
    } catch (error) {
      if (error instanceof ArchiveError) throw error;
      throw damaged('text that is no UTF-8');
    }
  }

  /** A view of the bytes. */
  byteString(): Uint8Array {
    return this.take(this.head(BYTES));
  }

  /** Bytes as a byte string or as an array of unsigned numbers. */
  bytesOrNumbers(): Uint8Array {
    if (this.peek() === BYTES) return this.byteString();
    const length = this.head(ARRAY);
    if (length > this.buffer.length - this.at) throw damaged('an array that is cut off');
    const bytes = new Uint8Array(length);
    for (let i = 0; i < length; i++) {
      const byte = this.head(UNSIGNED);
      if (byte > 255) throw damaged(`the number ${byte} where a byte is meant`);
      bytes[i] = byte;
    }
    return bytes;
  }

  /** @returns how many entries follow */
  map(): number {
    return this.head(MAP);
  }

  get isText(): boolean {
    return this.peek() === TEXT;
  }

  private peek(): number {
    return this.at < this.buffer.length ? this.buffer[this.at] >> 5 : -1;
  }

  private head(kind: number): number {
    const [first] = this.take(1);
    if (first >> 5 !== kind) throw damaged(`an item of kind ${first >> 5} instead of ${kind}`);
    const short = first & 31;
    if (short < 24) return short;
    if (short > 27) throw damaged('an item of no definite length');
    const size = 1 << (short - 24);
    const bytes = this.take(size) as Buffer;
    const value = size === 8 ? Number(bytes.readBigUInt64BE()) : bytes.readUIntBE(0, size);
    if (!Number.isSafeInteger(value)) throw damaged('a number that is too large');
    return value;
  }

  private take(length: number): Uint8Array {
    if (length > this.buffer.length - this.at) throw damaged('an item that is cut off');
    this.at += length;
    return this.buffer.subarray(this.at - length, this.at);
  }
}

function damaged(what: string): ArchiveError {
  return new ArchiveError(`has ${what}: it is damaged`);
}
