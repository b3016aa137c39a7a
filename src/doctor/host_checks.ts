/** Whether a host can run disks, and run them well. */
import { isKnownBad } from '../frontend/ublk/control.ts';
import { F, type Feature, hasFeature } from '../frontend/ublk/protocol.ts';
import { type Finding, fail, ok, warn } from './finding.ts';
import type { Host } from './host.ts';

export interface HostNeeds {
  /** The disk is to be served with system calls alone. */
  syncEngine: boolean;
  /** It is encrypted. */
  encrypted: boolean;
  numQueues: number;
}

const OLDEST_KERNEL = [5, 15, 0];

/**
 * Kernels that lose or damage data, from the first version to the one that is right again;
 * docs/doctor.md has the sources.
 */
const BAD_KERNELS = [
  {
    from: [6, 1, 64],
    fixed: [6, 1, 66],
    what: 'writes files on ext4 at wrong places with direct I/O',
  },
] as const;
/** The first with the ublk driver. */
const UBLK_KERNEL = [6, 0, 0];

const MEBIBYTE = 1 << 20;
const LEAST_FILES = 4096;
const LEAST_MEMLOCK = 64 * MEBIBYTE;
/** What serve ublk gains most from. */
const USEFUL_FEATURES: readonly Feature[] = ['USER_COPY', 'USER_RECOVERY', 'SUPPORT_ZERO_COPY'];

/** @returns a finding for each thing that was looked at */
export function checkHost(host: Host, needs: HostNeeds): Finding[] {
  const library = checkLibrary(host);
  const base = [checkKernel(host), library];
  // Nothing else can be tried without it.
  if (library.level !== 'fail') base.push(checkRing(host, needs), checkUblk(host));
  return [
    ...base,
    checkProcessor(host, needs),
    checkClock(host),
    checkQueues(host, needs),
    checkMemlock(host, needs),
    checkFiles(host),
    checkHugePages(host),
    checkTemporaryFolder(host),
    ...checkEnvironment(host),
  ];
}

/** Three numbers; null where a text doesn't begin with them. */
function versionOf(text: string): number[] | null {
  const match = /^(\d+)\.(\d+)(?:\.(\d+))?/.exec(text);
  return match?.slice(1).map((n) => Number(n ?? 0)) ?? null;
}

function checkKernel(host: Host): Finding {
  const check = 'kernel';
  const { kernel } = host;
  // Debian calls all of a release 6.1.0, and has the version that one was made of at another place.
  const debian = / Debian (\d+\.\d+\.\d+)/.exec(host.read('/proc/version') ?? '')?.[1];
  const version = versionOf(debian ?? kernel);
  if (!version) return warn(check, `Linux '${kernel}' of unknown age`, 'See docs/building.md.');
  if (compare(version, OLDEST_KERNEL) < 0) {
    return fail(check, `Linux ${kernel} is too old`, 'Use Linux 5.15 or newer.');
  }
  const bad = BAD_KERNELS.find(
    ({ from, fixed }) => compare(version, from) >= 0 && compare(version, fixed) < 0,
  );
  const shown = debian === undefined ? kernel : `${kernel} (${debian})`;
  if (bad) {
    const remedy = `Use Linux ${bad.fixed.join('.')} or newer.`;
    return fail(check, `Linux ${shown} ${bad.what}`, remedy);
  }
  return ok(check, `Linux ${shown}`);
}

function compare(a: readonly number[], b: readonly number[]): number {
  for (let i = 0; i < b.length; i++) if (a[i] !== b[i]) return a[i] - b[i];
  return 0;
}

function checkLibrary(host: Host): Finding {
  const check = 'library';
  if (host.read('/proc/sys/vm/memfd_noexec') === '2') {
    return fail(
      check,
      'memory files may not be executed here (vm.memfd_noexec is 2)',
      'Run sysctl vm.memfd_noexec=1.',
    );
  }
  const library = host.library();
  if ('error' in library) {
    return fail(check, `the shim can't be opened: ${library.error}`, 'Use glibc 2.34 or newer.');
  }
  const { cipher, liburing } = library.value;
  return ok(check, `liburing ${liburing}, cipher library ${cipher}`);
}

