/** Which features of the driver a device is made with, and what is refused. */
import { expect, test } from 'bun:test';
import type { UblkMode, UblkRecovery } from '../../src/config/device_config.ts';
import {
  bestMode,
  deviceFlags,
  modeIsOffered,
  modeOf,
  recoveryIsOffered,
  recoveryOf,
  refuseImpossibleMode,
  refuseMissingFeatures,
} from '../../src/frontend/ublk/modes.ts';
import type { UblkOptions } from '../../src/frontend/ublk/options.ts';
import { type Feature, featureBits, featureNames } from '../../src/frontend/ublk/protocol.ts';
import { diskFacts } from '../vhost/fake_guest.ts';

const linux6_12 = featureBits(
  'SUPPORT_ZERO_COPY',
  'NEED_GET_DATA',
  'USER_RECOVERY',
  'USER_RECOVERY_REISSUE',
  'UNPRIVILEGED_DEV',
  'CMD_IOCTL_ENCODE',
  'USER_COPY',
);
const linux7 = linux6_12 | featureBits('USER_RECOVERY_FAIL_IO', 'AUTO_BUF_REG', 'QUIESCE');

const plain = { facts: diskFacts({ fd: 3 }), lazy: false };
const encrypted = { facts: diskFacts({ fd: 3, xts: 1 }), lazy: false };
const lazy = { facts: diskFacts({ fd: 3 }), lazy: true };
const nothing = { facts: diskFacts({ fd: -1 }), lazy: false };
const choice = { ioEngine: 'io_uring', unprivileged: false } as const;

function options(more: Partial<UblkOptions> = {}): UblkOptions {
  return {
    deviceId: 'disk',
    numQueues: 1,
    queueSize: 64,
    maxIoBytes: 1 << 20,
    mode: 'copy',
    recovery: 'reissue',
    unprivileged: false,
    ioEngine: 'io_uring',
    stripeBytes: 0,
    ...more,
  };
}

test.each([
  ['a plain disk', plain, choice, linux7, 'zero_copy'],
  ['a plain disk, where buffers must be registered by hand', plain, choice, linux6_12, 'copy'],
  ['a plain disk, where the driver cannot say what it can do', plain, choice, null, 'copy'],
  ['an encrypted disk', encrypted, choice, linux7, 'copy'],
  ['a lazy disk', lazy, choice, linux7, 'copy'],
  ['a disk of nothing', nothing, choice, linux7, 'copy'],
  ['I/O by system calls', plain, { ...choice, ioEngine: 'sync' as const }, linux7, 'copy'],
  ["a user's device", plain, { ...choice, unprivileged: true }, linux7, 'copy'],
])('the best mode for %s', (_, disk, more, features, mode) => {
  expect(bestMode(disk, more, features)).toBe(mode as UblkMode);
});

