import { expect, test } from 'bun:test';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
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

test('a signal while the disk is waited for leaves no KEK behind', () => {
  const folder = mkdtempSync(join(tmpdir(), 'ubiblk-keys-'));
  const root = join(import.meta.dir, '../..');
  const script = `
    const { readdirSync } = process.getBuiltinModule('node:fs');
    process.getBuiltinModule('node:fs').fsync = () => {
      console.log(readdirSync('${folder}').length);
      process.kill(process.pid, 'SIGINT');
      setInterval(() => {}, 1000);
    };
    const { run } = await import('${root}/src/commands/keys_kek.ts');
    const { Arguments } = await import('${root}/src/commands/arguments.ts');
    const { Log } = await import('${root}/src/log.ts');
    const args = new Arguments(new Map([['output', '${folder}/disk.kek']]));
    await run(args, new Log({ level: 'warn', format: 'human' }, 'keys-kek'));
  `;
  try {
    const argv = [process.execPath, '-e', script];
    const { stdout, stderr, exitCode } = Bun.spawnSync(argv, { timeout: 20_000 });
    expect(stderr.toString()).toBe(
      '[ERROR keys-kek] SIGINT: ended before the KEK file was complete\n',
    );
    // It has a name already only where the file system can't do without.
    expect(['0\n', '1\n']).toContain(stdout.toString());
    expect(exitCode).toBe(130);
    expect(readdirSync(folder)).toEqual([]);
  } finally {
    rmSync(folder, { recursive: true });
  }
}, 30_000);
