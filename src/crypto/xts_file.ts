/** Encrypts or decrypts a run of sectors on their way from a file or stream to another. */

import { failed } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import { UserError } from '../errors.ts';
import { SECTOR_BYTES } from './xts.ts';
import { type Input, type Output, openInput, openOutput, readFully, writeFully } from './xts_io.ts';

export type XtsAction = 'encode' | 'decode';

export interface XtsJob {
  action: XtsAction;
  /** Paths, or `-` for the standard streams. */
  input: string;
  output: string;
  /** The first sector. */
  start: number;
  /** How many sectors; undefined: to the input's end. */
  length: number | undefined;
  /** Whether the first sector goes to the start of the output, or to where it was in the input. */
  packed: boolean;
}

/** Told of the work while it goes on, in bytes; the total is undefined where nobody knows it. */
export type XtsProgress = (doneBytes: number, totalBytes: number | undefined) => void;

/** One is read into, one is ciphered, one is written from. */
const BUFFERS = 3;
const BUFFER_BYTES = 1024 * 1024;

/**
 * Does the job: a file as output is replaced when everything is done, and left alone after an error.
 * Descriptors of the input and of streams are left to the process, which ends afterwards.
 * @param xts handle of the expanded keys
 * @throws UserError
 */
export async function cipherFile(xts: number, job: XtsJob, progress: XtsProgress): Promise<void> {
  openLibrary();
  const input = await openInput(job.input);
  const run = { ...job, length: checkedLength(input, job) };
  const output = await openOutput(job.output, input);
  try {
    checkPlace(output, run);
    await cipherRun(xts, run, input, output, progress);
    await output.commit();
  } catch (error) {
    output.discard();
    throw error;
  }
}

/** How many sectors there are to do; undefined for a stream to its end. */
function checkedLength(input: Input, job: XtsJob): number | undefined {
  const { sizeBytes } = input;
  if (sizeBytes === undefined) return job.length;
  checkRange(input, sizeBytes, job);
  return job.length ?? sizeBytes / SECTOR_BYTES - job.start;
}

/** @param sizeBytes of the whole input */
function checkRange({ name }: Input, sizeBytes: number, { action, start, length }: XtsJob): void {
  const sectors = sizeBytes / SECTOR_BYTES;
  const done = action === 'encode' ? 'encrypted' : 'decrypted';
  if (sizeBytes === 0) {
    throw new UserError(`${name} is empty: there is nothing to be ${done}; is it the right file?`);
  }
  if (!Number.isInteger(sectors)) {
    throw new UserError(
      `${name} has ${sizeBytes} bytes, which is not a multiple of ${SECTOR_BYTES}: only whole sectors ` +
        `can be ${done}; make sure that nothing of it is missing`,
    );
  }
  if (start >= sectors) {
    throw new UserError(
      `--start ${start} is behind the end of ${name}, which has ${sectors} sectors; give less`,
    );
  }
  if (length !== undefined && start + length > sectors) {
    throw new UserError(
      `--start ${start} --len ${length} goes beyond the end of ${name}, which has ${sectors} ` +
        `sectors; give --len ${sectors - start} or less`,
    );
  }
}

function checkPlace({ name, isStream, sizeBytes }: Output, run: XtsJob): void {
  const { start, length = 0, packed } = run;
  if (isStream && !packed && start > 0) {
    throw new UserError(
      `${name} is a stream, in which sectors cannot keep their offsets; give --packed, or a file as ` +
        'OUTPUT',
    );
  }
  const endBytes = ((packed ? 0 : start) + length) * SECTOR_BYTES;
  if (sizeBytes !== undefined && endBytes > sizeBytes) {
    throw new UserError(
      `${name} has ${sizeBytes} bytes, but ${endBytes} are needed; give a larger device or a ` +
        'smaller --len',
    );
  }
}

/**
 * The work itself: while one buffer is ciphered, the next one is read and the last one is written.
 * The buffers are not freed after an error: the kernel may still be at one, and the process ends.
 */