test.each([
  ['zero_copy', encrypted, choice, /^ublk_mode zero_copy can't be used with an encrypted disk; /],
  ['zero_copy', lazy, choice, /^ublk_mode zero_copy can't be used with a disk that has metadata; /],
  ['zero_copy', nothing, choice, /^ublk_mode zero_copy needs a disk with a data file; /],
  ['zero_copy', plain, { ...choice, ioEngine: 'sync' as const }, /needs 'io_engine: io_uring'; /],
  ['zero_copy', plain, { ...choice, unprivileged: true }, /users without privileges; /],
  ['user_copy', plain, { ...choice, unprivileged: true }, /users without privileges; /],
] as const)('%s is refused where it is impossible (%#)', (mode, disk, more, sentence) => {
  expect(() => refuseImpossibleMode(mode, disk, more)).toThrow(sentence);
  expect(() => refuseImpossibleMode(mode, disk, more)).toThrow(/choose 'copy'$/);
});

test('every other mode is possible', () => {
  refuseImpossibleMode('zero_copy', plain, choice);
  for (const disk of [plain, encrypted, lazy, nothing]) {
    for (const mode of ['copy', 'user_copy', 'need_get_data'] as const) {
      refuseImpossibleMode(mode, disk, choice);
      refuseImpossibleMode(mode, disk, { ...choice, ioEngine: 'sync' });
    }
    refuseImpossibleMode('copy', disk, { ...choice, unprivileged: true });
    refuseImpossibleMode('need_get_data', disk, { ...choice, unprivileged: true });
  }
});

const modes = ['zero_copy', 'copy', 'user_copy', 'need_get_data'] as const;
const recoveries = ['reissue', 'requeue', 'fail', 'off'] as const;

test.each([
  ['Linux 7', linux7, [...modes], [...recoveries]],
  ['Linux 6.12', linux6_12, modes.slice(1), ['reissue', 'requeue', 'off']],
  ["a driver that can't say", null, ['copy', 'need_get_data'], ['off']],
])('what %s offers', (_, features, offered, after) => {
  expect(modes.filter((mode) => modeIsOffered(mode, features))).toEqual(offered as UblkMode[]);
  expect(recoveries.filter((way) => recoveryIsOffered(way, features))).toEqual(
    after as UblkRecovery[],
  );
});

const modeFlags: Record<UblkMode, Feature[]> = {
  zero_copy: ['SUPPORT_ZERO_COPY', 'AUTO_BUF_REG'],
  copy: [],
  user_copy: ['USER_COPY'],
  need_get_data: ['NEED_GET_DATA'],
};
const recoveryFlags: Record<UblkRecovery, Feature[]> = {
  reissue: ['USER_RECOVERY', 'USER_RECOVERY_REISSUE'],
  requeue: ['USER_RECOVERY'],
  fail: ['USER_RECOVERY', 'USER_RECOVERY_FAIL_IO'],
  off: [],
};

test('a device has the flags of its mode and recovery, which tell them again later', () => {
  for (const mode of modes) {
    for (const recovery of recoveries) {
      const wanted = options({ mode, recovery });
      const exactly = featureBits(...modeFlags[mode], ...recoveryFlags[recovery]);
      expect(deviceFlags(wanted, linux6_12)).toBe(exactly);
      expect(deviceFlags(wanted, null)).toBe(exactly);
      const quiesce = recovery === 'off' ? 0n : featureBits('QUIESCE');
      const made = deviceFlags(wanted, linux7);
      expect(made).toBe(exactly | quiesce);
      // The kernel adds what it always does.
      const shown = made | featureBits('CMD_IOCTL_ENCODE', 'URING_CMD_COMP_IN_TASK');
      expect([modeOf(shown), recoveryOf(shown)]).toEqual([mode, recovery]);
    }
  }
  const owned = deviceFlags(options({ unprivileged: true, recovery: 'off' }), linux7);
  expect(featureNames(owned)).toEqual(['unprivileged_dev']);
});

test.each([
  [
    options({ mode: 'zero_copy' }),
    "this kernel's ublk driver lacks auto_buf_reg, which 'ublk_mode: zero_copy' asks for " +
      '(Linux 6.16 or later)',
  ],
  [
    options({ recovery: 'fail' }),
    "this kernel's ublk driver lacks user_recovery_fail_io, which 'ublk_recovery: fail' asks for " +
      '(Linux 6.13 or later)',
  ],
  [
    options({ mode: 'zero_copy', recovery: 'fail' }),
    "this kernel's ublk driver lacks auto_buf_reg, user_recovery_fail_io, which 'ublk_mode: " +
      "zero_copy' and 'ublk_recovery: fail' asks for (Linux 6.16 or later)",
  ],
])('what Linux 6.12 lacks is named with what asked for it (%#)', (asked, sentence) => {
  expect(() => refuseMissingFeatures(asked, linux6_12)).toThrow(sentence);
  refuseMissingFeatures(asked, linux7);
  // What it can do is seen when the device is made.
  refuseMissingFeatures(asked, null);
});

test("a user's device needs a driver that has them", () => {
  const asked = options({ unprivileged: true, recovery: 'off' });
  expect(() => refuseMissingFeatures(asked, featureBits('NEED_GET_DATA'))).toThrow(
    "lacks unprivileged_dev, which '--unprivileged' asks for (Linux 6.3 or later)",
  );
});
