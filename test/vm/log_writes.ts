/**
 * Reads what dm-log-writes has recorded of a device, and makes the device again as a power cut would
 * have left it at its worst: with what had been made durable so far, and nothing else.
 *
 * Format: Documentation/admin-guide/device-mapper/log-writes.rst and drivers/md/dm-log-writes.c of the
 * kernel. A write is in the log when a later flush has ended, or at once where it was a FUA write.
 */

import { closeSync, openSync, readSync, writeSync } from 'node:fs';

const MAGIC = 0x6a736677736872n;
const FLUSH = 1;
const FUA = 2;
const DISCARD = 4;
const MARK = 8;

/** A place of the log: everything before it is durable. */
export interface Durable {
  /** Name of the mark that stands there, if one does. */
  mark?: string;
}

/**
 * Writes what the log says to a file, one entry after the other.
 * @param durable is told of each flush, FUA write and mark; meanwhile the file is as it was there
 * @returns the number of entries
 */
export async function replay(
  log: string,
  file: string,
  durable: (at: Durable) => Promise<void>,
): Promise<number> {
  const from = openSync(log, 'r');
  const to = openSync(file, 'r+');
  const read = (at: number, length: number) => {
    const bytes = Buffer.alloc(length);
    if (readSync(from, bytes, 0, length, at) !== length) throw new Error(`'${log}' ends early`);
    return bytes;
  };
  try {
    const head = read(0, 512);
    if (head.readBigUInt64LE(0) !== MAGIC) throw new Error(`'${log}' is no log of dm-log-writes`);
    const entries = Number(head.readBigUInt64LE(16));
    const sectorBytes = head.readUInt32LE(24);
    let at = sectorBytes;
    for (let i = 0; i < entries; i++) {
      const entry = read(at, sectorBytes);
      const [sector, count, flags, textBytes] = [0, 8, 16, 24].map((word) =>
        Number(entry.readBigUInt64LE(word)),
      );
      const bytes = count * sectorBytes;
      at += sectorBytes;
      if (flags & DISCARD) {
        writeSync(to, Buffer.alloc(bytes), 0, bytes, sector * sectorBytes);
      } else if (bytes > 0) {
        writeSync(to, read(at, bytes), 0, bytes, sector * sectorBytes);
        at += bytes;
      }
      if (flags & MARK) await durable({ mark: entry.toString('latin1', 32, 32 + textBytes) });
      else if (flags & (FLUSH | FUA)) await durable({});
    }
    return entries;
  } finally {
    closeSync(from);
    closeSync(to);
  }
}
