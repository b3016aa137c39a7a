/** Copies of which one end is a stream: everything in order, zeroes too. */
import { readSync, writeSync } from 'node:fs';
import { errorName, UserError } from '../errors.ts';
import { nativeMemory } from '../remote/channel.ts';
import type { CopySource, CopyTarget } from './ends.ts';

const STDIN = 0;
const STDOUT = 1;
const PIECE_BYTES = 1 << 20;
/** Pieces that are read while one is written. */
const MOST_AHEAD = 8;

/** Fills a piece of memory from standard input. @returns how many bytes: fewer at its end */
function fill(bytes: Uint8Array): number {
  let at = 0;
  while (at < bytes.length) {
    let count: number;
    try {
      count = readSync(STDIN, bytes, at, bytes.length - at, null);
    } catch (error) {
      if (errorName(error) === 'EAGAIN') {
        Bun.sleepSync(1);
        continue;
      }
      throw new UserError(`standard input can't be read: ${errorName(error)}`);
    }
    if (count === 0) break;
    at += count;
  }
  return at;
}

/**
 * Copies standard input to the beginning of a target.
 * @returns bytes
 * @throws UserError where there are more than it has room for, or they end within a sector
 */
export async function copyFromStream(
  target: CopyTarget,
  signal: AbortSignal,
  progress: (bytes: number) => void,
): Promise<number> {
  const { name, roomBytes, sectorBytes } = target;
  const memory = nativeMemory(PIECE_BYTES);
  try {
    for (let at = 0; ; ) {
      signal.throwIfAborted();
      const count = fill(memory.bytes);
      if (at + count > roomBytes) {
        throw new UserError(`standard input has more than the ${roomBytes} bytes of '${name}'`);
      }
      if (count % sectorBytes !== 0) {
        throw new UserError(
          `standard input has ${at + count} bytes, which is no multiple of ${sectorBytes}`,
        );
      }
      const part = { address: memory.address, bytes: memory.bytes.subarray(0, count) };
      if (count > 0 && !(target.isZero && isZero(part.bytes))) await target.write(at, part, count);
      at += count;
      progress(at);
      if (count < PIECE_BYTES) {
        await target.commit(at);
        return at;
      }
    }
  } finally {
    memory.free();
  }
}

function isZero(bytes: Uint8Array): boolean {
  return bytes[0] === 0 && Buffer.compare(bytes.subarray(1), bytes.subarray(0, -1)) === 0;
}

/** Copies a source to standard output. @throws UserError; a reader that goes away is one, too */
export async function copyToStream(
  source: CopySource,
  signal: AbortSignal,
  progress: (bytes: number, total: number) => void,
): Promise<void> {
  const { sizeBytes, unitBytes } = source;
  const count = Math.min(MOST_AHEAD, Math.max(1, Math.floor((64 << 20) / unitBytes)));
  const memories = Array.from({ length: count }, () => nativeMemory(unitBytes));
  const read = async (index: number) => {
    const offset = index * unitBytes;
    const length = Math.min(unitBytes, sizeBytes - offset);
    const memory = memories[index % count];
    const part = { address: memory.address, bytes: memory.bytes.subarray(0, length) };
    if (!(await source.read(offset, part, length))) part.bytes.fill(0);
    return part.bytes;
  };
  const units = Math.ceil(sizeBytes / unitBytes);
  const ahead: Promise<Uint8Array>[] = [];
  try {
    for (let unit = 0, asked = 0; unit < units; unit++) {
      signal.throwIfAborted();
      for (; asked < Math.min(unit + count, units); asked++) {
        const reading = read(asked);
        reading.catch(() => {});
        ahead.push(reading);
      }
      const bytes = await (ahead.shift() as Promise<Uint8Array>);
      writeAll(bytes);
      progress(Math.min((unit + 1) * unitBytes, sizeBytes), sizeBytes);
    }
  } finally {
    await Promise.allSettled(ahead);
    for (const memory of memories) memory.free();
  }
}

function writeAll(bytes: Uint8Array): void {
  for (let at = 0; at < bytes.length; ) {
    try {
      at += writeSync(STDOUT, bytes, at);
    } catch (error) {
      if (errorName(error) !== 'EAGAIN') {
        throw new UserError(`standard output can't be written: ${errorName(error)}`);
      }
      Bun.sleepSync(1);
    }
  }
}
