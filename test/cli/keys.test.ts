import { expect, test } from 'bun:test';
import { freshKeys } from '../../src/commands/keys_generate.ts';
import { secretText } from '../../src/commands/secret_text.ts';
import { Secret } from '../../src/crypto/secret.ts';

test('new keys are never equal', () => {
  const bytes = [7, 7, 7, 8];
  const made: Secret[] = [];
  const [data, tweak] = freshKeys((lengthBytes) => {
    const secret = Secret.taking(new Uint8Array(lengthBytes).fill(bytes[made.length]));
    made.push(secret);
    return secret;
  });
  expect([...data.reveal()]).toEqual(Array(32).fill(7));
  expect([...tweak.reveal()]).toEqual(Array(32).fill(8));
  expect(made).toHaveLength(4);
  for (const given of made.slice(1, 3)) {
    expect(() => given.address).toThrow(/wiped/);
  }
});

test('a text is made of its parts in their order, secrets in base64', () => {
  const secret = Secret.taking(new Uint8Array([1, 2, 3, 4]));
  const text = secretText(['é: "', secret, '"', '', new Secret(0), '\n']);
  expect(Buffer.from(text.reveal()).toString()).toBe('é: "AQIDBA=="\n');
  expect([...secret.reveal()]).toEqual([1, 2, 3, 4]);
  expect(secretText([]).lengthBytes).toBe(0);
});
