/** Asking a server's RPC socket. */
import { createConnection } from 'node:net';

/** Sends one command and waits for its answer, whatever that is. */
export async function ask(path: string, command: string): Promise<Record<string, unknown>> {
  const socket = createConnection(path);
  socket.write(`${JSON.stringify({ command })}\n`);
  let text = '';
  for await (const part of socket) {
    text += part;
    if (text.endsWith('\n')) break;
  }
  socket.destroy();
  return JSON.parse(text);
}
