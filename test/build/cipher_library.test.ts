/** Both cipher libraries pass the shim's tests, where the machine has both. */
import { expect, test } from 'bun:test';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { cipherLibrary } from '../../ffi/library.ts';

const hasIsal = cipherLibrary().startsWith('isa-l');
const name = 'isa-l_crypto and OpenSSL pass the same tests of the shim';

/** With both, what the build made is isa-l_crypto's; OpenSSL's is built beside it. */
async function bothPass(): Promise<void> {
  const build = mkdtempSync(join(tmpdir(), 'ubiblk-openssl-'));
  try {
    for (const more of [[], ['ISAL_CRYPTO_PREFIX=', `BUILD=${build}`]]) {
      const make = Bun.spawn(['make', '-s', '-C', 'c', 'test', ...more], { stdout: 'pipe' });
      const output = await new Response(make.stdout).text();
      expect([await make.exited, output.match(/[1-9]\d* failed/)]).toEqual([0, null]);
    }
  } finally {
    rmSync(build, { recursive: true, force: true });
  }
}

if (hasIsal) test(name, bothPass, 300_000);
else test.skip(`${name} [isa-l_crypto is not installed]`, bothPass);
