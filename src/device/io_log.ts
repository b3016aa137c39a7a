/**
 * The I/O debug log: what a guest has written and read, in the order in which it happened, as records of
 * four lines of text (`READ` or `WRITE`; first sector; bytes; the bytes in hexadecimal).
 *
 * All queues' threads write to one open file, one record after the other. A record that can't be written
 * whole is taken back, and is the end of the log: what is in it can always be replayed.
 */
import {
  accessSync,
  closeSync,
  constants,
  fchmodSync,
  fstatSync,
  ftruncateSync,
  openSync,
  readSync,
  statSync,
  writeSync,
} from 'node:fs';
import { dirname } from 'node:path';
import { EAGAIN, failed } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { windowOver } from '../../ffi/memory.ts';
import { errorName, UserError } from '../errors.ts';
import { type BlockRequest, WRITE_ZEROES } from './request.ts';

/** An open log as queue threads get it; plain data. */
export interface IoLogShare {
  fd: number;
  /** Two words: whether a thread is writing, and whether the log has ended. */
  state: SharedArrayBuffer;
}

const MODE = 0o600;
const LOCK = 0;
const ENDED = 1;
/** So much of a payload is written at once. */
const PIECE_BYTES = 512 * 1024;
/** Zeroes have no memory of their own: longer runs are several records. */
const ZEROES_BYTES = 1024 * 1024;
const MOST_HEADER_BYTES = 64;
const MOST_KIND_BYTES = 'WRITE\n'.length;

/**
 * Sees whether a log could be begun; changes nothing. Another server's is not found out, which may be one
 * that gives its disk away.
 * @throws UserError
 */
export function checkIoLog(path: string): void {
  telling(path, () => {
    const status = statSync(path, { throwIfNoEntry: false });
    if (status && !status.isFile()) {
      throw new UserError(`the I/O log '${path}' is no regular file; name one in io_debug_path`);
    }
    if (status) closeSync(openOwn(path, 0));
    else accessSync(dirname(path), constants.W_OK);
  });
}

/**
 * Begins a log, for the owner's eyes only; an older log in the file is gone.
 * @throws UserError where it can't be written, another process writes it, or it is no log
 */
export function openIoLog(path: string): IoLogShare {
  checkIoLog(path);
  openLibrary();
  return telling(path, () => {
    const fd = openOwn(path, constants.O_CREAT | constants.O_APPEND);
    try {
      const locked = shim.ubiblk_file_lock(fd, 0, 0, 1);
      if (locked === -EAGAIN) {
        throw new UserError(`the I/O log '${path}' is another server's; name another file`);
      }
      if (locked < 0) throw failed('fcntl(F_OFD_SETLK)', locked);
      fchmodSync(fd, MODE);
      ftruncateSync(fd, 0);
    } catch (error) {
      closeSync(fd);
      throw error;
    }
    return { fd, state: new SharedArrayBuffer(2 * Int32Array.BYTES_PER_ELEMENT) };
  });
}

/** Opens a file that is this user's, and holds a log or nothing. */
function openOwn(path: string, flags: number): number {
  const fd = openSync(path, constants.O_RDWR | flags, MODE);
  try {
    if (fstatSync(fd).uid !== process.geteuid?.()) {
      throw new UserError(`the I/O log '${path}' is another user's; name a new file`);
    }
    if (!beginsAsLog(fd)) {
      throw new UserError(`'${path}' holds something else than an I/O log; name a new file`);
    }
    return fd;
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

/** Does what it is given; its errors name the log. */
function telling<Result>(path: string, action: () => Result): Result {
  try {
    return action();
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(`the I/O log '${path}' can't be written: ${errorName(error)}`);
  }
}

/** A mistaken path must not empty a disk or a key. */
function beginsAsLog(fd: number): boolean {
  const bytes = Buffer.alloc(MOST_KIND_BYTES);
  const text = bytes.toString('latin1', 0, readSync(fd, bytes, 0, bytes.length, 0));
  return text === '' || /^(READ|WRITE)\n/.test(text);
}

/** One thread's hand at a log. */
export class IoLog {
  private readonly state: Int32Array;
  private readonly fd: number;
  private readonly out = Buffer.allocUnsafe(MOST_HEADER_BYTES + 2 * PIECE_BYTES);
  private used = 0;
  private readonly zeroes = Buffer.alloc(PIECE_BYTES);

  /** @param ended is told, by one of the threads, that the log has ended for want of room or the like */
  constructor(
    { fd, state }: IoLogShare,
    private readonly ended: (reason: string) => void,
  ) {
    this.fd = fd;
    this.state = new Int32Array(state);
  }

  /** Records a request with its data as it is in memory now; zeroes are recorded as written. */
  record(kind: 'READ' | 'WRITE', request: BlockRequest): void {
    const { offset, length } = request;
    this.lock();
    try {
      if (request.op !== WRITE_ZEROES) {
        this.write(kind, offset, length, () => this.putData(request));
        return;
      }
      for (let at = 0; at < length; at += ZEROES_BYTES) {
        const part = Math.min(ZEROES_BYTES, length - at);
        this.write(kind, offset + at, part, () => this.putZeroes(part));
      }
    } finally {
      this.unlock();
    }
  }

  private write(kind: string, offset: number, length: number, payload: () => void): void {
    if (this.state[ENDED]) return;
    let before = -1;
    try {
      before = fstatSync(this.fd).size;
      this.used = 0;
      this.put(`${kind}\n${offset / 512}\n${length}\n`);
      payload();
      this.put('\n');
      this.send();
    } catch (error) {
      this.state[ENDED] = 1;
      if (before >= 0) this.takeBack(before);
      this.ended(errorName(error));
    }
  }

  private putData({ segments, address, iovec, iovecs, length }: BlockRequest): void {
    if (segments === 1) {
      this.putMemory(address, length);
      return;
    }
    for (let i = 0; i < segments; i++) {
      this.putMemory(iovecs.address(iovec + i), iovecs.length(iovec + i));
    }
  }

  private putMemory(address: number, length: number): void {
    for (let at = 0; at < length; at += PIECE_BYTES) {
      const part = Math.min(PIECE_BYTES, length - at);
      this.put(Buffer.from(windowOver(address + at, part)).toString('hex'));
    }
  }

  private putZeroes(length: number): void {
    for (let at = 0; at < length; at += PIECE_BYTES) {
      this.put(this.zeroes.toString('hex', 0, Math.min(PIECE_BYTES, length - at)));
    }
  }

  private put(text: string): void {
    if (this.used + text.length > this.out.length) this.send();
    this.used += this.out.write(text, this.used, 'latin1');
  }

  private send(): void {
    for (let done = 0; done < this.used; ) {
      done += writeSync(this.fd, this.out, done, this.used - done);
    }
    this.used = 0;
  }

  private takeBack(sizeBytes: number): void {
    try {
      ftruncateSync(this.fd, sizeBytes);
    } catch {
      // Whoever replays it is told where it breaks off.
    }
  }

  private lock(): void {
    while (Atomics.compareExchange(this.state, LOCK, 0, 1) !== 0) {
      Atomics.wait(this.state, LOCK, 1);
    }
  }

  private unlock(): void {
    Atomics.store(this.state, LOCK, 0);
    Atomics.notify(this.state, LOCK, 1);
  }
}
