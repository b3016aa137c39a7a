/** Connects to servers, by TCP or a Unix socket: channels over sockets of Bun's event loop. */
import { lookup } from 'node:dns/promises';
import type { Socket } from 'bun';
import { errorName } from '../errors.ts';
import { Channel, type ChannelOptions } from './channel.ts';

const KEEP_ALIVE_MS = 30_000;

/**
 * Connects to the first of a host's addresses that answers.
 * @param over when nobody waits for it any more
 * @throws Error where none does
 */
export async function dialTcp(
  { host, port }: { host: string; port: number },
  options: ChannelOptions,
  over: AbortSignal,
): Promise<Channel> {
  // Names are looked up each time: a server may have moved.
  const found = await lookup(host, { all: true }).catch((error) => {
    throw new Error(`'${host}' can't be resolved: ${errorName(error)}`);
  });
  let last: unknown;
  for (const { address: hostname } of found) {
    if (over.aborted) break;
    try {
      return await dial({ hostname, port }, options, over);
    } catch (error) {
      last = error;
    }
  }
  const address = `${host.includes(':') ? `[${host}]` : host}:${port}`;
  throw new Error(`${address} can't be connected to: ${errorName(last)}`);
}

/** Connects to a Unix socket. @throws Error */
export async function dialUnix(
  path: string,
  options: ChannelOptions,
  over: AbortSignal,
): Promise<Channel> {
  return await dial({ unix: path }, options, over).catch((error) => {
    throw new Error(`the socket '${path}' can't be connected to: ${errorName(error)}`);
  });
}

/** Takes over a socket that is connected. */
export async function adopt(fd: number, options: ChannelOptions): Promise<Channel> {
  return await dial({ fd }, options, new AbortController().signal);
}

type Place = { hostname: string; port: number } | { unix: string } | { fd: number };

async function dial(place: Place, options: ChannelOptions, over: AbortSignal): Promise<Channel> {
  const opened = Promise.withResolvers<Channel>();
  const socket = Bun.connect<Channel>({
    // Descriptors aren't in Bun's types.
    ...(place as { unix: string }),
    socket: {
      open(socket: Socket<Channel>) {
        // The secret may be wiped by now.
        if (over.aborted) return void socket.end();
        if ('port' in place) {
          socket.setNoDelay(true);
          socket.setKeepAlive(true, KEEP_ALIVE_MS);
        }
        socket.data = new Channel(socket, options);
        opened.resolve(socket.data);
      },
      ...channelEvents,
    },
  });
  // The failure to connect is told by both.
  socket.catch(opened.reject);
  return await opened.promise;
}

/** What a socket tells its channel. */
export const channelEvents = {
  data: (socket: Socket<Channel>, bytes: Uint8Array) => socket.data?.received(bytes),
  drain: (socket: Socket<Channel>) => socket.data?.writable(),
  end: (socket: Socket<Channel>) => socket.data?.receivedEnd(),
  close: (socket: Socket<Channel>, error?: Error) => socket.data?.closed(error),
  error: (socket: Socket<Channel>, error: Error) => socket.data?.closed(error),
};
