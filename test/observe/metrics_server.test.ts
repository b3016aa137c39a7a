/** The HTTP server of metrics, with readers that send what they like. */
import { afterEach, expect, test } from 'bun:test';
import { createConnection } from 'node:net';
import { MetricsServer } from '../../src/observe/metrics_server.ts';
import { RecordingLog } from './support.ts';

const log = new RecordingLog();
let server: MetricsServer | null = null;

afterEach(() => server?.stop());

/** @returns the address of a server that tells such a text */
function serve(text: (openMetrics: boolean) => string): URL {
  server = MetricsServer.start({ host: '127.0.0.1', port: 0 }, text, log);
  return new URL(server.place);
}

/** Sends bytes, and gives all that comes back until the server closes. */
async function sent({ hostname, port }: URL, request: string): Promise<string> {
  const socket = createConnection({ host: hostname, port: Number(port), allowHalfOpen: true });
  socket.write(request);
  let text = '';
  socket.on('error', () => {});
  try {
    for await (const part of socket) text += part;
  } catch {
    // Who is sent more than it reads closes at once.
  }
  return text;
}

test('metrics that can not be told are an error without a word of the program', async () => {
  const url = serve(() => {
    throw new Error('a private detail');
  });
  const response = await fetch(url);
  expect(response.status).toBe(500);
  expect(await response.text()).toBe('The metrics could not be told; the log says why.\n');
  expect(log.errors).toEqual(['metrics could not be told: a private detail']);
});

test('old readers, readers that close, and those that only ask for the head', async () => {
  const url = serve((open) => `open ${open}\n`);
  const old = await sent(url, 'GET /metrics HTTP/1.0\r\nConnection: close\r\n\r\n');
  expect(old).toMatch(/^HTTP\/1\.[01] 200 OK\r\n[\s\S]*\r\n\r\nopen false\n$/);
  expect(await sent(url, 'GET /metrics?a=b HTTP/1.0\r\nHost: [::\r\n\r\n')).toContain('open false');
  const close = 'Host: x\r\nConnection: close\r\n';
  const last = await sent(
    url,
    `GET /metrics HTTP/1.1\r\nHost: x\r\n\r\nGET /metrics HTTP/1.1\r\n${close}\r\n`,
  );
  expect(last.match(/open false\n/g)?.length).toBe(2);
  const head = await sent(url, `HEAD /metrics HTTP/1.1\r\n${close}\r\n`);
  expect(head).toStartWith('HTTP/1.1 200 OK\r\n');
  expect(head).not.toContain('open');
});

test.each([
  ['a body of more than there is memory', 'POST /metrics HTTP/1.1\r\nContent-Length: 99999999999'],
  ['a body', 'POST /metrics HTTP/1.1\r\nContent-Length: 3'],
  ['a head without end', `GET /metrics HTTP/1.1\r\nX: ${'x'.repeat(1 << 20)}`],
  ['an odd path', 'GET /../../etc/passwd HTTP/1.1'],
  ['another method', 'DELETE /metrics HTTP/1.1'],
  ['no HTTP at all', 'nonsense'],
])('%s is refused, and others are answered', async (_, request) => {
  const url = serve(() => 'text\n');
  const answer = await sent(url, `${request}\r\nHost: x\r\nConnection: close\r\n\r\nabc`);
  expect(answer).not.toContain('text\n');
  expect(answer.length).toBeLessThan(1000);
  expect(await (await fetch(url)).text()).toBe('text\n');
});
