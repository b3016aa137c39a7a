/** A Unix socket that listens: made with its mode, never taken from a living process. */
import { closeSync } from 'node:fs';
import { UserError } from '../src/errors.ts';
import { EACCES, EADDRINUSE, ENAMETOOLONG, ENOENT, ENOTSOCK, errnoName } from './errno.ts';
import { openLibrary, shim } from './library.ts';

export class ListeningSocket {
  private constructor(
    readonly path: string,
    /** Non-blocking, close-on-exec. */
    readonly fd: number,
    private readonly identity: BigUint64Array,
  ) {}

  /**
   * Listens at a path. A socket that nobody listens on any more is replaced; at no moment is the new
   * one open to more users than `mode` says.
   * @throws UserError where somebody listens there, where it is something else, or can't be made
   */
  static make(path: string, mode: number): ListeningSocket {
    openLibrary();
    const identity = new BigUint64Array(2);
    const fd = shim.ubiblk_socket_listen(cString(path), mode, identity);
    if (fd < 0) throw new UserError(refusal(path, fd));
    return new ListeningSocket(path, fd, identity);
  }

  /** Takes the socket's name away, if it is still this socket's. */
  remove(): void {
    shim.ubiblk_socket_remove(cString(this.path), this.identity);
  }

  /** Removes and closes it. */
  close(): void {
    closeSync(this.fd);
    this.remove();
  }
}

function refusal(path: string, error: number): string {
  switch (error) {
    case -EADDRINUSE:
      return `another process listens on the socket '${path}'; stop it or choose another path`;
    case -ENOTSOCK:
      return `'${path}' exists and is not a socket; remove it or choose another path`;
    case -ENOENT:
      return `the directory of the socket '${path}' does not exist; create it`;
    case -EACCES:
      return `the socket '${path}' can't be made there: EACCES`;
    case -ENAMETOOLONG:
      return `the socket path '${path}' is longer than the 107 bytes Linux allows`;
    default:
      return `the socket '${path}' can't be made: ${errnoName(error)}`;
  }
}

function cString(text: string): Buffer {
  return Buffer.from(`${text}\0`);
}
