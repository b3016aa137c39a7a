/** The whole of a served disk against a file: copied into it, or compared with it. */
import {
  closeSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readSync,
  type Stats,
  statSync,
  writeSync,
} from 'node:fs';
import { NewFile } from '../../ffi/new_file.ts';
import { refuseUsedDisk } from '../device/disk.ts';
import { errorName, UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { BlockClient } from './block_client.ts';
import { hexByte, readSpan } from './phases.ts';

/** Told of the work while it goes on, in bytes. */
export type DiskProgress = (doneBytes: number, totalBytes: number) => void;

/** Reads the disk from its start to `sizeBytes`. */
async function readDisk(
  client: BlockClient,
  sizeBytes: number,
  take: (bytes: Uint8Array, offset: number) => void,
  progress: DiskProgress,
): Promise<void> {
  let done = 0;
  await readSpan(client, [0, sizeBytes], (bytes, offset) => {
    take(bytes, offset);
    done += bytes.length;
    progress(done, sizeBytes);
  });
}

/**
 * Copies the disk into a new file, which has holes where the disk has zeroes, and which takes the place of
 * one that is there when all has been read.
 * @param sizeBytes how much of the disk, from its start on
 * @returns how many bytes were not zeroes and written
 * @throws UserError where a request fails, somebody uses the file that is there, or none can be written:
 * nothing is left of it then
 */
export async function copyDisk(
  client: BlockClient,
  path: string,
  sizeBytes: number,
  progress: DiskProgress,
  log: Log,
): Promise<number> {
  await refuseOther(path, log);
  const zeroes = Buffer.alloc(client.transferBytes);
  const file = new NewFile(path);
  let written = 0;
  try {
    await readDisk(
      client,
      sizeBytes,
      (bytes, offset) => {
        if (zeroes.compare(bytes, 0, bytes.length, 0, bytes.length) === 0) return;
        writeAll(file.fd, path, bytes, offset);
        written += bytes.length;
      },
      progress,
    );
    setSize(file.fd, path, sizeBytes);
    await file.commit();
  } finally {
    file.discard();
  }
  return written;
}

/**
 * Compares the disk with a file.
 * @param sizeBytes how much of both, from their start on; undefined: all, and they must be as large
 * @returns how many bytes were compared
 * @throws UserError at the first difference
 */
export async function compareDisk(
  client: BlockClient,
  path: string,
  sizeBytes: number | undefined,
  progress: DiskProgress,
): Promise<number> {
  const { capacityBytes } = client.device;
  const fd = openFile(path);
  try {
    const fileBytes = fstatSync(fd).size;
    const bytes = sizeBytes ?? capacityBytes;
    if (fileBytes < bytes || (sizeBytes === undefined && fileBytes !== bytes)) {
      const both = Math.min(fileBytes, capacityBytes);
      throw new UserError(
        `the disk has ${capacityBytes} bytes, and '${path}' has ${fileBytes}; compare what both begin ` +
          `with (--size ${both - (both % 512)}), or another file`,
      );
    }
    const expected = Buffer.alloc(client.transferBytes);
    const compare = (got: Uint8Array, offset: number) => {
      const wanted = expected.subarray(0, got.length);
      readAll(fd, path, wanted, offset);
      if (wanted.equals(got)) return;
      const at = got.findIndex((byte, index) => byte !== wanted[index]);
      throw new UserError(
        `the disk differs from '${path}': at offset ${offset + at} it has ${hexByte(got[at])} ` +
          `instead of ${hexByte(wanted[at])}`,
      );
    };
    await readDisk(client, bytes, compare, progress);
    return bytes;
  } finally {
    closeSync(fd);
  }
}

/** Refuses what must not be replaced; what can't be found out here, the new file will say. */
async function refuseOther(path: string, log: Log): Promise<void> {
  let status: Stats;
  try {
    status = statSync(path);
  } catch {
    return;
  }
  if (!status.isFile()) {
    throw new UserError(`'${path}' is no regular file; name one, and copy it from there`);
  }
  await refuseUsedDisk(path, log);
}

function openFile(path: string): number {
  try {
    const fd = openSync(path, 'r');
    if (fstatSync(fd).isFile()) return fd;
    closeSync(fd);
  } catch (error) {
    throw new UserError(`'${path}' cannot be read: ${errorName(error)}`);
  }
  throw new UserError(`'${path}' is no regular file; name one that holds what the disk should`);
}

function readAll(fd: number, path: string, bytes: Uint8Array, offset: number): void {
  try {
    for (let done = 0; done < bytes.length; ) {
      const got = readSync(fd, bytes, done, bytes.length - done, offset + done);
      if (got === 0) throw new UserError(`'${path}' became shorter while it was read`);
      done += got;
    }
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(`'${path}' cannot be read: ${errorName(error)}`);
  }
}

function setSize(fd: number, path: string, sizeBytes: number): void {
  try {
    ftruncateSync(fd, sizeBytes);
  } catch (error) {
    throw new UserError(`'${path}' cannot get ${sizeBytes} bytes: ${errorName(error)}`);
  }
}

function writeAll(fd: number, path: string, bytes: Uint8Array, offset: number): void {
  try {
    for (let done = 0; done < bytes.length; ) {
      done += writeSync(fd, bytes, done, bytes.length - done, offset + done);
    }
  } catch (error) {
    throw new UserError(`'${path}' cannot be written: ${errorName(error)}`);
  }
}
