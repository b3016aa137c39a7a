import { expect, test } from 'bun:test';
import { statSync } from 'node:fs';

const shim = 'build/libubiblk.so';
const executable = 'dist/ubiblk';
/** README.md promises it. */
const oldestGlibc = '2.34';

function output(...command: string[]): string {
  const { exitCode, stdout, stderr } = Bun.spawnSync(command);
  if (exitCode !== 0) throw new Error(`'${command.join(' ')}' failed: ${stderr}`);
  return stdout.toString();
}

/** The versions of glibc's symbols that the file needs, such as 2.34 or PRIVATE. */
function glibcVersions(path: string): string[] {
  const found = output('objdump', '-T', path).matchAll(/\*UND\*.*\(?GLIBC_([\w.]+)\)?/g);
  return [...new Set([...found].map((match) => match[1]))];
}

function isNewer(version: string, than: string): boolean {
  const [major, minor] = version.split('.').map(Number);
  const [otherMajor, otherMinor] = than.split('.').map(Number);
  return major > otherMajor || (major === otherMajor && minor > otherMinor);
}

function newest(versions: string[]): string {
  return versions.reduce((best, version) => (isNewer(version, best) ? version : best));
}

test('versions are compared by their numbers', () => {
  expect(isNewer('2.4', '2.34')).toBe(false);
  expect(isNewer('2.34', '2.34')).toBe(false);
  expect(isNewer('2.35', '2.34')).toBe(true);
  expect(isNewer('3.0', '2.34')).toBe(true);
  expect(newest(['2.4', '2.34', '2.17'])).toBe('2.34');
});

for (const path of [shim, executable]) {
  test(`${path} needs no symbol newer than glibc ${oldestGlibc}`, () => {
    const versions = glibcVersions(path);
    console.log(`${path} needs glibc ${newest(versions)}`);
    expect(versions.length).toBeGreaterThan(0);
    expect(versions.filter((version) => !/^\d+\.\d+/.test(version))).toEqual([]);
    expect(versions.filter((version) => isNewer(version, oldestGlibc))).toEqual([]);
  });
}

test('the shim shows its own functions and no symbol of OpenSSL or liburing', () => {
  const defined = [...output('nm', '--dynamic', '--defined-only', shim).matchAll(/ (\S+)$/gm)];
  const names = defined.map((match) => match[1]);
  expect(names).toContain('ubiblk_xts_encrypt');
  expect(names.filter((name) => !name.startsWith('ubiblk_'))).toEqual([]);
});

test('the shim needs nothing but glibc on a host', () => {
  const needed = [...output('readelf', '-d', shim).matchAll(/NEEDED.*\[(.*)\]/g)];
  const foreign = needed.map((match) => match[1]).filter((name) => !/^(libc|ld-linux)/.test(name));
  expect(foreign).toEqual([]);
});

test('the shim has no executable stack and no writable code', () => {
  const segments = output('readelf', '-lW', shim).split('\n');
  expect(segments.find((line) => line.includes('GNU_STACK'))).not.toMatch(/RWE/);
  expect(segments.filter((line) => /LOAD.*RWE/.test(line))).toEqual([]);
  expect(output('readelf', '-d', shim)).toMatch(/BIND_NOW|NOW/);
  expect(output('readelf', '-d', shim)).not.toMatch(/TEXTREL/);
});

test('the executable is one file that may be run', () => {
  expect(statSync(executable).mode & 0o111).toBe(0o111);
});