function checkRing(host: Host, { syncEngine }: HostNeeds): Finding {
  const check = 'io_uring';
  const ring = host.ring();
  if ('error' in ring) {
    const level = syncEngine ? warn : fail;
    if (ring.error.includes('ENOMEM')) {
      const remedy = 'Raise the limit: LimitMEMLOCK=infinity in the unit, or ulimit -l.';
      return level(
        check,
        `it can't be used: it finds no memory that may be locked (ENOMEM)`,
        remedy,
      );
    }
    const disabled = host.read('/proc/sys/kernel/io_uring_disabled') ?? '0';
    const remedy =
      disabled === '0'
        ? "Allow it in the container's seccomp profile, or set 'io_engine: sync'."
        : "Run sysctl kernel.io_uring_disabled=0, or set 'io_engine: sync'.";
    const why = disabled === '0' ? '' : ` (kernel.io_uring_disabled is ${disabled})`;
    return level(check, `it can't be used: ${ring.error}${why}`, remedy);
  }
  if (ring.value === 'defer') return ok(check, 'all of it can be used');
  return warn(
    check,
    `only its '${ring.value}' set-up can be used, which is slower`,
    'Use Linux 6.1 or newer.',
  );
}

function checkUblk(host: Host): Finding {
  const check = 'ublk';
  const { kernel } = host;
  if (isKnownBad(kernel)) {
    return warn(
      check,
      `Linux ${kernel} crashes in its ublk driver while 'serve ublk' makes a device`,
      'Boot another kernel before. vhost needs no ublk.',
    );
  }
  const ublk = host.ublk();
  if ('error' in ublk) {
    return warn(
      check,
      `'serve ublk' can't be used: ${ublk.error}`,
      `${ublkRemedy(kernel, ublk.error)} vhost needs no ublk.`,
    );
  }
  if (ublk.value === null) {
    return warn(check, 'the driver is too old to say what it can do', 'Use Linux 6.5 or newer.');
  }
  const bits = ublk.value;
  const names = Object.keys(F) as Feature[];
  const count = names.filter((name) => hasFeature(bits, name)).length;
  const missing = USEFUL_FEATURES.filter((name) => !hasFeature(bits, name));
  const message = `${count} of ${names.length} features`;
  if (missing.length === 0) return ok(check, message);
  const lacking = missing.join(', ').toLowerCase();
  return warn(check, `${message}, without ${lacking}`, 'Use Linux 6.16 or newer for all of them.');
}

function ublkRemedy(kernel: string, error: string): string {
  if (error === 'EACCES' || error === 'EPERM') {
    return 'Run as root, or see docs/serve-ublk.md for unprivileged devices.';
  }
  const version = versionOf(kernel);
  if (version && compare(version, UBLK_KERNEL) < 0) {
    return 'Use Linux 6.0 or newer: this one has no ublk driver.';
  }
  return "Run modprobe ublk_drv; Debian 12's own kernel is built without it, that of its backports has it.";
}

function checkProcessor(host: Host, { encrypted }: HostNeeds): Finding {
  const check = 'processor';
  const info = host.read('/proc/cpuinfo') ?? '';
  const flags = new Set(/^flags\s*:\s*(.*)$/m.exec(info)?.[1].split(' ') ?? []);
  const model = /^model name\s*:\s*(.*)$/m.exec(info)?.[1] ?? 'of unknown kind';
  if (!flags.has('sse4_2')) {
    return fail(check, `${model}, without SSE4.2`, 'Use a processor, or CPU model, that has it.');
  }
  if (!flags.has('aes')) {
    const level = encrypted ? warn : ok;
    return level(check, `${model}, without AES instructions`, 'Encrypt on one that has them.');
  }
  const wide = flags.has('vaes')
    ? 'with AES instructions on wide vectors'
    : 'with AES instructions';
  return ok(check, `${model}, ${wide}`);
}

function checkClock(host: Host): Finding {
  const check = 'clock';
  const folder = '/sys/devices/system/clocksource/clocksource0';
  const source = host.read(`${folder}/current_clocksource`);
  if (source === null) return ok(check, 'of unknown kind');
  if (/^(tsc|kvm-clock|hyperv_clocksource_tsc_page)$/.test(source)) return ok(check, source);
  return warn(
    check,
    `'${source}' takes a system call for each look, which each batch of requests has`,
    `Choose 'tsc', if '${folder}/available_clocksource' has it.`,
  );
}

