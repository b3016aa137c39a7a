/** A connection whose socket tells of its end while it is written to, and bytes that nobody asked for. */
import { expect, spyOn, test } from 'bun:test';
import type { Socket } from 'bun';
import { Channel, nativeMemory } from '../../src/remote/channel.ts';
import { StripeConnection } from '../../src/remote/connection.ts';
import { encodeStripeMap, MetadataLayout } from '../../src/stripe/metadata_layout.ts';
import { joined } from './lying_server.ts';
import { psk, u64 } from './support.ts';

/** A socket of Bun's, of which a write tells that the peer is gone, as a reset connection's does. */
function brokenSocket(events: { closed(): void }, tells: 'closed' | 'count'): Socket<Channel> {
  const socket = {
    write() {
      if (tells === 'closed') events.closed();
      return tells === 'count' ? -1 : 0;
    },
    end() {},
    pause() {},
    resume() {},
  };
  return socket as unknown as Socket<Channel>;
}

for (const tells of ['closed', 'count'] as const) {
  for (const role of ['client', 'server'] as const) {
    test(`a ${role} hears of the end of a connection from a write, by ${tells}`, async () => {
      const events = { closed: () => {} };
      const socket = brokenSocket(events, tells);
      const channel = new Channel(socket, { role, idleMs: 60_000 });
      events.closed = () => channel.closed();
      const memory = nativeMemory(4096);
      await expect(channel.send(memory, 0, 4096)).rejects.toThrow('the peer has closed');
      await expect(channel.receive(memory, 0, 1)).rejects.toThrow('the peer has closed');
      memory.free();
    });

    test(`a ${role} that shakes hands hears of it, too, by ${tells}`, async () => {
      const events = { closed: () => {} };
      const socket = brokenSocket(events, tells);
      const peers = { client: 'server', server: 'client' } as const;
      const hello: Uint8Array[] = [];
      const whole = { write: (bytes: Uint8Array) => hello.push(bytes.slice()), end() {} };
      const peer = new Channel(whole as unknown as Socket<Channel>, {
        role: peers[role],
        psk: psk(),
        idleMs: 60_000,
      });
      const channel = new Channel(socket, { role, psk: psk(), idleMs: 60_000 });
      events.closed = () => channel.closed();
      for (const bytes of hello) channel.received(bytes);
      // What a client says first, it says before anybody listens.
      if (tells === 'closed' && role === 'client') channel.closed();
      await expect(channel.open()).rejects.toThrow('the peer has closed');
      peer.close();
    });
  }
}

test('what was being sent is not sent after the end: its memory may be used again', async () => {
  const written: number[] = [];
  const socket = { write: (bytes: Uint8Array) => written.push(bytes.length) && 1, end() {} };
  const channel = new Channel(socket as unknown as Socket<Channel>, {
    role: 'server',
    idleMs: 60_000,
  });
  const memory = nativeMemory(4096);
  const sending = channel.send(memory, 0, 4096);
  channel.close('enough');
  await expect(sending).rejects.toThrow('enough');
  memory.free();
  channel.writable();
  expect(written).toEqual([4096]);
});

test('nothing is watched any more after the end', async () => {
  const begun = spyOn(globalThis, 'setInterval');
  const cleared = spyOn(globalThis, 'clearInterval');
  const channel = new Channel(brokenSocket({ closed: () => {} }, 'closed'), {
    role: 'client',
    idleMs: 60_000,
  });
  const memory = nativeMemory(4096);
  const receiving = channel.receive(memory, 0, 4096);
  channel.close('enough');
  await expect(receiving).rejects.toThrow('enough');
  const timers = begun.mock.results.map(({ value }) => value as unknown);
  expect(timers).toHaveLength(1);
  expect(cleared.mock.calls.map(([timer]): unknown => timer)).toEqual(timers);
  begun.mockRestore();
  cleared.mockRestore();
  memory.free();
});

test('what comes without a question ends the connection, and is no answer', async () => {
  const [shift, bytes] = [0, 512];
  const layout = new MetadataLayout(2, shift, 2);
  const blob = encodeStripeMap(layout, Uint8Array.of(7, 7));
  const answer = (byte: number) => {
    return joined(Uint8Array.of(0), u64(bytes), new Uint8Array(bytes).fill(byte));
  };
  const asked: number[][] = [];
  const listener = Bun.listen({
    hostname: '127.0.0.1',
    port: 0,
    socket: {
      data(socket, request) {
        asked.push([...request]);
        if (request[0] === 2) socket.write(Uint8Array.of(0, 1, 0, 0, 0));
        else if (request[0] === 0) socket.write(joined(Uint8Array.of(0), u64(blob.length), blob));
        else socket.write(joined(answer(1), answer(2)));
      },
    },
  });
  const connection = await StripeConnection.open({
    address: `127.0.0.1:${listener.port}`,
    connectMs: 5000,
    operationMs: 5000,
  });
  const memory = nativeMemory(bytes);
  await connection.readStripe(0, memory, bytes);
  expect(memory.bytes[0]).toBe(1);
  await expect(connection.readStripe(1, memory, bytes)).rejects.toThrow('nobody asked for');
  connection.close();
  memory.free();
  listener.stop(true);
  // All that a client says, byte by byte.
  expect(asked).toEqual([[2], [0], [1, 0, 0, 0, 0, 0, 0, 0, 0]]);
});
