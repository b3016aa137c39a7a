/**
 * What is wrong with the arguments or the configuration of `serve ublk` and `ublk` is said before the
 * kernel is asked for anything, and that there is no driver where there is none.
 */

import { expect, test } from 'bun:test';
import { existsSync, mkdirSync, readdirSync, symlinkSync, writeFileSync } from 'node:fs';
import { release } from 'node:os';
import { binary } from './processes.ts';
import { Bed, testWith } from './support.ts';

interface Row {
  title: string;
  prepare?: (bed: Bed) => void;
  /** Lines of vm.yaml besides the path of the disk. */
  yaml?: string[];
  /** After `serve ublk`. */
  args?: string[];
  status: 1 | 2;
  says: string;
}

const error = (sentence: string) => `[ERROR serve-ublk] ${sentence}\n`;
const usage = (sentence: string) =>
  `ubiblk serve ublk: ${sentence}\nTry 'ubiblk serve ublk --help'.\n`;

const rows: Row[] = [
  {
    title: 'no configuration',
    args: [],
    status: 2,
    says: usage("option '--config FILE' is required"),
  },
  {
    title: 'a socket as an operand',
    args: ['-f', 'vm.yaml', 'more'],
    status: 2,
    says: usage("unexpected argument 'more'"),
  },
  {
    title: 'a time that is none',
    args: ['-f', 'vm.yaml', '--stop-timeout', 'long'],
    status: 2,
    says: usage("--stop-timeout must be a number from 0 to 3600, not 'long'"),
  },
  {
    title: 'a time that is too long',
    args: ['-f', 'vm.yaml', '--stop-timeout=3601'],
    status: 2,
    says: usage("--stop-timeout must be a number from 0 to 3600, not '3601'"),
  },
  {
    title: 'a link without a name',
    args: ['-f', 'vm.yaml', '--device-symlink='],
    status: 2,
    says: usage("option '--device-symlink' needs a path that is not empty"),
  },
  {
    title: 'a link in the place of a folder',
    prepare: (bed) => mkdirSync(bed.path('link')),
    args: ['-f', 'vm.yaml', '--device-symlink', 'link'],
    status: 1,
    says: error("'link' is a directory; remove it or choose another path for the link"),
  },
  {
    title: 'a link in the place of a file',
    prepare: (bed) => writeFileSync(bed.path('link'), ''),
    args: ['-f', 'vm.yaml', '--device-symlink', 'link'],
    status: 1,
    says: error(
      "'link' is a file and no symbolic link; remove it or choose another path for the link",
    ),
  },
  {
    title: 'a link below a file',
    args: ['-f', 'vm.yaml', '--device-symlink', 'vm.yaml/link'],
    status: 1,
    says: error("'vm.yaml/link' can't be a link: ENOTDIR; choose another path"),
  },
  {
    title: 'requests that are no whole pages',
    yaml: ['seg_size_max: 65024'],
    status: 1,
    says: error('vm.yaml: seg_size_max: must be a multiple of 4096 for ublk'),
  },
  {
    title: 'more requests than the driver takes',
    yaml: ['queue_size: 8192'],
    status: 1,
    says: error('vm.yaml: queue_size: must be at most 4096 for ublk'),
  },
  {
    title: 'a device that is to be kept, and cannot be',
    yaml: ['ublk_recovery: off'],
    args: ['-f', 'vm.yaml', '--keep-device'],
    status: 1,
    says: error("vm.yaml: with 'ublk_recovery: off' the device can't be kept; leave it out"),
  },
  {
    title: 'a mode that there is not',
    yaml: ['ublk_mode: fast'],
    status: 1,
    says: error(
      "vm.yaml:2:1: ublk_mode: must be 'zero_copy' or 'copy' or 'user_copy' or 'need_get_data', " +
        "not 'fast'",
    ),
  },
];