async function cipherRun(
  xts: number,
  job: XtsJob,
  input: Input,
  output: Output,
  progress: XtsProgress,
): Promise<void> {
  const buffers = Array.from({ length: BUFFERS }, () => new NativeBuffer(BUFFER_BYTES));
  const windows = buffers.map((buffer) => new Uint8Array(buffer.window()));
  const source = new Source(input, job);
  await source.skip(windows[0]);
  const firstOut = job.packed ? 0 : job.start;
  let doneSectors = 0;
  let writing = Promise.resolve();
  let reading = source.read(windows[0]);
  for (let turn = 0; ; turn++) {
    const sectors = await reading;
    if (sectors === 0) break;
    reading = source.read(windows[(turn + 1) % BUFFERS]);
    // A failure of the other one is told first, and then nobody waits for this.
    reading.catch(() => {});
    const at = turn % BUFFERS;
    cipher(xts, job.action, job.start + doneSectors, sectors, buffers[at].address);
    await writing;
    progress(doneSectors * SECTOR_BYTES, job.length && job.length * SECTOR_BYTES);
    const place = output.isStream ? null : (firstOut + doneSectors) * SECTOR_BYTES;
    writing = writeFully(output, windows[at].subarray(0, sectors * SECTOR_BYTES), place);
    writing.catch(() => {});
    doneSectors += sectors;
  }
  await writing;
  progress(doneSectors * SECTOR_BYTES, doneSectors * SECTOR_BYTES);
  for (const buffer of buffers) buffer.free();
}

function cipher(
  xts: number,
  action: XtsAction,
  sector: number,
  sectors: number,
  address: number,
): void {
  const work = action === 'encode' ? shim.ubiblk_xts_encrypt : shim.ubiblk_xts_decrypt;
  const result = work(xts, sector, sectors, address, address);
  if (result < 0) throw failed('AES-XTS', result);
}

/** The sectors of the input that are to be worked on, in their order. */
class Source {
  readonly #input: Input;
  readonly #job: XtsJob;
  /** Where the next read begins, in bytes. */
  #at: number;
  #endBytes: number;

  constructor(input: Input, job: XtsJob) {
    this.#input = input;
    this.#job = job;
    this.#at = input.sizeBytes === undefined ? 0 : job.start * SECTOR_BYTES;
    this.#endBytes = (job.start + (job.length ?? Number.POSITIVE_INFINITY)) * SECTOR_BYTES;
  }

  /**
   * Of a stream: reads up to the first sector, and one sector of none to see that it is there.
   * @throws UserError
   */
  async skip(scratch: Uint8Array): Promise<void> {
    if (this.#input.sizeBytes !== undefined) return;
    const { start, length } = this.#job;
    const first = (start + (length === 0 ? 1 : 0)) * SECTOR_BYTES;
    while (this.#at < first) await this.#read(scratch, first);
  }

  /** @returns how many sectors were read, 0 at the end @throws UserError where sectors are missing */
  async read(buffer: Uint8Array): Promise<number> {
    return this.#at < this.#endBytes ? await this.#read(buffer, this.#endBytes) : 0;
  }

  async #read(buffer: Uint8Array, endBytes: number): Promise<number> {
    const wanted = buffer.subarray(0, Math.min(buffer.length, endBytes - this.#at));
    const isStream = this.#input.sizeBytes === undefined;
    const length = await readFully(this.#input, wanted, isStream ? null : this.#at);
    this.#at += length;
    if (length < wanted.length) this.#ended();
    return length / SECTOR_BYTES;
  }

  /** The input ends here: it may do so at the end of a sector, and where no more is asked for. */
  #ended(): void {
    const { name, sizeBytes } = this.#input;
    this.#endBytes = this.#at;
    if (sizeBytes !== undefined) {
      throw new UserError(`${name} became shorter while it was read; see what else writes it`);
    }
    checkRange(this.#input, this.#at, this.#job);
  }
}
