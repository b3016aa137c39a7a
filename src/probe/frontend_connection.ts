/**
 * The frontend's end of a vhost-user socket: whole messages and their answers, and raw bytes and
 * descriptors for whoever wants to say something that no well-behaved frontend says.
 *
 * Calls block; every wait has a time limit. Descriptors that are sent stay the caller's.
 */
import { EACCES, EAGAIN, ECONNREFUSED, ENAMETOOLONG, ENOENT, errnoName } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { UserError } from '../errors.ts';
import {
  FLAG_NEED_REPLY,
  FLAG_REPLY,
  FLAG_VERSION_MASK,
  HEADER_BYTES,
  MAX_PAYLOAD,
  requestName,
  VERSION,
  VRING_NOFD_MASK,
} from '../frontend/vhost/protocol.ts';

const MAX_FDS = 32;
const RETRY_MS = 1;

/** A message from the server. The descriptors are the receiver's to close. */
export interface Answer {
  request: number;
  payload: DataView;
  fds: number[];
}

/** The server closed the connection. */
export class ConnectionClosed extends UserError {}

export class FrontendConnection {
  private readonly fds = new Int32Array(MAX_FDS);
  private readonly fdCount = new Uint32Array(1);
  private readonly polled = new Int32Array(1);

  private answered = false;

  private constructor(
    readonly socketPath: string,
    readonly fd: number,
    private readonly timeoutMs: number,
  ) {}

  /**
   * Connects to a server.
   * @param timeoutMs how long each answer is waited for
   * @throws UserError where nobody listens
   */
  static connect(socketPath: string, timeoutMs: number): FrontendConnection {
    openLibrary();
    const deadlineMs = performance.now() + timeoutMs;
    for (;;) {
      const fd = shim.ubiblk_socket_connect(Buffer.from(`${socketPath}\0`));
      if (fd >= 0) return new FrontendConnection(socketPath, fd, timeoutMs);
      // The queue of connections that wait to be accepted is full.
      if (fd !== -EAGAIN || performance.now() > deadlineMs) throw refused(socketPath, fd);
      Bun.sleepSync(RETRY_MS);
    }
  }

  /** Sends a message that has no answer. @throws ConnectionClosed; UserError after the time limit */
  send(request: number, payload: Uint8Array, fds: readonly number[] = [], flags = VERSION): void {
    this.sendRaw(messageBytes(request, payload, flags), fds);
  }

  /** Sends a message and receives its answer. @throws UserError */
  ask(
    request: number,
    payload: Uint8Array = new Uint8Array(0),
    fds: readonly number[] = [],
  ): Answer {
    this.send(request, payload, fds);
    return this.receive(request);
  }

  /**
   * Sends a message with the wish for an acknowledgement, which must have been negotiated.
   * @throws UserError where the server refuses it
   */
  askAck(request: number, payload: Uint8Array, fds: readonly number[] = []): void {
    this.send(request, payload, fds, VERSION | FLAG_NEED_REPLY);
    const { payload: answer } = this.receive(request);
    if (answer.byteLength !== 8 || answer.getBigUint64(0, true) !== 0n) {
      throw new UserError(
        `the server at '${this.socketPath}' refused ${requestName(request)}; its log says why`,
      );
    }
  }

  /** Receives the answer to a request. @throws UserError */
  receive(request: number): Answer {
    const fds: number[] = [];
    try {
      const header = this.receiveBytes(HEADER_BYTES, request, fds);
      const code = header.getUint32(0, true);
      const flags = header.getUint32(4, true);
      const length = header.getUint32(8, true);
      if (
        code !== request ||
        (flags & (FLAG_VERSION_MASK | FLAG_REPLY)) !== (VERSION | FLAG_REPLY) ||
        length > MAX_PAYLOAD
      ) {
        throw new UserError(
          `what listens on '${this.socketPath}' did not answer ${requestName(request)} as a ` +
            'vhost-user server does',
        );
      }
      const payload = this.receiveBytes(length, request, fds);
      this.answered = true;
      return { request, payload, fds };
    } catch (error) {
      for (const fd of fds) shim.ubiblk_close(fd);
      throw error;
    }
  }

  /** Sends bytes as they are, with descriptors. @throws ConnectionClosed; UserError */
  sendRaw(bytes: Uint8Array, fds: readonly number[] = []): void {
    const deadlineMs = performance.now() + this.timeoutMs;
    let sent = 0;
    while (sent < bytes.length) {
      const part = bytes.subarray(sent);
      const withFds = sent === 0 ? fds : [];
      const result = shim.ubiblk_socket_send(
        this.fd,
        part,
        part.length,
        Int32Array.from(withFds.length > 0 ? withFds : [-1]),
        withFds.length,
      );
      if (result >= 0) sent += result;
      else if (result !== -EAGAIN) throw this.closedError();
      else if (performance.now() > deadlineMs) throw this.silent('takes no message');
      else Bun.sleepSync(RETRY_MS);
    }
  }

