/** A device is found by what its disk is, not by what it is called. */
import { afterAll, expect, test } from 'bun:test';
import {
  closeSync,
  linkSync,
  mkdtempSync,
  openSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { identityOf, isOurs } from '../../src/frontend/ublk/identity.ts';

const folder = mkdtempSync(join(tmpdir(), 'ubiblk-identity-'));
afterAll(() => rmSync(folder, { recursive: true }));

function of(name: string, deviceId = 'disk'): bigint {
  const fd = openSync(name.startsWith('/') ? name : join(folder, name), 'r');
  try {
    return identityOf(deviceId, fd);
  } finally {
    closeSync(fd);
  }
}

test('a file is the same by every name, also after it was renamed or written to', () => {
  const path = (name: string) => join(folder, name);
  writeFileSync(path('a'), '');
  const identity = of('a');
  symlinkSync('a', path('link'));
  linkSync(path('a'), path('other'));
  expect([of('link'), of('other')]).toEqual([identity, identity]);
  renameSync(path('a'), path('b'));
  writeFileSync(path('b'), 'more');
  expect(of('b')).toBe(identity);
});

test('other files, devices and device_ids are others', () => {
  writeFileSync(join(folder, 'c'), '');
  writeFileSync(join(folder, 'd'), '');
  const all = [of('c'), of('d'), of('c', 'disk2'), of('/dev/null'), of('/dev/zero')];
  expect(new Set(all).size).toBe(all.length);
});

test('all of them are known as ours, and nothing else is', () => {
  expect([of('/dev/null'), of('/dev/zero', '')].map(isOurs)).toEqual([true, true]);
  expect([0n, 1n, 0x7562n, 0xffff_ffff_ffff_ffffn, 0x7563_0000_0000_0000n].map(isOurs)).toEqual([
    false,
    false,
    false,
    false,
    false,
  ]);
});

test('all of it fits into the 64 bits that the kernel keeps', () => {
  expect(BigInt.asUintN(64, of('/dev/null'))).toBe(of('/dev/null'));
});

test('another build finds the device of the one before', () => {
  // device 1:3, which is 259; the first 6 bytes of SHA-256 of "disk\0device 259".
  const hash = new Bun.CryptoHasher('sha256').update('disk\0device 259').digest('hex');
  expect(of('/dev/null')).toBe(BigInt(`0x7562${hash.slice(0, 12)}`));
});
