/** Made-up hosts, each with something that is broken. */
import { expect, test } from 'bun:test';
import { type Host, thisHost } from '../../src/doctor/host.ts';
import { checkHost, type HostNeeds } from '../../src/doctor/host_checks.ts';
import { featureBits } from '../../src/frontend/ublk/protocol.ts';

const limits = (memlock: string, files: string) =>
  `Limit                     Soft Limit           Hard Limit           Units
Max open files            ${files}              1048576              files
Max locked memory         ${memlock}            8388608              bytes`;

const goodFiles: Record<string, string> = {
  '/proc/cpuinfo': 'model name\t: Fake 9000\nflags\t\t: fpu sse4_2 aes vaes avx2',
  '/proc/self/limits': limits('unlimited', '65536'),
  '/proc/meminfo':
    'HugePages_Total:       8\nHugePages_Free:        3\nHugepagesize:       2048 kB',
  '/proc/mounts': 'tmpfs /tmp tmpfs rw,nosuid,noexec 0 0',
  '/proc/sys/kernel/io_uring_disabled': '0',
  '/proc/sys/vm/memfd_noexec': '0',
  '/sys/devices/system/cpu/online': '0-3,8',
  '/sys/devices/system/clocksource/clocksource0/current_clocksource': 'tsc',
};

const features = featureBits('USER_COPY', 'USER_RECOVERY', 'SUPPORT_ZERO_COPY');

function host(files: Record<string, string>, more: Partial<Host> = {}): Host {
  const all = { ...goodFiles, ...files };
  return {
    kernel: '6.12.5-amd64',
    isRoot: false,
    env: { PATH: '/bin' },
    read: (path) => all[path] ?? null,
    exists: (path) => path in all,
    library: () => ({ value: { cipher: 'isa-l_crypto 2.25', liburing: '2.3' } }),
    ring: () => ({ value: 'defer' }),
    ublk: () => ({ value: features }),
    ...more,
  };
}

const needs: HostNeeds = { syncEngine: false, encrypted: false, numQueues: 2 };

/** What isn't well: `LEVEL CHECK: MESSAGE. FIX` of each. */
function troubles(made: Host, more: Partial<HostNeeds> = {}): string[] {
  const findings = checkHost(made, { ...needs, ...more });
  for (const { level, fix, message } of findings) {
    expect(message).not.toBe('');
    if (level !== 'ok') expect(fix).toMatch(/^[A-Z].+\.$/);
  }
  return findings
    .filter(({ level }) => level !== 'ok')
    .map(({ level, check, message, fix }) => `${level} ${check}: ${message}. ${fix}`);
}

test('a host that has everything has no trouble, and is told of line by line', () => {
  expect(troubles(host({}))).toEqual([]);
  const findings = checkHost(host({}), needs);
  const texts = Object.fromEntries(findings.map(({ check, message }) => [check, message]));
  expect(texts).toMatchObject({
    kernel: 'Linux 6.12.5-amd64',
    library: 'liburing 2.3, cipher library isa-l_crypto 2.25',
    processors: '5 online for 2 queues',
    'huge pages': '3 of 8 of 2048 KiB are free',
    '/tmp': 'mounted noexec, which is no obstacle',
  });
});

