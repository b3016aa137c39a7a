import { afterAll, beforeEach, expect, test } from 'bun:test';
import {
  fstatSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { NewFile } from '../../ffi/new_file.ts';
import { UserError } from '../../src/errors.ts';

const top = mkdtempSync(join(tmpdir(), 'ubiblk-new-file-'));
let folder = '';
let count = 0;
beforeEach(() => {
  folder = join(top, String(count++));
  mkdirSync(folder);
});
afterAll(() => rmSync(top, { recursive: true }));

/** The folder of these tests must be on a file system that has files without a name: ext4, tmpfs. */
for (const [kind, unnamed] of [
  ['without a name', true],
  ['with another name', false],
] as const) {
  test(`a file is there when it is complete, for its owner alone: ${kind}`, async () => {
    const path = join(folder, 'out');
    writeFileSync(path, 'old', { mode: 0o644 });
    const file = new NewFile(path, unnamed);
    writeSync(file.fd, 'new');
    expect(fstatSync(file.fd).mode & 0o7777).toBe(0o600);
    expect(readFileSync(path, 'utf8')).toBe('old');
    await file.commit();
    expect(readFileSync(path, 'utf8')).toBe('new');
    expect(statSync(path).mode & 0o7777).toBe(0o600);
    file.discard();
    expect(readdirSync(folder)).toEqual(['out']);
    await expect(file.commit()).rejects.toThrow('the file has been given up');
  });

  test(`a file that is given up leaves nothing, and what was there as it was: ${kind}`, () => {
    const path = join(folder, 'out');
    writeFileSync(path, 'old');
    const file = new NewFile(path, unnamed);
    writeSync(file.fd, 'new');
    expect(readdirSync(folder)).toHaveLength(unnamed ? 1 : 2);
    file.discard();
    file.discard();
    expect(readdirSync(folder)).toEqual(['out']);
    expect(readFileSync(path, 'utf8')).toBe('old');
  });

  test(`a link stays, and what it leads to is replaced: ${kind}`, async () => {
    mkdirSync(join(folder, 'elsewhere'));
    writeFileSync(join(folder, 'elsewhere/real'), 'old');
    const link = join(folder, 'link');
    symlinkSync('elsewhere/real', link);
    const file = new NewFile(link, unnamed);
    writeSync(file.fd, 'new');
    await file.commit();
    expect(readlinkSync(link)).toBe('elsewhere/real');
    expect(lstatSync(join(folder, 'elsewhere/real')).isFile()).toBe(true);
    expect(readFileSync(link, 'utf8')).toBe('new');
    expect(readdirSync(join(folder, 'elsewhere'))).toEqual(['real']);
  });

  test(`a file that must be new leaves what is there alone: ${kind}`, async () => {
    const path = join(folder, 'out');
    const file = new NewFile(path, unnamed);
    writeSync(file.fd, 'new');
    expect(await file.commitAsNew()).toBe(true);
    expect(readFileSync(path, 'utf8')).toBe('new');
    expect(statSync(path).mode & 0o7777).toBe(0o600);
    expect(readdirSync(folder)).toEqual(['out']);

    const late = new NewFile(path, unnamed);
    writeSync(late.fd, 'late');
    expect(await late.commitAsNew()).toBe(false);
    late.discard();
    symlinkSync('nothing', join(folder, 'link'));
    const linked = new NewFile(join(folder, 'link'), unnamed);
    expect(await linked.commitAsNew()).toBe(false);
    linked.discard();
    expect(readFileSync(path, 'utf8')).toBe('new');
    expect(readdirSync(folder).sort()).toEqual(['link', 'out']);
  });

  test(`what cannot be renamed to its place is removed by who gives up: ${kind}`, async () => {
    const path = join(folder, 'out');
    const file = new NewFile(path, unnamed);
    mkdirSync(path);
    await expect(file.commit()).rejects.toThrow(
      new UserError(`'${path}' cannot be completed: EISDIR`),
    );
    file.discard();
    expect(readdirSync(folder)).toEqual(['out']);
  });
}

test('nothing is left of one whose process is killed', async () => {
  const program = `
    import { NewFile } from '${join(import.meta.dir, '../../ffi/new_file.ts')}';
    import { writeSync } from 'node:fs';
    writeSync(new NewFile('${join(folder, 'out')}').fd, 'new');
    process.kill(process.pid, 'SIGKILL');`;
  const child = Bun.spawn([process.execPath, '-e', program]);
  await child.exited;
  expect(child.signalCode).toBe('SIGKILL');
  expect(readdirSync(folder)).toEqual([]);
});

test('a folder that is not there is named', () => {
  const path = join(folder, 'absent/out');
  expect(() => new NewFile(path)).toThrow(
    new UserError(`the folder '${join(folder, 'absent')}' of '${path}' does not exist; create it`),
  );
});
