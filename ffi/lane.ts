/**
 * Calls on files that may take long, or hang, for the main thread, which must not wait: threads of the
 * shim carry them out. Each lane has threads of its own: what hangs in one holds up nobody in another.
 */
import { ptr } from 'bun:ffi';
import type { SocketHandler } from 'bun';
import { fileError } from './errno.ts';
import { openLibrary, shim } from './library.ts';

/** UBIBLK_JOB_* of c/ubiblk.h. */
const READ = 0;
const READ_DATA = 1;
const WRITE = 2;
const WRITE_OUT = 3;
const SYNC = 4;
const ALLOCATE = 5;
const CLONE = 6;
const CLOSE = 7;
const SEND_FILE = 8;
const SYNC_ALL = 9;
const SEAL = 10;
const UNSEAL = 11;
const READ_FILE = 12;
const RECEIVE = 13;
const MAKE_FILE = 14;

/** Memory that stays until a call on it is done. */
export interface Part {
  readonly address: number;
  readonly length: number;
}

const nowhere: Part = { address: 0, length: 0 };

/** Calls that have begun at the same time may end in any order. */
export class Lane {
  private handle = 0;
  private closed = false;

  /**
   * @param name of its threads, for ps and top: 15 bytes at most
   * @param threads the most; none is started before there is work for it
   */
  constructor(
    private readonly name: string,
    private readonly threads: number,
  ) {}

  /** @returns bytes, or -errno */
  read(fd: number, to: Part, offset: number): Promise<number> {
    return this.call(READ, fd, to, offset);
  }

  /** The same, but -ENODATA where all of the range is a hole. */
  readData(fd: number, to: Part, offset: number): Promise<number> {
    return this.call(READ_DATA, fd, to, offset);
  }

  /** @returns bytes, or -errno */
  write(fd: number, from: Part, offset: number): Promise<number> {
    return this.call(WRITE, fd, from, offset);
  }

  /** The same, and storage begins to take it before anybody asks for a sync. */
  writeOut(fd: number, from: Part, offset: number): Promise<number> {
    return this.call(WRITE_OUT, fd, from, offset);
  }

  /** fdatasync(2). @returns 0 or -errno */
  sync(fd: number): Promise<number> {
    return this.call(SYNC, fd, nowhere, 0);
  }

  /** fallocate(2). @returns 0 or -errno */
  allocate(fd: number, mode: number, offset: number, length: number): Promise<number> {
    return this.call(ALLOCATE, fd, { address: 0, length }, offset, mode);
  }

  /** Lets a file share a range of blocks with the same range of another. @returns 0 or -errno */
  clone(fd: number, from: number, offset: number, length: number): Promise<number> {
    return this.call(CLONE, fd, { address: 0, length }, offset, from);
  }

  /** close(2), which waits for servers of files. @returns 0 or -errno */
  closeFile(fd: number): Promise<number> {
    return this.call(CLOSE, fd, nowhere, 0);
  }

  /**
   * Sends bytes of a file to a socket that doesn't block, as many as it has room for.
   * @returns bytes, or -errno
   */
  sendFile(socket: number, fd: number, offset: number, length: number): Promise<number> {
    return this.call(SEND_FILE, fd, { address: 0, length }, offset, socket);
  }

  /**
   * Receives until there is no more room, the peer has ended, or nothing comes for so many milliseconds.
   * @returns bytes
   */
  receive(socket: number, to: Part, patienceMs: number): Promise<number> {
    return this.call(RECEIVE, socket, to, 0, patienceMs);
  }

  /** syncfs(2): all that was written to the file's file system. @returns 0 or -errno */
  syncAll(fd: number): Promise<number> {
    return this.call(SYNC_ALL, fd, nowhere, 0);
  }

  /** Makes a stripe an object. @param job address of a struct ubiblk_seal (c/object.h) @returns its result */
  seal(job: number): Promise<number> {
    return this.call(SEAL, -1, { address: job, length: 0 }, 0);
  }

  /** Makes an object a stripe. @param job address of a struct ubiblk_unseal @returns its result */
  unseal(job: number): Promise<number> {
    return this.call(UNSEAL, -1, { address: job, length: 0 }, 0);
  }

  /**
   * Reads a whole file.
   * @returns its size, or -errno; where there is less room, nothing was read
   */
  async readFile(path: string, to: Part): Promise<number> {
    return await this.callNamed(READ_FILE, [path], to);
  }

  /**
   * Makes a file, for the owner's eyes only, which replaces the one that is there. Storage begins to take it.
   * @param temporary its name until it is complete, in the same file system; where it is taken, -EEXIST
   * @returns 0 or -errno, and then there is nothing
   */
  async makeFile(temporary: string, path: string, from: Part): Promise<number> {
    return await this.callNamed(MAKE_FILE, [temporary, path], from);
  }

  /** What has not been begun ends with -ECANCELED; its threads end when they can. */
  close(): void {
    if (this.handle !== 0) shim.ubiblk_lane_close(this.handle);
    this.handle = 0;
    this.closed = true;
  }

  /** What is done with files by their names, which a thread reads. */
  private async callNamed(op: number, paths: string[], memory: Part): Promise<number> {
    const text = Buffer.from(paths.map((path) => `${path}\0`).join(''));
    names.add(text);
    try {
      return await this.call(op, -1, memory, ptr(text));
    } finally {
      names.delete(text);
    }
  }

  private call(
    op: number,
    fd: number,
    { address, length }: Part,
    offset: number,
    extra = 0,
  ): Promise<number> {
    if (this.closed) throw new Error(`the lane '${this.name}' is closed`);
    if (this.handle === 0) this.open();
    const ticket = freeTickets.pop() ?? calls.length;
    const done = Promise.withResolvers<number>();
    calls[ticket] = done;
    const { handle } = this;
    const submit = shim.ubiblk_lane_submit;
    const result = submit(handle, op, ticket, fd, address, length, offset, extra);
    if (result < 0) finish(ticket, result);
    return done.promise;
  }

  private open(): void {
    watchDone();
    const handle = new BigUint64Array(1);
    const name = Buffer.from(`${this.name}\0`);
    const result = shim.ubiblk_lane_open(name, this.threads, handle);
    if (result < 0) throw fileError('a lane', result);
    this.handle = Number(handle[0]);
  }
}

/** Paths that calls under way need. */
const names = new Set<Buffer>();
/** Calls under way, by their tickets. */
const calls: (PromiseWithResolvers<number> | undefined)[] = [];
const freeTickets: number[] = [];
/** Tickets and results, one after the other. */
const REAPED = 64;
const found = new Float64Array(2 * REAPED);
let watching = false;

function watchDone(): void {
  if (watching) return;
  watching = true;
  openLibrary();
  const fd = shim.ubiblk_lanes_start();
  if (fd < 0) throw fileError('socketpair', fd);
  const handler: SocketHandler = { data: reap, open: reap, error: () => {} };
  // Not in Bun's types.
  const options = { fd, socket: handler } as unknown as Parameters<typeof Bun.connect>[0];
  Bun.connect(options);
}

function reap(): void {
  let count: number;
  do {
    count = shim.ubiblk_lanes_reap(found, REAPED);
    for (let i = 0; i < count; i++) {
      finish(found[2 * i] as number, found[2 * i + 1] as number);
    }
  } while (count === REAPED);
}

function finish(ticket: number, result: number): void {
  calls[ticket]?.resolve(result);
  calls[ticket] = undefined;
  freeTickets.push(ticket);
}
