/** Names for the negative errno values that the shim returns. */
import { constants } from 'node:os';

const NAMES = new Map(Object.entries(constants.errno).map(([name, code]) => [code, name]));

export const EPERM = constants.errno.EPERM;
export const ENOENT = constants.errno.ENOENT;
export const ENOTDIR = constants.errno.ENOTDIR;
export const EINTR = constants.errno.EINTR;
export const EPIPE = constants.errno.EPIPE;
export const ENXIO = constants.errno.ENXIO;
export const EIO = constants.errno.EIO;
export const EBADF = constants.errno.EBADF;
export const EBADMSG = constants.errno.EBADMSG;
export const EAGAIN = constants.errno.EAGAIN;
export const ENOMEM = constants.errno.ENOMEM;
export const EACCES = constants.errno.EACCES;
export const EBUSY = constants.errno.EBUSY;
export const ENODEV = constants.errno.ENODEV;
export const EEXIST = constants.errno.EEXIST;
export const EINVAL = constants.errno.EINVAL;
export const ENODATA = constants.errno.ENODATA;
export const EOVERFLOW = constants.errno.EOVERFLOW;
export const EILSEQ = constants.errno.EILSEQ;
export const EFBIG = constants.errno.EFBIG;
export const ENOSPC = constants.errno.ENOSPC;
export const EROFS = constants.errno.EROFS;
export const EISDIR = constants.errno.EISDIR;
export const ENOTBLK = 15;
export const ENAMETOOLONG = constants.errno.ENAMETOOLONG;
export const EOPNOTSUPP = constants.errno.EOPNOTSUPP;
export const EADDRINUSE = constants.errno.EADDRINUSE;
export const ECONNREFUSED = constants.errno.ECONNREFUSED;
export const ENOTSOCK = constants.errno.ENOTSOCK;
export const ETIME = constants.errno.ETIME;

/** `errnoName(-28)` and `errnoName(28)` are `ENOSPC`. */
export function errnoName(code: number): string {
  return NAMES.get(Math.abs(code)) ?? `errno ${Math.abs(code)}`;
}

/** An internal error for a system call that returned `-errno`. */
export function failed(call: string, result: number): Error {
  return new Error(`${call} failed with ${errnoName(result)}`);
}

/** One that a user may see, and that is told from others by its `code`. */
export function fileError(call: string, result: number): Error {
  const code = errnoName(result);
  return Object.assign(new Error(`${code}: ${call} failed`), { code });
}
