/** `askRpc` and servers that answer well, badly, in pieces, or not at all. */
import { afterAll, expect, test } from 'bun:test';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { UserError } from '../../src/errors.ts';
import { askRpc } from '../../src/observe/rpc_client.ts';
import { openDescriptors } from './support.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubiblk-rpc-'));
afterAll(() => rmSync(folder, { recursive: true }));
const path = join(folder, 'rpc.sock');

/** A server that does `serve` with each connection, for as long as `body` takes. */
async function withServer(serve: (socket: Socket) => void, body: () => Promise<void>) {
  const server: Server = createServer((socket) => {
    socket.on('error', () => {});
    serve(socket);
    // Only who reads learns of the other's end.
    socket.resume();
  });
  await new Promise<void>((resolve) => server.listen(path, resolve));
  try {
    await body();
  } finally {
    await new Promise((resolve) => server.close(resolve));
  }
}

function answering(...parts: (string | Uint8Array)[]) {
  return (socket: Socket) => {
    socket.once('data', async () => {
      for (const part of parts) await new Promise<void>((done) => socket.write(part, () => done()));
    });
  };
}

test('the request is one line, and the answer may come in pieces, split within a character', async () => {
  const requests: string[] = [];
  const answer = Buffer.from('{"text":"é"}\nmore');
  await withServer(
    (socket) => {
      socket.once('data', (request) => {
        requests.push(String(request));
        socket.write(answer.subarray(0, 10), () => socket.end(answer.subarray(10)));
      });
    },
    async () => {
      expect(await askRpc(path, 'say "é"\n', 5000)).toEqual({ text: 'é' });
    },
  );
  expect(requests).toEqual(['{"command":"say \\"é\\"\\n"}\n']);
});

test('an error answer is an error', async () => {
  await withServer(answering('{"code":"x","error":"unknown command: y"}\n'), async () => {
    await expect(askRpc(path, 'y', 5000)).rejects.toThrow(
      new UserError(`the server at '${path}' refused the command: unknown command: y`),
    );
  });
});

test.each(['\n', 'hello\n', '[]\n', 'null\n', '{"a":\n'])('no answer of ours: %j', async (line) => {
  await withServer(answering(line), async () => {
    await expect(askRpc(path, 'version', 5000)).rejects.toThrow(
      `what listens at '${path}' did not answer as an RPC server does`,
    );
  });
});

test('a server that closes the connection, before or within its answer', async () => {
  for (const start of ['', '{"a":1}']) {
    await withServer(
      (socket) => socket.end(start),
      async () => {
        await expect(askRpc(path, 'version', 5000)).rejects.toThrow(
          `the server at '${path}' closed the connection without an answer`,
        );
      },
    );
  }
});

test('a server that says nothing, or not enough, is waited for no longer than was asked', async () => {
  for (const start of ['', '{"a":1}']) {
    await withServer(
      (socket) => socket.write(start),
      async () => {
        await expect(askRpc(path, 'version', 100)).rejects.toThrow(
          `the server at '${path}' did not answer within 0.1 s`,
        );
      },
    );
  }
});

test('an answer without end is given up', async () => {
  const piece = Buffer.alloc(1 << 20, 'x');
  await withServer(answering(...Array<Buffer>(70).fill(piece)), async () => {
    await expect(askRpc(path, 'version', 20_000)).rejects.toThrow('has no end');
  });
});

test('where no server is', async () => {
  const before = openDescriptors();
  await expect(askRpc(join(folder, 'none'), 'version', 1000)).rejects.toThrow(
    `there is no socket '${join(folder, 'none')}'`,
  );
  writeFileSync(join(folder, 'file'), '');
  await expect(askRpc(join(folder, 'file'), 'version', 1000)).rejects.toThrow(
    `'${join(folder, 'file')}' is not a socket`,
  );
  await expect(askRpc(join(folder, 'file/x'), 'version', 1000)).rejects.toThrow('ENOTDIR');
  await expect(askRpc(`/${'x'.repeat(107)}`, 'version', 1000)).rejects.toThrow(
    'is longer than the 107 bytes Linux allows',
  );
  expect(openDescriptors()).toBe(before);
});
