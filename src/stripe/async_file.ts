/** Reads and writes of whole ranges by a lane, at places that suit the file. */
import { constants, openSync } from 'node:fs';
import { EAGAIN, EINTR, ENODATA, fileError } from '../../ffi/errno.ts';
import type { Lane, Part } from '../../ffi/lane.ts';
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
 * Fills memory from a place in a file.
 * @returns how many bytes there were: fewer at the end of the file
 * @throws Error with a `code`
 */
export async function readAt(
  lane: Lane,
  facts: FileFacts,
  to: Part,
  offset: number,
): Promise<number> {
  return await transfer(facts, to, offset, (fd, rest, at) =>
    call('read', () => lane.read(fd, rest, at)),
  );
}

/**
 * The same, but of a range that is a hole nothing is read.
 * @returns null where it is one
 */
export async function readDataAt(
  lane: Lane,
  facts: FileFacts,
  to: Part,
  offset: number,
): Promise<number | null> {
  let isHole = false;
  const readData: Transfer = async (fd, rest, at) => {
    const result = await (at === offset ? lane.readData(fd, rest, at) : lane.read(fd, rest, at));
    isHole = result === -ENODATA;
    return isHole ? 0 : result;
  };
  const count = await transfer(facts, to, offset, (...of) => call('read', () => readData(...of)));
  return isHole ? null : count;
}

/** Writes all of it. @throws Error with a `code` */
export async function writeAt(
  lane: Lane,
  facts: FileFacts,
  from: Part,
  offset: number,
): Promise<void> {
  await write(facts, from, offset, (...of) => lane.write(...of));
}

/**
 * The same, of much that will have to be on stable storage soon: it begins to go there at once.
 * @throws Error with a `code`
 */
export async function writeOutAt(
  lane: Lane,
  facts: FileFacts,
  from: Part,
  offset: number,
): Promise<void> {
  await write(facts, from, offset, (...of) => lane.writeOut(...of));
}

/** What was written before is on stable storage. @throws Error with a `code` */
export async function syncFile(lane: Lane, fd: number): Promise<void> {
  await call('fdatasync', () => lane.sync(fd));
}

type Transfer = (fd: number, rest: Part, offset: number) => Promise<number>;

async function write(facts: FileFacts, from: Part, offset: number, move: Transfer): Promise<void> {
  await transfer(facts, from, offset, (...of) => call('write', () => move(...of)));
}

async function transfer(
  facts: FileFacts,
  { address, length }: Part,
  offset: number,
  move: Transfer,
): Promise<number> {
  let done = 0;
  while (done < length) {
    const rest = { address: address + done, length: length - done };
    const count = await move(descriptorFor(facts, offset + done, rest.length), rest, offset + done);
    if (count === 0) break;
    done += count;
  }
  return done;
}

async function call(name: string, start: () => Promise<number>): Promise<number> {
  for (;;) {
    const result = await start();
    if (result >= 0) return result;
    if (result !== -EINTR && result !== -EAGAIN) throw fileError(name, result);
  }
}

/**
 * Another open description of the file. The kernel tells each of lost writes once: were it shared with
 * the queues, a guest's flush would hide from us what it was told, and we from the guest.
 */
export function reopen(fd: number): number {
  try {
    return openSync(`/proc/self/fd/${fd}`, constants.O_RDWR);
  } catch {
    return fd;
  }
}
