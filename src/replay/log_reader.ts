/**
 * Reads an I/O log (device/io_log.ts): records of four lines, each trimmed of white space around it.
 * Payloads come in pieces, so that no line has to fit into memory.
 */
import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { errorName, UserError } from '../errors.ts';
import { printable } from '../printable.ts';

export interface LogRecord {
  /** Number of its first line; the log's first one is 1. */
  line: number;
  kind: 'READ' | 'WRITE';
  sector: number;
  /** Bytes of its payload. */
  length: number;
}

const BUFFER_BYTES = 1024 * 1024;
/** Longer than any line but a payload. */
const MOST_LINE_BYTES = 256;
/** Of a payload that are given out at once. */
const PIECE_BYTES = BUFFER_BYTES / 2;
const MAX_SECTOR = 2 ** 44;

const LF = 0x0a;

export class IoLogReader {
  /** Bytes of the log; 0 where it is a stream. */
  readonly sizeBytes: number;
  private readonly fd: number;
  private readonly buffer = Buffer.allocUnsafe(BUFFER_BYTES);
  private readonly piece = Buffer.allocUnsafe(PIECE_BYTES);
  private at = 0;
  private end = 0;
  private line = 1;
  private readBytes = 0;

  /** @throws UserError where it can't be read */
  constructor(private readonly path: string) {
    try {
      this.fd = openSync(path, 'r');
      this.sizeBytes = fstatSync(this.fd).size;
    } catch (error) {
      throw this.unreadable(error);
    }
  }

  /** Bytes of the log that are behind us. */
  get doneBytes(): number {
    return this.readBytes - (this.end - this.at);
  }

  /**
   * The next record, whose payload must then be read; null at the end. Blank lines before it are passed
   * over.
   * @throws UserError, with the line's number, for what is no record
   */
  next(): LogRecord | null {
    let line = this.line;
    let kind = this.readLine();
    while (kind === '') {
      line = this.line;
      kind = this.readLine();
    }
    if (kind === null) return null;
    if (kind !== 'READ' && kind !== 'WRITE') {
      throw this.wrong(line, `neither READ nor WRITE but '${shown(kind)}'`);
    }
    const sector = this.number('start sector');
    const length = this.number('length in bytes');
    if (sector + Math.ceil(length / 512) > MAX_SECTOR) {
      throw this.wrong(line + 1, `a ${kind} beyond any disk, at sector ${sector}`);
    }
    return { line, kind, sector, length };
  }

  /**
   * The payload of the record that `next` gave last.
   * @param take gets it piece by piece, in memory that is used again
   * @throws UserError where it isn't hexadecimal, or of another length
   */
  payload({ length }: LogRecord, take: (bytes: Buffer, at: number) => void): void {
    const { line } = this;
    this.skipBlanks();
    for (let done = 0; done < length; ) {
      const wanted = Math.min(PIECE_BYTES, length - done);
      const found = this.decode(wanted);
      if (found === 0) {
        const what = this.startsLine() ? 'ends' : 'is not hexadecimal any more';
        throw this.wrong(line, `a payload that ${what} after ${done} of ${length} bytes`);
      }
      take(this.piece.subarray(0, found), done);
      done += found;
    }
    this.skipBlanks();
    if (!this.startsLine()) {
      throw this.wrong(line, `a payload that goes on behind its ${length} bytes`);
    }
    if (length === 0 && this.at === this.end) {
      throw this.wrong(line, 'the end, where a payload should be');
    }
    if (this.at < this.end) this.at++;
    this.line++;
  }

  close(): void {
    closeSync(this.fd);
  }

  /** Decodes whole bytes into the piece. @returns how many; 0: what comes is something else */
  private decode(wanted: number): number {
    if (this.end - this.at < 2) this.fill();
    const there = Math.min(wanted, (this.end - this.at) >> 1);
    const text = this.buffer.toString('latin1', this.at, this.at + 2 * there);
    // It stops at what is no digit.
    const found = this.piece.write(text, 0, there, 'hex');
    this.at += 2 * found;
    return found;
  }

  /** Whether a line's end comes, or the log's. */
  private startsLine(): boolean {
    if (this.at === this.end) this.fill();
    return this.at === this.end || this.buffer[this.at] === LF;
  }

  private skipBlanks(): void {
    while (!this.startsLine() && isBlank(this.buffer[this.at])) this.at++;
  }

  private number(what: string): number {
    const { line } = this;
    const text = this.readLine();
    if (text === null) throw this.wrong(line, `the end, where a ${what} should be`);
    const value = Number(text);
    if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) {
      throw this.wrong(line, `'${shown(text)}', where a ${what} should be`);
    }
    return value;
  }

  /** A short line without its end and the white space around it; null at the end. */
  private readLine(): string | null {
    let found = this.buffer.subarray(this.at, this.end).indexOf(LF);
    if (found < 0) {
      this.fill();
      found = this.buffer.subarray(this.at, this.end).indexOf(LF);
    }
    const length = found < 0 ? this.end - this.at : found;
    if (length === 0 && found < 0) return null;
    if (length > MOST_LINE_BYTES) throw this.wrong(this.line, 'a long line, and no record');
    const text = this.buffer.toString('utf8', this.at, this.at + length).trim();
    this.at += found < 0 ? length : length + 1;
    this.line++;
    return text;
  }

  /** Reads until the buffer is full or the log ends; what was not taken yet stays. */
  private fill(): void {
    this.buffer.copyWithin(0, this.at, this.end);
    this.end -= this.at;
    this.at = 0;
    try {
      while (this.end < BUFFER_BYTES) {
        const got = readSync(this.fd, this.buffer, this.end, BUFFER_BYTES - this.end, null);
        if (got === 0) break;
        this.end += got;
        this.readBytes += got;
      }
    } catch (error) {
      throw this.unreadable(error);
    }
  }

  private wrong(line: number, found: string): UserError {
    return new UserError(
      `line ${line} of '${this.path}' is ${found}; is it an I/O log of ubiblk, and whole?`,
    );
  }

  private unreadable(error: unknown): UserError {
    return new UserError(`the I/O log '${this.path}' cannot be read: ${errorName(error)}`);
  }
}

function isBlank(byte: number): boolean {
  return byte === 0x20 || (byte >= 0x09 && byte <= 0x0d && byte !== LF);
}

function shown(text: string): string {
  const safe = printable(text);
  return safe.length > 20 ? `${safe.slice(0, 20)}...` : safe;
}
