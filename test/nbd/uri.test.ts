import { expect, test } from 'bun:test';
import { nbdUri, parseNbdUri } from '../../src/config/nbd_uri.ts';

const cases: [string, object][] = [
  ['nbd://example.com', { host: 'example.com', port: 10809, exportName: '', tls: false }],
  [
    'nbd://example.com:1234/disk',
    { host: 'example.com', port: 1234, exportName: 'disk', tls: false },
  ],
  [
    'nbd://example.com//disk',
    { host: 'example.com', port: 10809, exportName: '/disk', tls: false },
  ],
  ['nbd://[::1]:5/hello%20world', { host: '::1', port: 5, exportName: 'hello world', tls: false }],
  ['nbd+unix:///disk?socket=nbd.sock', { socket: 'nbd.sock', exportName: 'disk', tls: false }],
  ['nbd+unix://?socket=/tmp/a%26b', { socket: '/tmp/a&b', exportName: '', tls: false }],
  [
    'nbds://alice@h/x?tls-psk-file=/k.psk',
    { host: 'h', port: 10809, exportName: 'x', tls: true, user: 'alice', pskFile: '/k.psk' },
  ],
];

for (const [uri, place] of cases) {
  test(`${uri} is taken apart`, () => {
    expect({ ...parseNbdUri(uri) } as object).toEqual({ uri, ...place });
  });
}

for (const [uri, reason] of [
  ['http://example.com', 'must begin with'],
  ['nbd+unix:///x', "needs '?socket=PATH'"],
  ['nbd://h:99999/', 'no port 99999'],
  ['nbd://h/%zz', 'badly quoted'],
  ['nbd://h/a%00b', 'badly quoted'],
  ['nbd://a:b:c/', 'IPv6 address in brackets'],
  ['nbds://h/', 'tls-psk-file'],
  ['nbds://h/?tls-certificates=/x', 'certificates'],
  ['nbd://h/?socket=x', '+unix'],
]) {
  test(`${uri} is refused`, () => expect(() => parseNbdUri(uri)).toThrow(reason));
}

test('what is made is taken apart to the same', () => {
  const socket = '/run/a b/n&d.sock';
  expect(parseNbdUri(nbdUri({ socket }, 'a/b c', false))).toMatchObject({
    socket,
    exportName: 'a/b c',
  });
});
