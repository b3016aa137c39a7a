/** Reads and writes of whole ranges off the main thread, at places that suit the file. */
import * as fs from 'node:fs';
import { EAGAIN, EINTR } from '../../ffi/errno.ts';
import type { DiskFacts } from '../device/disk.ts';

/** What of an open file reads and writes need. */
export type FileFacts = Pick<DiskFacts, 'fd' | 'bufferedFd' | 'directOffsetAlign'>;

/** The descriptor for a range: not every one suits direct I/O. */
export function descriptorFor(facts: FileFacts, offset: number, length: number): number {
  const mask = facts.directOffsetAlign - 1;
  if (facts.bufferedFd < 0 || ((offset | length) & mask) === 0) return facts.fd;
  return facts.bufferedFd;
}

/**
 * Fills `bytes` from a place in a file.
 * @returns how many bytes there were: fewer at the end of the file
 * @throws Error with a `code`
 */
export async function readAt(facts: FileFacts, bytes: Uint8Array, offset: number): Promise<number> {
  let done = 0;
  while (done < bytes.length) {
    const rest = bytes.subarray(done);
    const fd = descriptorFor(facts, offset + done, rest.length);
    const count = await call((end) => fs.read(fd, rest, 0, rest.length, offset + done, end));
    if (count === 0) break;
    done += count;
  }
  return done;
}

/** Writes all of `bytes`. @throws Error with a `code` */
export async function writeAt(facts: FileFacts, bytes: Uint8Array, offset: number): Promise<void> {
  let done = 0;
  while (done < bytes.length) {
    const rest = bytes.subarray(done);
    const fd = descriptorFor(facts, offset + done, rest.length);
    done += await call((end) => fs.write(fd, rest, 0, rest.length, offset + done, end));
  }
}

/** What was written before is on stable storage. @throws Error with a `code` */
export async function syncFile(fd: number): Promise<void> {
  await call((end) => fs.fdatasync(fd, (error) => end(error, 0)));
}

type End = (error: NodeJS.ErrnoException | null, count: number) => void;

async function call(start: (end: End) => void): Promise<number> {
  for (;;) {
    try {
      return await new Promise((resolve, reject) => {
        start((error, count) => (error ? reject(error) : resolve(count)));
      });
    } catch (error) {
      const { errno = 0 } = error as NodeJS.ErrnoException;
      if (Math.abs(errno) !== EINTR && Math.abs(errno) !== EAGAIN) throw error;
    }
  }
}
