/** The KEK that a service manager passes to a server, as a file in a folder that it names. */
import { expect, test } from 'bun:test';
import { mkdirSync, renameSync } from 'node:fs';
import { binary } from './processes.ts';
import { Bed } from './support.ts';

/** An encrypted disk whose keys are wrapped, and the folder of credentials that has its KEK. */
async function wrappedDisk(bed: Bed) {
  const folder = bed.path('credentials');
  mkdirSync(folder);
  const kek = `${folder}/kek`;
  await bed.run([binary, 'keys', 'kek', '--output', kek]);
  const { stdout } = await bed.run([binary, 'keys', 'generate', '--kek', kek, '--json']);
  const { encryption_key } = JSON.parse(stdout.text);
  const config = bed.config({ path: bed.disk(), socket: bed.path('vhost.sock'), encryption_key });
  const check = [binary, 'serve', 'vhost', '--config', config, '--check'];
  return { kek, check, env: { CREDENTIALS_DIRECTORY: folder } };
}

test('the credential is the KEK where none is named', async () => {
  await using bed = new Bed();
  const { check, env } = await wrappedDisk(bed);
  const { stdout } = await bed.run(check, { env });
  expect(stdout.text).toContain('encrypted, to serve at');
  const without = await bed.run(check, { expect: 1 });
  expect(without.stderr.text).toContain('it looks wrapped by a KEK');
}, 30_000);

test('a KEK that is named goes before the credential', async () => {
  await using bed = new Bed();
  const { kek, check, env } = await wrappedDisk(bed);
  const other = bed.path('other.kek');
  renameSync(kek, other);
  await bed.run([binary, 'keys', 'kek', '--output', kek]);
  await bed.run([...check, '--kek', other], { env });
  const wrong = await bed.run(check, { env, expect: 1 });
  expect(wrong.stderr.text).toContain(`it was not wrapped with the KEK of '${kek}'`);
}, 30_000);

test('other credentials are none of our business, and the credential is never deleted', async () => {
  await using bed = new Bed();
  const { kek, check, env } = await wrappedDisk(bed);
  const deleting = await bed.run([...check, '--unlink-kek'], { env, expect: 2 });
  expect(deleting.stderr.text).toContain("option '--unlink-kek' needs '--kek FILE'");
  renameSync(kek, `${kek}2`);
  const none = await bed.run(check, { env, expect: 1 });
  expect(none.stderr.text).toContain('it looks wrapped by a KEK');
}, 30_000);