for (const { title, prepare, yaml = [], args = ['-f', 'vm.yaml'], status, says } of rows) {
  test(`${title}: ${status}, in one sentence`, async () => {
    await using bed = new Bed();
    const disk = bed.disk({ sizeBytes: 1 << 20 });
    writeFileSync(bed.path('vm.yaml'), ['path: disk0.raw', ...yaml, ''].join('\n'));
    prepare?.(bed);
    const before = readdirSync(bed.folder).sort();
    const child = await bed.run([binary, 'serve', 'ublk', ...args], { expect: status });
    expect(child.stderr.text).toBe(says);
    expect(child.stdout.text).toBe('');
    expect(existsSync(disk)).toBe(true);
    expect(readdirSync(bed.folder).sort()).toEqual(before);
  });
}

const device = (text: string) =>
  `a ublk device is meant by its number or path (3, /dev/ublkb3), not '${text}'`;

test.each([
  [['ublk', 'info'], 'ubiblk ublk info', 'argument DEVICE is missing'],
  [['ublk', 'info', 'sda'], 'ubiblk ublk info', device('sda')],
  [['ublk', 'info', '/dev/ublk3'], 'ubiblk ublk info', device('/dev/ublk3')],
  [['ublk', 'info', '-1'], 'ubiblk ublk info', "unknown option '-1'"],
  [['ublk', 'info', '3', '4'], 'ubiblk ublk info', "unexpected argument '4'"],
  [['ublk', 'del'], 'ubiblk ublk del', "either a device or '--all' is needed"],
  [['ublk', 'del', '3', '--all'], 'ubiblk ublk del', "either a device or '--all' is needed"],
  [['ublk', 'del', ''], 'ubiblk ublk del', device('')],
  [['ublk', 'del', 'loop3'], 'ubiblk ublk del', device('loop3')],
  [['ublk', 'owner'], 'ubiblk ublk owner', 'argument DEVICE is missing'],
  [['ublk', 'list', '3'], 'ubiblk ublk list', "unexpected argument '3'"],
  [['ublk', 'lst'], 'ubiblk', "unknown command 'ublk lst'; did you mean 'ublk list'?"],
  [
    ['ublk'],
    'ubiblk',
    "'ublk' is not a whole command; it begins 'ublk list', 'ublk info', 'ublk del', " +
      "'ublk features', 'ublk owner'",
  ],
])('%j is no command', async (argv, command, sentence) => {
  await using bed = new Bed();
  const child = await bed.run([binary, ...argv], { expect: 2 });
  expect(child.stderr.text).toBe(`${command}: ${sentence}\nTry '${command} --help'.\n`);
});

const driver = existsSync('/dev/ublk-control') && 'this machine has a ublk driver';

testWith(
  'without a driver every command says so',
  [driver],
  async () => {
    await using bed = new Bed();
    bed.disk({ sizeBytes: 1 << 20 });
    writeFileSync(bed.path('vm.yaml'), 'path: disk0.raw\n');
    symlinkSync(binary, bed.path('ublk-backend'));
    const commands = [
      [binary, 'ublk', 'list'],
      [binary, 'ublk', 'list', '--json'],
      [binary, 'ublk', 'info', '/dev/ublkb3p1'],
      [binary, 'ublk', 'del', '3'],
      [binary, 'ublk', 'del', '--all', '--force'],
      [binary, 'ublk', 'features'],
      [binary, 'ublk', 'owner', 'ublkc3'],
      [binary, 'serve', 'ublk', '-f', 'vm.yaml'],
      [binary, 'serve', 'ublk', '-f', 'vm.yaml', '--check'],
      [binary, 'serve', 'ublk', '--null', '1T'],
      [bed.path('ublk-backend'), '-f', 'vm.yaml'],
    ];
    for (const argv of commands) {
      const child = await bed.run(argv, { expect: 1 });
      expect(child.stdout.text).toBe('');
      const [sentence, ...more] = child.stderr.text.trimEnd().split('\n');
      expect(sentence).toMatch(
        /^\[ERROR (serve-ublk|ublk-\w+)\] '\/dev\/ublk-control' is missing: /,
      );
      expect(sentence).toMatch(/'modprobe ublk_drv'$|boot Linux 6\.0 or later, /);
      if (!sentence.includes('modprobe')) expect(sentence).toContain(release());
      expect(more).toEqual([]);
    }
  },
  60_000,
);
