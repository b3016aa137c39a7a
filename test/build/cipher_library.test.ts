/** Both cipher libraries pass the shim's tests, where the machine has both. */
import { expect } from 'bun:test';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { cipherLibrary } from '../../ffi/library.ts';
import { testWith } from '../e2e/support.ts';

const hasIsal = cipherLibrary().startsWith('isa-l');

testWith(
  'isa-l_crypto and OpenSSL pass the same tests of the shim',
  [!hasIsal && 'isa-l_crypto is not installed'],
  async () => {
    // What the build made is isa-l_crypto's; OpenSSL's is built beside it.
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
  },
  300_000,
);
