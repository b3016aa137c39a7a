import { lookup } from 'node:dns/promises';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { errnoName } from '../../ffi/errno.ts';
import { openLibrary, shim } from '../../ffi/library.ts';
import { ListeningSocket } from '../../ffi/listening_socket.ts';
import { isAddress, splitAddress } from '../config/address.ts';
import { nbdUri } from '../config/nbd_uri.ts';
import { errorName, UsageError, UserError } from '../errors.ts';
import { checkSocketPlaces } from './socket_places.ts';

const SOCKET_MODE = 0o660;
/** sd_listen_fds(3): the first descriptor that is passed. */
const FIRST_PASSED_FD = 3;
const UNIX = 'unix:';

/** Where an NBD server listens. */
export interface Listening {
  fd: number;
  /** For clients, without what only they know. */
  uri: string;
  /** In words. */
  place: string;
  close(): void;
}

/**
 * The path of the Unix socket that `--listen` names, undefined where it is an address.
 * @throws UsageError where it is neither
 */
export function listenPath(listen: string): string | undefined {
  if (listen.startsWith(UNIX) && listen.length > UNIX.length) return listen.slice(UNIX.length);
  if (isAddress(listen, 0)) return undefined;
  throw new UsageError(
    `--listen must be unix:PATH or HOST:PORT (an IPv6 address in brackets), not '${listen}'`,
  );
}

/** Whether a service manager has passed a socket to this process (sd_listen_fds(3)). */
export function hasPassedSocket(): boolean {
  const { LISTEN_PID, LISTEN_FDS } = process.env;
  return Number(LISTEN_PID) === process.pid && Number(LISTEN_FDS) > 0;
}

/**
 * Listens where `--listen` says, at the socket that a service manager has passed, or, where neither is
 * there, in a folder of its own.
 * @throws UserError
 */
export async function listenForNbd(
  listen: string | undefined,
  exportName: string,
  tls: boolean,
): Promise<Listening> {
  openLibrary();
  if (listen === undefined) {
    return hasPassedSocket() ? passedSocket(exportName, tls) : ownSocket(exportName, tls);
  }
  const path = listenPath(listen);
  return path === undefined
    ? await listenAt(listen, exportName, tls)
    : listenOn(path, exportName, tls);
}

function listenOn(path: string, exportName: string, tls: boolean): Listening {
  checkSocketPlaces([['--listen', path]]);
  const socket = ListeningSocket.make(path, SOCKET_MODE);
  return {
    fd: socket.fd,
    uri: nbdUri({ socket: path }, exportName, tls),
    place: `'${path}'`,
    close: () => socket.close(),
  };
}

function ownSocket(exportName: string, tls: boolean): Listening {
  const folder = mkdtempSync(join(tmpdir(), 'ubiblk-nbd-'));
  const listening = listenOn(join(folder, 'socket'), exportName, tls);
  return {
    ...listening,
    close: () => {
      listening.close();
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

async function listenAt(address: string, exportName: string, tls: boolean): Promise<Listening> {
  const { host, port } = splitAddress(address);
  const found = await lookup(host).catch((error) => {
    throw new UserError(`--listen: '${host}' can't be resolved: ${errorName(error)}`);
  });
  const fd = shim.ubiblk_tcp_listen(Buffer.from(`${found.address}\0`), port);
  if (fd < 0) {
    const code = errnoName(fd);
    const remedy = code === 'EADDRINUSE' ? '; choose another port' : '';
    throw new UserError(`'${address}' can't be listened at: ${code}${remedy}`);
  }
  const shown = `${host.includes(':') ? `[${host}]` : host}:${shim.ubiblk_socket_port(fd)}`;
  return {
    fd,
    uri: nbdUri({ address: shown }, exportName, tls),
    place: shown,
    close: () => shim.ubiblk_close(fd),
  };
}

function passedSocket(exportName: string, tls: boolean): Listening {
  const fd = FIRST_PASSED_FD;
  if (Number(process.env.LISTEN_FDS) !== 1) {
    throw new UserError(`one socket must be passed, not ${process.env.LISTEN_FDS} (LISTEN_FDS)`);
  }
  // A child of ours is not meant.
  for (const name of ['LISTEN_PID', 'LISTEN_FDS', 'LISTEN_FDNAMES']) delete process.env[name];
  if (shim.ubiblk_socket_listens(fd) !== 1) {
    throw new UserError(
      'the socket that was passed (descriptor 3) is no stream socket that listens',
    );
  }
  const port = shim.ubiblk_socket_port(fd);
  const place = port > 0 ? `port ${port}` : 'a socket of the service manager';
  return {
    fd,
    uri: nbdUri({ address: `localhost:${port}` }, exportName, tls),
    place,
    close: () => shim.ubiblk_close(fd),
  };
}
