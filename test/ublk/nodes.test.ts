/** Nodes of users' devices are given to their owners, and no others. */
import { afterEach, expect, test } from 'bun:test';
import { spawnSync } from 'node:child_process';
import { mkdtempSync, renameSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { giveNodes } from '../../src/frontend/ublk/nodes.ts';
import { type DeviceInfo, featureBits } from '../../src/frontend/ublk/protocol.ts';

const isRoot = process.getuid?.() === 0;
const ID = 3;

const folders: string[] = [];
afterEach(() => {
  for (const folder of folders.splice(0)) rmSync(folder, { recursive: true });
});

function rootTest(name: string, body: () => void): void {
  test.skipIf(!isRoot)(isRoot ? name : `${name} [needs root]`, body);
}

/** A folder that stands for /dev, with the nodes of a device. */
function devWith(...names: string[]): string {
  const dev = mkdtempSync(join(tmpdir(), 'ubiblk-nodes-'));
  folders.push(dev);
  for (const name of names) makeNode(join(dev, name));
  return dev;
}

/** As the kernel and udev make it: root's, for a group of root's. */
function makeNode(path: string): void {
  const kind = path.includes('ublkc') ? ['c', '1', '3'] : ['b', '7', '250'];
  const made = spawnSync('mknod', ['-m', '660', path, ...kind], { encoding: 'utf8' });
  if (made.status !== 0) throw new Error(made.stderr);
}

function owner(path: string): string {
  const { uid, gid, mode } = statSync(path);
  return `${uid}:${gid} ${(mode & 0o777).toString(8)}`;
}

function device(uid: number, unprivileged = true): DeviceInfo {
  const flags = unprivileged ? featureBits('UNPRIVILEGED_DEV') : 0n;
  return {
    id: ID,
    queues: 1,
    depth: 1,
    state: 'live',
    maxIoBytes: 4096,
    pid: 1,
    flags,
    userFlags: 0n,
    ownerUid: uid,
    ownerGid: uid + 1,
  };
}

/** A driver that answers one question after the other, and no more. */
function driver(...answers: (() => DeviceInfo | null)[]) {
  let asked = 0;
  return {
    infoIfAllowed(id: number) {
      expect(id).toBe(ID);
      return answers[asked++]();
    },
    get asked() {
      return asked;
    },
  };
}

rootTest("a user's nodes are given to him, and no other device's", () => {
  const dev = devWith('ublkc3', 'ublkb3', 'ublkc33', 'ublkb33');
  giveNodes(
    driver(() => device(4001)),
    ID,
    dev,
  );
  expect(owner(join(dev, 'ublkc3'))).toBe('4001:4002 600');
  expect(owner(join(dev, 'ublkb3'))).toBe('4001:4002 600');
  expect(owner(join(dev, 'ublkc33'))).toBe('0:0 660');
  expect(owner(join(dev, 'ublkb33'))).toBe('0:0 660');
});

rootTest('a device that is not shown yet has one node', () => {
  const dev = devWith('ublkc3');
  giveNodes(
    driver(() => device(4001)),
    ID,
    dev,
  );
  expect(owner(join(dev, 'ublkc3'))).toBe('4001:4002 600');
});

rootTest('nodes of a device with privileges stay as they are, whoever made it', () => {
  const dev = devWith('ublkc3', 'ublkb3');
  giveNodes(
    driver(() => device(4001, false)),
    ID,
    dev,
  );
  expect(owner(join(dev, 'ublkc3'))).toBe('0:0 660');
  expect(owner(join(dev, 'ublkb3'))).toBe('0:0 660');
});

rootTest('a device that has gone is no error', () => {
  const dev = devWith('ublkb3');
  giveNodes(
    driver(() => null),
    ID,
    dev,
  );
  expect(owner(join(dev, 'ublkb3'))).toBe('0:0 660');
  giveNodes(
    driver(() => device(4001)),
    ID,
    devWith(),
  );
});

/** Another device takes the number, once the driver has said whose the one before is. */
function replace(dev: string, name: string): void {
  rmSync(join(dev, name));
  makeNode(join(dev, `new ${name}`));
  renameSync(join(dev, `new ${name}`), join(dev, name));
}

rootTest('a number that another user has meanwhile is his, not given to the first', () => {
  for (const name of ['ublkc3', 'ublkb3']) {
    const dev = devWith('ublkc3', 'ublkb3');
    const asked = driver(
      () => {
        replace(dev, name);
        return device(4001);
      },
      () => {
        // Not even for a moment.
        expect(owner(join(dev, name))).toBe('0:0 660');
        return device(5001);
      },
    );
    giveNodes(asked, ID, dev);
    expect(asked.asked).toBe(2);
    expect(owner(join(dev, 'ublkc3'))).toBe('5001:5002 600');
    expect(owner(join(dev, 'ublkb3'))).toBe('5001:5002 600');
  }
});

rootTest('a number that a device with privileges has meanwhile is given to nobody', () => {
  const dev = devWith('ublkc3', 'ublkb3');
  const asked = driver(
    () => {
      replace(dev, 'ublkc3');
      replace(dev, 'ublkb3');
      return device(4001);
    },
    () => device(0, false),
  );
  giveNodes(asked, ID, dev);
  expect(asked.asked).toBe(2);
  expect(owner(join(dev, 'ublkc3'))).toBe('0:0 660');
  expect(owner(join(dev, 'ublkb3'))).toBe('0:0 660');
});

rootTest('what is no node of a device is not given away', () => {
  const dev = devWith();
  const file = join(dev, 'ublkc3');
  writeFileSync(file, '', { mode: 0o640 });
  makeNode(join(dev, 'other ublkb'));
  symlinkSync('other ublkb', join(dev, 'ublkb3'));
  giveNodes(
    driver(() => device(4001)),
    ID,
    dev,
  );
  expect(owner(file)).toBe('0:0 640');
  expect(owner(join(dev, 'ublkb3'))).toBe('0:0 660');
});
