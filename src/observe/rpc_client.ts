/** Asks the RPC socket of a running server. */
import { lstatSync } from 'node:fs';
import type { SocketHandler, UnixSocketOptions } from 'bun';
import { EACCES, EAGAIN, ECONNREFUSED, ENAMETOOLONG, ENOENT, errnoName } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { UserError } from '../errors.ts';

/** No server says more at once. */
const MAX_ANSWER_BYTES = 64 * 1024 * 1024;
const NEWLINE = 10;
const RETRY_MS = 5;

/**
 * Sends one command and waits for its answer.
 * @param timeoutMs for all of it
 * @returns the answer, an object
 * @throws UserError where there is no server, no answer, or one that tells of an error
 */
export async function askRpc(
  path: string,
  command: string,
  timeoutMs: number,
): Promise<Record<string, unknown>> {
  const deadlineMs = performance.now() + timeoutMs;
  const fd = await connect(path, deadlineMs);
  const late = `the server at '${path}' did not answer within ${timeoutMs / 1000} s`;
  const line = await exchange(path, fd, `${JSON.stringify({ command })}\n`, deadlineMs, late);
  const answer = objectOf(line);
  if (!answer)
    throw new UserError(`what listens at '${path}' did not answer as an RPC server does`);
  if ('error' in answer) {
    throw new UserError(`the server at '${path}' refused the command: ${answer.error}`);
  }
  return answer;
}

/** @returns a connection's descriptor; Bun's own way of connecting names only some errors */
async function connect(path: string, deadlineMs: number): Promise<number> {
  openLibrary();
  for (;;) {
    const fd = shim.ubiblk_socket_connect(Buffer.from(`${path}\0`));
    if (fd >= 0) return fd;
    // The queue of connections that wait to be accepted is full.
    if (fd !== -EAGAIN || performance.now() > deadlineMs) {
      throw new UserError(connectSentence(path, fd));
    }
    await Bun.sleep(RETRY_MS);
  }
}

function connectSentence(path: string, error: number): string {
  switch (error) {
    case -ENOENT:
      return `there is no socket '${path}'; is the server running, with 'rpc_socket_path' set?`;
    case -ECONNREFUSED:
      return lstatSync(path, { throwIfNoEntry: false })?.isSocket() === false
        ? `'${path}' is not a socket`
        : `nobody listens on the socket '${path}'; is the server running?`;
    case -EACCES:
      return `the socket '${path}' can't be opened: EACCES; run as its owner or in its group`;
    case -EAGAIN:
      return `the server at '${path}' accepts no connection; is it stopped?`;
    case -ENAMETOOLONG:
      return `the socket path '${path}' is longer than the 107 bytes Linux allows`;
    default:
      return `'${path}' can't be connected to: ${errnoName(error)}`;
  }
}

/** Sends a line and returns the one that comes back, without its end. */
async function exchange(
  path: string,
  fd: number,
  line: string,
  deadlineMs: number,
  late: string,
): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const fail = (sentence: string) => reject(new UserError(sentence));
  const parts: Buffer[] = [];
  let bytes = 0;
  const handler: SocketHandler = {
    // A request is far smaller than what a new connection takes at once.
    open: (socket) => void socket.write(line),
    data: (_, part) => {
      const end = part.indexOf(NEWLINE);
      parts.push(end < 0 ? part : part.subarray(0, end));
      bytes += part.length;
      if (end >= 0) resolve(Buffer.concat(parts).toString());
      else if (bytes > MAX_ANSWER_BYTES) fail(`the answer of the server at '${path}' has no end`);
    },
    close: () => fail(`the server at '${path}' closed the connection without an answer`),
    error: () => {},
  };
  const timer = setTimeout(() => fail(late), deadlineMs - performance.now());
  const options = { fd, socket: handler };
  const socket = await Bun.connect(options as unknown as UnixSocketOptions);
  try {
    return await promise;
  } finally {
    clearTimeout(timer);
    socket.terminate();
  }
}

function objectOf(line: string): Record<string, unknown> | null {
  try {
    const value = JSON.parse(line);
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}