function checkQueues(host: Host, { numQueues }: HostNeeds): Finding {
  const check = 'processors';
  const online = countOf(host.read('/sys/devices/system/cpu/online') ?? '0');
  const message = `${online} online for ${numQueues} ${numQueues === 1 ? 'queue' : 'queues'}`;
  if (numQueues <= online) return ok(check, message);
  return warn(check, message, "Lower 'num_queues': queues share processors.");
}

/** How many numbers a list such as `0-3,8` has. */
function countOf(list: string): number {
  return list.split(',').reduce((count, part) => {
    const [first, last = first] = part.split('-').map(Number);
    return count + last - first + 1;
  }, 0);
}

/** A process's limit: the one that applies now; null where it can't be told. */
function limitOf(host: Host, name: string): number | null {
  const line = new RegExp(`^${name}\\s+(\\S+)`, 'm').exec(host.read('/proc/self/limits') ?? '');
  if (!line) return null;
  return line[1] === 'unlimited' ? Number.POSITIVE_INFINITY : Number(line[1]);
}

function checkMemlock(host: Host, { encrypted }: HostNeeds): Finding {
  const check = 'memlock';
  const limit = limitOf(host, 'Max locked memory');
  if (limit === null) return ok(check, 'no limit is known');
  if (host.isRoot) return ok(check, 'root may lock any memory');
  const amount = limit === Number.POSITIVE_INFINITY ? 'any' : `${Math.floor(limit / 1024)} KiB of`;
  if (limit >= LEAST_MEMLOCK) return ok(check, `${amount} memory may be locked`);
  const what = encrypted ? 'keys may be swapped out, and ' : '';
  return warn(
    check,
    `only ${amount} memory may be locked: ${what}direct I/O pins pages for each request`,
    'Raise the limit: LimitMEMLOCK=infinity in the unit, or ulimit -l.',
  );
}

function checkFiles(host: Host): Finding {
  const check = 'open files';
  const limit = limitOf(host, 'Max open files');
  if (limit === null) return ok(check, 'no limit is known');
  if (limit >= LEAST_FILES) return ok(check, `${limit} may be open`);
  return warn(
    check,
    `only ${limit} may be open`,
    `Raise the limit to ${LEAST_FILES}: LimitNOFILE= in the unit, or ulimit -n.`,
  );
}

function checkHugePages(host: Host): Finding {
  const check = 'huge pages';
  const info = host.read('/proc/meminfo') ?? '';
  const number = (name: string) =>
    Number(new RegExp(`^${name}:\\s+(\\d+)`, 'm').exec(info)?.[1] ?? 0);
  const total = number('HugePages_Total');
  const sizeKib = number('Hugepagesize');
  if (total === 0) return ok(check, 'none are set aside: guests have ordinary memory');
  const free = number('HugePages_Free');
  if (free > 0) return ok(check, `${free} of ${total} of ${sizeKib} KiB are free`);
  return warn(
    check,
    `all ${total} of ${sizeKib} KiB are in use`,
    'Set more aside (sysctl vm.nr_hugepages) before a guest that needs them starts.',
  );
}

function checkTemporaryFolder(host: Host): Finding {
  const mount = (host.read('/proc/mounts') ?? '').split('\n').find((line) => / \/tmp /.test(line));
  const noexec = mount?.split(' ')[3]?.split(',').includes('noexec') ?? false;
  return ok('/tmp', noexec ? 'mounted noexec, which is no obstacle' : 'not used');
}

const OUR_VARIABLES: readonly [name: string, fix: string][] = [
  ['BUN_OPTIONS', 'Unset it: the executable obeys it before anything else.'],
  ['BUN_BE_BUN', 'Unset it: the executable obeys it before anything else.'],
  ['UBIBLK_IO_URING_SETUP', 'Unset it: it is for tests.'],
];

function checkEnvironment({ env }: Host): Finding[] {
  const found = OUR_VARIABLES.filter(([name]) => env[name] !== undefined && env[name] !== '');
  if (found.length === 0) return [ok('environment', 'nothing in it changes the executable')];
  return found.map(([name, fix]) => warn('environment', `${name} is set`, fix));
}
