import { expect, test } from 'bun:test';
import { join } from 'node:path';
import { randomSecret } from '../../src/crypto/random.ts';

test('random secrets have their length, and differ', () => {
  const secrets = [0, 1, 12, 32, 256].map(randomSecret);
  expect(secrets.map(({ lengthBytes }) => lengthBytes)).toEqual([0, 1, 12, 32, 256]);
  const seen = Array.from({ length: 50 }, () =>
    Buffer.from(randomSecret(32).reveal()).toString('hex'),
  );
  expect(new Set(seen).size).toBe(seen.length);
});

test('new keys and the texts of them are in the memory for secrets alone, until they are wiped', () => {
  const root = join(import.meta.dir, '../..');
  const script = `
    const { randomSecret } = await import('${root}/src/crypto/random.ts');
    const { secretText } = await import('${root}/src/commands/secret_text.ts');
    const { needlesFor, openMemory } = await import('${root}/test/memory_scan.ts');
    const search = openMemory();
    const secrets = [12, 32].map(randomSecret);
    const text = secretText(['key: ', secrets[0], ', ', secrets[1]]);
    const needles = {
      ...needlesFor('short', secrets[0].reveal()),
      ...needlesFor('long', secrets[1].reveal()),
      ...needlesFor('text', text.reveal().subarray(-40)),
    };
    const found = () => [...new Set(search(needles).map((one) => JSON.stringify(one)))].sort();
    const before = found();
    for (const secret of [...secrets, text]) secret.wipe();
    console.log(JSON.stringify({ before, after: found() }));
  `;
  const { stdout, stderr } = Bun.spawnSync([process.execPath, '-e', script]);
  expect(stderr.toString()).toBe('');
  const { before, after } = JSON.parse(stdout.toString());
  const expected = ['long', 'short', 'text'].flatMap((name) =>
    ['beginning', 'end'].map((end) => `{"needle":"${name}, ${end}","inArena":true}`),
  );
  expect(before).toEqual(expected);
  expect(after).toEqual([]);
});