  /** Waits until the server closes the connection, passing over what it still says. */
  awaitClosed(): void {
    const buf = new Uint8Array(MAX_PAYLOAD);
    while (this.receiveSome(buf, 'did not close the connection') > 0) this.closeReceived();
  }

  close(): void {
    shim.ubiblk_close(this.fd);
  }

  /** What to throw where the connection has been found closed. */
  closedError(): ConnectionClosed {
    const why = this.answered
      ? 'its log says why'
      : 'it serves one frontend at a time: is a virtual machine connected?';
    return new ConnectionClosed(`the server at '${this.socketPath}' closed the connection; ${why}`);
  }

  private receiveBytes(length: number, request: number, fds: number[]): DataView {
    const bytes = new Uint8Array(length);
    let done = 0;
    while (done < length) {
      const got = this.receiveSome(
        bytes.subarray(done),
        `did not answer ${requestName(request)}; it may be busy with another frontend`,
      );
      if (got === 0) throw this.closedError();
      for (let i = 0; i < this.fdCount[0]; i++) fds.push(this.fds[i]);
      done += got;
    }
    return new DataView(bytes.buffer);
  }

  /** Receives at least a byte; 0 where the connection is closed. */
  private receiveSome(bytes: Uint8Array, otherwise: string): number {
    const deadlineMs = performance.now() + this.timeoutMs;
    for (;;) {
      const got = shim.ubiblk_socket_receive(this.fd, bytes, bytes.length, this.fds, this.fdCount);
      if (got > 0) return got;
      if (got !== -EAGAIN) return 0;
      const leftMs = Math.ceil(deadlineMs - performance.now());
      if (leftMs <= 0) throw this.silent(otherwise);
      this.polled[0] = this.fd;
      shim.ubiblk_poll(this.polled, 1, leftMs);
    }
  }

  private closeReceived(): void {
    for (let i = 0; i < this.fdCount[0]; i++) shim.ubiblk_close(this.fds[i]);
  }

  private silent(what: string): UserError {
    return new UserError(
      `the server at '${this.socketPath}' ${what} (waited ${this.timeoutMs / 1000} s)`,
    );
  }
}

function refused(path: string, result: number): UserError {
  switch (result) {
    case -ENOENT:
      return new UserError(`there is no socket '${path}'; start 'ubiblk serve vhost' first`);
    case -ECONNREFUSED:
      return new UserError(`nobody listens on '${path}'; start 'ubiblk serve vhost' first`);
    case -EACCES:
      return new UserError(
        `the socket '${path}' can't be opened: EACCES; run as its owner or in its group`,
      );
    case -ENAMETOOLONG:
      return new UserError(`the socket path '${path}' is longer than the 107 bytes Linux allows`);
    case -EAGAIN:
      return new UserError(`the server at '${path}' accepts no connection; is it stopped?`);
    default:
      return new UserError(`'${path}' can't be connected to: ${errnoName(result)}`);
  }
}

/** A message with its header. */
export function messageBytes(request: number, payload: Uint8Array, flags = VERSION): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES + payload.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, request, true);
  view.setUint32(4, flags, true);
  view.setUint32(8, payload.length, true);
  bytes.set(payload, HEADER_BYTES);
  return bytes;
}

// Payloads

export function u64Payload(...values: readonly (number | bigint)[]): Uint8Array {
  return new Uint8Array(BigUint64Array.from(values, (value) => BigInt(value)).buffer);
}

/** Of SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ENABLE, GET_VRING_BASE. */
export function vringState(index: number, value: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(index, value).buffer);
}

/** Of SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR. */
export function vringFd(index: number, withFd = true): Uint8Array {
  return u64Payload(withFd ? index : index | VRING_NOFD_MASK);
}

/** Of SET_VRING_ADDR; addresses of the frontend. */
export function vringAddresses(
  index: number,
  descriptors: number,
  used: number,
  available: number,
): Uint8Array {
  const addresses = u64Payload(descriptors, used, available, 0);
  return Uint8Array.of(...vringState(index, 0), ...addresses);
}

/** A memory region as SET_MEM_TABLE and ADD_MEM_REG describe it. */
export interface RegionDescription {
  guestAddress: number | bigint;
  length: number | bigint;
  userAddress: number | bigint;
  /** Bytes into its file. */
  fileOffset: number | bigint;
}

/** Of ADD_MEM_REG and REM_MEM_REG. */
export function regionPayload(region: RegionDescription): Uint8Array {
  const { guestAddress, length, userAddress, fileOffset } = region;
  return u64Payload(0, guestAddress, length, userAddress, fileOffset);
}

/** Of SET_MEM_TABLE. */
export function tablePayload(regions: readonly RegionDescription[]): Uint8Array {
  const words = regions.flatMap((r) => [r.guestAddress, r.length, r.userAddress, r.fileOffset]);
  return u64Payload(regions.length, ...words);
}

/** Of GET_CONFIG, and of SET_CONFIG with `data`. */
export function configPayload(offset: number, size: number, data?: Uint8Array): Uint8Array {
  const bytes = new Uint8Array(12 + size);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, offset, true);
  view.setUint32(4, size, true);
  if (data) bytes.set(data, 12);
  return bytes;
}