test.each<[string, Record<string, string>, Partial<Host>, Partial<HostNeeds>, RegExp]>([
  ['an old kernel', {}, { kernel: '5.10.0-28-amd64' }, {}, /^fail kernel: .*too old/],
  ['a kernel that loses data', {}, { kernel: '6.1.64' }, {}, /^fail kernel: .*ext4.*6\.1\.66/],
  [
    "the same one by Debian's name",
    { '/proc/version': 'Linux version 6.1.0-14-amd64 (x) #1 SMP Debian 6.1.64-1 (2023-11-30)' },
    { kernel: '6.1.0-14-amd64' },
    {},
    /^fail kernel: Linux 6\.1\.0-14-amd64 \(6\.1\.64\) .*ext4/,
  ],
  [
    'a kernel that crashes in its driver',
    {},
    { kernel: '6.17.0-1017-aws' },
    {},
    /^warn ublk: Linux 6\.17\.0-1017-aws crashes .*another kernel/,
  ],
  [
    'one that is too old for the driver',
    {},
    { kernel: '5.15.0', ublk: () => ({ error: 'ENOENT' }) },
    {},
    /^warn ublk: .*Use Linux 6\.0/,
  ],
  [
    'io_uring that may lock no memory',
    {},
    { ring: () => ({ error: 'io_uring found no memory that may be locked (ENOMEM); raise it' }) },
    {},
    /^fail io_uring: .*ENOMEM\)\. Raise the limit/,
  ],
  ['a kernel that tells nothing', {}, { kernel: 'custom' }, {}, /^warn kernel: .*unknown age/],
  [
    'io_uring that is switched off',
    { '/proc/sys/kernel/io_uring_disabled': '2' },
    { ring: () => ({ error: 'io_uring_setup failed with EPERM' }) },
    {},
    /^fail io_uring: .*EPERM.*disabled is 2.*sysctl/,
  ],
  [
    'io_uring that a container forbids',
    {},
    { ring: () => ({ error: 'io_uring_setup failed with EPERM' }) },
    {},
    /^fail io_uring: .*seccomp.*io_engine: sync/,
  ],
  [
    'the same for a disk that needs none',
    {},
    { ring: () => ({ error: 'EPERM' }) },
    { syncEngine: true },
    /^warn io_uring/,
  ],
  ['an older io_uring', {}, { ring: () => ({ value: 'plain' }) }, {}, /^warn io_uring: .*'plain'/],
  ['no ublk driver', {}, { ublk: () => ({ error: 'ENOENT' }) }, {}, /^warn ublk: .*modprobe/],
  ['no permission for it', {}, { ublk: () => ({ error: 'EACCES' }) }, {}, /^warn ublk: .*root/],
  ['nor this one', {}, { ublk: () => ({ error: 'EPERM' }) }, {}, /^warn ublk: .*Run as root/],
  ['one that can not tell', {}, { ublk: () => ({ value: null }) }, {}, /^warn ublk: .*too old/],
  [
    'one that lacks something',
    {},
    { ublk: () => ({ value: featureBits('USER_COPY', 'USER_RECOVERY') }) },
    {},
    /^warn ublk: .*without support_zero_copy/,
  ],
  [
    'memory files that may not be executed',
    { '/proc/sys/vm/memfd_noexec': '2' },
    {},
    {},
    /^fail library: .*sysctl vm\.memfd_noexec=1/,
  ],
  [
    'a C library that is too old',
    {},
    { library: () => ({ error: "version `GLIBC_2.34' not found" }) },
    {},
    /^fail library: .*GLIBC_2\.34/,
  ],
  [
    'a processor without SSE4.2',
    { '/proc/cpuinfo': 'model name : Old\nflags : fpu' },
    {},
    {},
    /^fail processor: Old, without SSE4\.2/,
  ],
  [
    'no AES instructions for keys',
    { '/proc/cpuinfo': 'model name : Old\nflags : fpu sse4_2' },
    {},
    { encrypted: true },
    /^warn processor: Old, without AES/,
  ],
  [
    'a slow clock',
    { '/sys/devices/system/clocksource/clocksource0/current_clocksource': 'hpet' },
    {},
    {},
    /^warn clock: 'hpet'/,
  ],
  [
    'more queues than processors',
    { '/sys/devices/system/cpu/online': '0' },
    {},
    {},
    /^warn processors: 1 online for 2 queues/,
  ],
  [
    'little memory that may be locked',
    { '/proc/self/limits': limits('8388608', '65536') },
    {},
    { encrypted: true },
    /^warn memlock: only 8192 KiB of memory.*keys may be swapped.*LimitMEMLOCK/,
  ],
  [
    'few open files',
    { '/proc/self/limits': limits('unlimited', '1024') },
    {},
    {},
    /^warn open files: only 1024/,
  ],
  [
    'huge pages that are all taken',
    { '/proc/meminfo': 'HugePages_Total:   8\nHugePages_Free:    0\nHugepagesize:    2048 kB' },
    {},
    {},
    /^warn huge pages: all 8 of 2048 KiB/,
  ],
  [
    'a variable',
    {},
    { env: { BUN_OPTIONS: '--smol' } },
    {},
    /^warn environment: BUN_OPTIONS is set/,
  ],
])('%s', (_, files, more, moreNeeds, expected) => {
  const found = troubles(host(files, more), moreNeeds);
  expect(found.length).toBe(1);
  expect(found[0]).toMatch(expected);
});

test('versions of kernels are compared by number', () => {
  const debian = 'Linux version 6.1.0-15-amd64 (x) #1 SMP Debian 6.1.66-1 (2023-12-09)';
  expect(troubles(host({ '/proc/version': debian }, { kernel: '6.1.0-15-amd64' }))).toEqual([]);
  for (const kernel of [
    '5.15.0',
    '6.1.66',
    '6.1.63',
    '6.2.99',
    '6.10.1',
    '6.3.10',
    '7.2',
    '10.0.1',
  ]) {
    expect(troubles(host({}, { kernel }))).toEqual([]);
  }
});

test('nothing needs to be known', () => {
  const blind = host({}, { read: () => null, isRoot: true });
  expect(troubles(blind, { numQueues: 1 })).toEqual([
    'fail processor: of unknown kind, without SSE4.2. Use a processor, or CPU model, that has it.',
  ]);
});

test('this host is looked at', () => {
  const findings = checkHost(thisHost, needs);
  const levels = new Map(findings.map(({ check, level }) => [check, level]));
  for (const check of ['kernel', 'library', 'processor']) expect(levels.get(check)).toBe('ok');
  expect(levels.size).toBeGreaterThan(10);
});
