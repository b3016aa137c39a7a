/** Carries out an I/O log: writes what was written, and compares what was read. */
import type { IoLogReader, LogRecord } from './log_reader.ts';
import type { ReplayTarget } from './replay_target.ts';

/** What came of a replay. */
export interface Replayed {
  reads: number;
  writes: number;
  readBytes: number;
  writtenBytes: number;
  /** Reads whose data was another one. */
  mismatches: number;
}

/** Where a read differs from its record. */
export interface Mismatch {
  record: LogRecord;
  /** The first byte that differs. */
  at: number;
  /** What the log has from there on, and what the disk has, some bytes of each. */
  expected: Buffer;
  found: Buffer;
}

export interface ReplayListener {
  /** Before a record is carried out. */
  record(record: LogRecord): void;
  mismatch(mismatch: Mismatch): void;
  /** Bytes of the log that are done. */
  progress(doneBytes: number): void;
}

const SHOWN_BYTES = 10;

/**
 * Replays a log to its end, whatever its reads are like.
 * @throws UserError for what is no record, and where the disk can't be read or written
 */
export function replay(log: IoLogReader, target: ReplayTarget, listener: ReplayListener): Replayed {
  const done = { reads: 0, writes: 0, readBytes: 0, writtenBytes: 0, mismatches: 0 };
  for (let record = log.next(); record; record = log.next()) {
    listener.record(record);
    if (record.kind === 'WRITE') {
      write(log, record, target);
      done.writes++;
      done.writtenBytes += record.length;
    } else {
      const mismatch = compare(log, record, target);
      done.reads++;
      done.readBytes += record.length;
      if (mismatch) {
        done.mismatches++;
        listener.mismatch(mismatch);
      }
    }
    listener.progress(log.doneBytes);
  }
  return done;
}

function write(log: IoLogReader, record: LogRecord, target: ReplayTarget): void {
  const offset = record.sector * 512;
  log.payload(record, (bytes, at) => target.write(bytes, offset + at));
}

function compare(log: IoLogReader, record: LogRecord, target: ReplayTarget): Mismatch | undefined {
  const offset = record.sector * 512;
  let mismatch: Mismatch | undefined;
  let found = Buffer.alloc(0);
  log.payload(record, (expected, at) => {
    if (found.length < expected.length) found = Buffer.allocUnsafe(expected.length);
    const bytes = found.subarray(0, expected.length);
    target.read(bytes, offset + at);
    if (mismatch || bytes.equals(expected)) return;
    const first = expected.findIndex((byte, index) => byte !== bytes[index]);
    mismatch = {
      record,
      at: at + first,
      expected: Buffer.from(expected.subarray(first, first + SHOWN_BYTES)),
      found: Buffer.from(bytes.subarray(first, first + SHOWN_BYTES)),
    };
  });
  return mismatch;
}
