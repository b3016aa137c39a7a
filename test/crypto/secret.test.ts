import { expect, test } from 'bun:test';
import { inspect } from 'node:util';
import { Secret } from '../../src/crypto/secret.ts';

test('a secret has no printable form', () => {
  const secret = Secret.taking(Buffer.from('hunter2hunter2'));
  const printed = [
    String(secret),
    `${secret}`,
    JSON.stringify({ secret }),
    inspect({ secret }, { showHidden: true, depth: 9 }),
    Bun.inspect({ secret }),
    Object.values(secret).join(),
  ].join(' ');
  expect(printed).toContain('[secret]');
  expect(printed).not.toContain('hunter2');
  expect(printed).not.toContain(String('h'.charCodeAt(0)));
});

test('what a secret takes over is overwritten', () => {
  const bytes = new Uint8Array([1, 2, 3]);
  const secret = Secret.taking(bytes);
  expect(bytes).toEqual(new Uint8Array(3));
  expect([...secret.reveal()]).toEqual([1, 2, 3]);
});

test('a wiped secret is zeroes, and is not used any more', () => {
  const secret = Secret.taking(new Uint8Array([1, 2, 3]));
  const window = secret.reveal();
  secret.wipe();
  secret.wipe();
  expect([...window]).toEqual([0, 0, 0]);
  expect(() => secret.reveal()).toThrow('a secret was used after it was wiped');
  expect(() => secret.address).toThrow('a secret was used after it was wiped');
});

test('a secret of no bytes has an address', () => {
  const secret = new Secret(0);
  expect(secret.address).toBeGreaterThan(0);
  expect(secret.reveal().length).toBe(0);
});
