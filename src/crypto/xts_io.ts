/**
 * What `xts_file.ts` reads from and writes to: files, block devices and streams. Opening, reading and
 * writing wait in other threads, so that a signal finds this one awake.
 */
import {
  close,
  constants,
  fstatSync,
  fsync,
  open,
  read,
  type Stats,
  statSync,
  write,
} from 'node:fs';
import { promisify } from 'node:util';
import { errnoName } from '../../ffi/errno.ts';
import { shim } from '../../ffi/library.ts';
import { NewFile } from '../../ffi/new_file.ts';
import { errorName, UserError } from '../errors.ts';

const openFile = promisify(open);
const closeFile = promisify(close);
const syncFile = promisify(fsync);
const readFile = promisify(read);
const writeFile = promisify(write);

const STDIN = 0;
const STDOUT = 1;
/** More than struct ubiblk_file_facts of c/ubiblk.h has; its first 64 bits are the size. */
const FACTS_WORDS = 8;

export interface Input {
  /** For messages: `'disk.img'`, or `standard input`. */
  name: string;
  fd: number;
  /** Undefined for streams: their length shows at their end, and they are read in their order. */
  sizeBytes: number | undefined;
  /** Identity of a block device. */
  device: number | undefined;
}

export interface Output {
  name: string;
  fd: number;
  /** Streams are written in order, and what is written can't be taken back. */
  isStream: boolean;
  /** Of a block device. */
  sizeBytes: number | undefined;
  /** Puts everything on stable storage, and the file in its place. @throws UserError */
  commit(): Promise<void>;
  /** After an error: removes what can be removed. */
  discard(): void;
}

/** Opens INPUT, `-` for standard input. @throws UserError */
export async function openInput(path: string): Promise<Input> {
  if (path === '-') {
    return { name: 'standard input', fd: STDIN, sizeBytes: undefined, device: undefined };
  }
  const name = `'${path}'`;
  let fd: number;
  try {
    fd = await openFile(path, constants.O_RDONLY);
  } catch (error) {
    throw new UserError(`${name} cannot be read: ${errorName(error)}`);
  }
  const status = fstatSync(fd);
  refuseDirectory(name, status);
  if (status.isBlockDevice()) {
    return { name, fd, sizeBytes: deviceSize(fd, name), device: status.rdev };
  }
  return { name, fd, sizeBytes: status.isFile() ? status.size : undefined, device: undefined };
}

/**
 * Opens OUTPUT, `-` for standard output. A device or a FIFO is written in place; anything else will be
 * replaced by a new file.
 * @throws UserError, also where it is the device that is read
 */
export async function openOutput(path: string, input: Input): Promise<Output> {
  const inPlace = { commit: async () => {}, discard: () => {}, sizeBytes: undefined };
  if (path === '-') return { ...inPlace, name: 'standard output', fd: STDOUT, isStream: true };
  const name = `'${path}'`;
  const status = statusOf(path);
  if (status !== undefined) refuseDirectory(name, status);
  if (status?.isBlockDevice()) return openDevice(path, status, input);
  if (status !== undefined && !status.isFile()) {
    return { ...inPlace, name, fd: await openInPlace(path, 0), isStream: true };
  }
  const file = new NewFile(path);
  return {
    name,
    fd: file.fd,
    isStream: false,
    sizeBytes: undefined,
    commit: () => file.commit(),
    discard: () => file.discard(),
  };
}

async function openDevice(path: string, status: Stats, input: Input): Promise<Output> {
  const name = `'${path}'`;
  if (status.rdev === input.device) {
    throw new UserError(
      `${name} is both INPUT and OUTPUT, and a run that is interrupted would leave a mixture; write ` +
        'to another device or file',
    );
  }
  // O_EXCL refuses a device that is mounted or otherwise in use.
  const fd = await openInPlace(path, constants.O_EXCL);
  return {
    name,
    fd,
    isStream: false,
    sizeBytes: deviceSize(fd, name),
    commit: async () => {
      try {
        await syncFile(fd);
        await closeFile(fd);
      } catch (error) {
        throw new UserError(`cannot write to ${name}: ${errorName(error)}`);
      }
    },
    discard: () => {},
  };
}

async function openInPlace(path: string, flags: number): Promise<number> {
  try {
    return await openFile(path, constants.O_WRONLY | flags);
  } catch (error) {
    const code = errorName(error);
    const why = code === 'EBUSY' ? 'it is mounted or in use by another program (EBUSY)' : code;
    throw new UserError(`'${path}' cannot be written: ${why}`);
  }
}

/** Undefined where nothing is there. */
function statusOf(path: string): Stats | undefined {
  if (path === '' || path.endsWith('/')) {
    throw new UserError(`'${path}' is no name of a file; give OUTPUT one`);
  }
  try {
    return statSync(path);
  } catch (error) {
    if (errorName(error) === 'ENOENT') return undefined;
    throw new UserError(`'${path}' cannot be written: ${errorName(error)}`);
  }
}

function refuseDirectory(name: string, status: Stats): void {
  if (status.isDirectory()) throw new UserError(`${name} is a folder; give the name of a file`);
}

function deviceSize(fd: number, name: string): number {
  const facts = new BigUint64Array(FACTS_WORDS);
  const result = shim.ubiblk_file_facts(fd, facts);
  if (result < 0) throw new UserError(`${name} cannot be examined: ${errnoName(result)}`);
  return Number(facts[0]);
}

/**
 * Reads until `bytes` is full or the input ends.
 * @param position in bytes; of a stream null: where the last read ended
 * @returns how many bytes were read
 * @throws UserError
 */
export async function readFully(
  { fd, name }: Input,
  bytes: Uint8Array,
  position: number | null,
): Promise<number> {
  return await transfer(bytes.length, `cannot read ${name}`, async (done) => {
    const at = position === null ? null : position + done;
    return (await readFile(fd, bytes, done, bytes.length - done, at)).bytesRead;
  });
}

/** Writes all of `bytes`; `position` as for `readFully`. @throws UserError */
export async function writeFully(
  { fd, name }: Output,
  bytes: Uint8Array,
  position: number | null,
): Promise<void> {
  await transfer(bytes.length, `cannot write to ${name}`, async (done) => {
    const at = position === null ? null : position + done;
    return (await writeFile(fd, bytes, done, bytes.length - done, at)).bytesWritten;
  });
}

/** Goes on after short transfers, to `length` bytes or to one that moves nothing. */
async function transfer(
  length: number,
  failure: string,
  move: (done: number) => Promise<number>,
): Promise<number> {
  let done = 0;
  while (done < length) {
    try {
      const moved = await move(done);
      if (moved === 0) break;
      done += moved;
    } catch (error) {
      const code = errorName(error);
      if (code !== 'EAGAIN' && code !== 'EINTR') throw new UserError(`${failure}: ${code}`);
      // Whoever shares this stream has made it non-blocking.
      await Bun.sleep(1);
    }
  }
  return done;
}
