/** Whatever a user gets wrong ends in its sentence and its exit status, and leaves nothing behind. */

import { expect, test } from 'bun:test';
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { binary } from './processes.ts';
import { Bed, need, testWith } from './support.ts';

interface Row {
  /** What is wrong. */
  title: string;
  /** Makes what the arguments name, in the test's folder, where a good disk.img is. */
  prepare?: (bed: Bed) => void;
  /** Lines of vm.yaml; without them the file is a good one. */
  yaml?: string[];
  /** After `serve vhost`; `--config vm.yaml` where there are none. */
  args?: string[];
  status: 1 | 2;
  /** All that is said, with `{folder}` for the test's folder. */
  says: string[];
  /** Files beside vm.yaml and disk.img that must be there at the end. */
  leaves?: string[];
}

const good = ['path: disk.img', 'socket: vhost.sock'];
const usage = "Try 'ubiblk serve vhost --help'.";
const error = (sentence: string) => `[ERROR serve-vhost] ${sentence}`;
const wrapped = 'vV2t42plNfVPlXSW4gxDf7U5Z0jAKwbh+OWgQqNLz6n+4sMt/PyELccAmGBh1DGw';
const kek = `method: aes256-gcm
key: ERERERERERERERERERERERERERERERERERERERERERE=
init_vector: IiIiIiIiIiIiIiIi
auth_data: dGVzdC1hYWQ=
`;
const writeKek = (bed: Bed) => writeFileSync(bed.path('kek.yaml'), kek, { mode: 0o600 });

const table: Row[] = [
  // Arguments
  {
    title: 'no configuration',
    args: [],
    status: 2,
    says: ["ubiblk serve vhost: option '--config FILE' is required", usage],
  },
  {
    title: 'an unknown option',
    args: ['--confg', 'vm.yaml'],
    status: 2,
    says: ["ubiblk serve vhost: unknown option '--confg'; did you mean '--config'?", usage],
  },
  {
    title: 'an argument too many',
    args: ['-f', 'vm.yaml', 'more'],
    status: 2,
    says: ["ubiblk serve vhost: unexpected argument 'more'", usage],
  },
  {
    title: 'an option without its value',
    args: ['--config'],
    status: 2,
    says: ["ubiblk serve vhost: option '--config' needs a value: FILE", usage],
  },
  {
    title: '--unlink-kek without --kek',
    args: ['-u', '-f', 'vm.yaml'],
    status: 2,
    says: ["ubiblk serve vhost: option '--unlink-kek' needs '--kek FILE'", usage],
  },
  {
    title: 'a log level that there is not',
    args: ['-f', 'vm.yaml', '--log-level', 'trace'],
    status: 2,
    says: [
      "ubiblk serve vhost: --log-level must be one of error, warn, info, debug, not 'trace'",
      usage,
    ],
  },
  {
    title: 'a null disk without a socket',
    args: ['--null', '1G'],
    status: 2,
    says: ["ubiblk serve vhost: option '--socket' is required", usage],
  },
  {
    title: 'a null disk of no size',
    args: ['--null', 'big', '--socket', 'vhost.sock'],
    status: 2,
    says: ["ubiblk serve vhost: --null must be a size such as 512M or 4G, not 'big'", usage],
  },

  // Configuration
  {
    title: 'a configuration file that is not there',
    args: ['-f', 'absent.yaml'],
    status: 1,
    says: [error("cannot read the configuration file 'absent.yaml': ENOENT")],
  },
  {
    title: 'a directory as configuration file',
    prepare: (bed) => mkdirSync(bed.path('directory')),
    args: ['-f', 'directory'],
    status: 1,
    says: [error("cannot read the configuration file 'directory': EISDIR")],
    leaves: ['directory'],
  },
  {
    title: 'several mistakes in one configuration',
    yaml: ['path: disk.img', 'queue_size: 100', 'num_queues: 65', 'cpus: [0, 0]'],
    status: 1,
    says: [
      error('vm.yaml:2:1: queue_size: must be a power of two from 1 to 32768, not 100'),
      error('vm.yaml:3:1: num_queues: must be a whole number from 1 to 64, not 65'),
      error('vm.yaml:4:1: cpus: names CPU 0 twice; each queue needs its own'),
    ],
  },
  {
    title: 'an unknown key, when strict',
    yaml: [...good, 'queue_sise: 128'],
    args: ['-f', 'vm.yaml', '--strict'],
    status: 1,
    says: [error("vm.yaml:3:1: queue_sise: unknown key, did you mean 'queue_size'?")],
  },
  {
    title: 'bad YAML',
    yaml: ['path: "disk.img'],
    status: 1,
    says: [
      error(
        'vm.yaml:2:1: YAML syntax: a character is missing ' +
          '(a quote, a bracket, a comma, a colon or a space)',
      ),
    ],
  },
  {
    title: 'TOML',
    yaml: ['[device]', 'data_path = "disk.img"'],
    status: 1,
    says: [
      error(
        "'vm.yaml' is a TOML file, the newer format of this configuration; this version of ubiblk " +
          'reads YAML only (docs/configuration.md lists the fields)',
      ),
    ],
  },
  {
    title: 'a feature of a later version',
    yaml: [...good, 'status_path: status.json'],
    status: 1,
    says: [
      error(
        'vm.yaml:3:1: status_path: the status file is not in this version of ubiblk yet; ' +
          'remove the field',
      ),
    ],
  },
  {
    title: 'no socket',
    yaml: ['path: disk.img'],
    status: 1,
    says: [
      error(
        "vm.yaml: socket: is required to serve over vhost-user; add 'socket: PATH' or give --socket",
      ),
    ],
  },

  // KEK
  {
    title: 'a KEK file that is not there',
    args: ['-f', 'vm.yaml', '-k', 'absent.kek'],
    status: 1,
    says: [error("cannot read the KEK file 'absent.kek': ENOENT")],
  },
  {
    title: 'a KEK that does not fit',
    prepare: writeKek,
    yaml: [...good, `encryption_key: [${wrapped.replace('v', 'w')}, ${wrapped}]`],
    args: ['-f', 'vm.yaml', '-k', 'kek.yaml', '-u'],
    status: 1,
    says: [
      error(
        'vm.yaml:3:18: encryption_key[0]: cannot be decrypted: it was not wrapped with the KEK of ' +
          "'kek.yaml', or is damaged",
      ),
    ],
    leaves: ['kek.yaml'],
  },
  {
    title: 'a data file that is not there, before the KEK would be deleted',
    prepare: writeKek,
    yaml: ['path: absent.img', 'socket: vhost.sock'],
    args: ['-f', 'vm.yaml', '-k', 'kek.yaml', '-u'],
    status: 1,
    says: [error("'absent.img' does not exist; create the disk's data file first")],
    leaves: ['kek.yaml'],
  },

  // Data file
  {
    title: 'a data file that is not there',
    yaml: ['path: absent.img', 'socket: vhost.sock'],
    status: 1,
    says: [error("'absent.img' does not exist; create the disk's data file first")],
  },
  {
    title: 'a directory as data file',
    prepare: (bed) => mkdirSync(bed.path('directory')),
    yaml: ['path: directory', 'socket: vhost.sock'],
    status: 1,
    says: [error("'directory' is neither a regular file nor a block device")],
    leaves: ['directory'],
  },
  {
    title: 'a character device as data file',
    yaml: ['path: /dev/zero', 'socket: vhost.sock'],
    status: 1,
    says: [error("'/dev/zero' is neither a regular file nor a block device")],
  },
  {
    title: 'a link to nothing as data file',
    prepare: (bed) => symlinkSync('nothing', bed.path('link.img')),
    yaml: ['path: link.img', 'socket: vhost.sock'],
    status: 1,
    says: [error("'link.img' does not exist; create the disk's data file first")],
    leaves: ['link.img'],
  },
  {
    title: 'an empty data file',
    prepare: (bed) => truncateSync(bed.path('disk.img'), 0),
    status: 1,
    says: [error("'disk.img' is empty; give it the disk's size (truncate -s SIZE)")],
  },
  {
    title: 'a data file that is no whole number of sectors',
    prepare: (bed) => truncateSync(bed.path('disk.img'), 1000),
    status: 1,
    says: [
      error("'disk.img' has 1000 bytes, which is not a multiple of 512; grow it to 1024 bytes"),
    ],
  },

  // Socket
  {
    title: 'a folder of the socket that is not there',
    yaml: ['path: disk.img', 'socket: absent/vhost.sock'],
    status: 1,
    says: [
      error("the directory 'absent' of the socket 'absent/vhost.sock' does not exist; create it"),
    ],
  },
  {
    title: 'a folder of the socket that is a file',
    yaml: ['path: disk.img', 'socket: disk.img/vhost.sock'],
    status: 1,
    says: [
      error("'disk.img', where the socket 'disk.img/vhost.sock' should be, is not a directory"),
    ],
  },
  {
    title: 'a file at the socket’s path',
    yaml: ['path: disk.img', 'socket: vm.yaml'],
    status: 1,
    says: [
      error(
        "'vm.yaml' exists and is not a socket; remove it or choose another path for the socket",
      ),
    ],
  },
  {
    title: 'a socket path that is too long',
    args: ['-f', 'vm.yaml', '--socket', 'x'.repeat(108)],
    status: 1,
    says: [
      error(
        `the socket path '${'x'.repeat(108)}' is 108 bytes long; ` +
          'the path of a Unix socket has at most 107',
      ),
    ],
  },
];

for (const check of [false, true]) {
  for (const row of table) {
    const title = `${check ? '--check: ' : ''}${row.title}`;
    test.concurrent(title, async () => {
      await using bed = new Bed();
      writeFileSync(bed.path('disk.img'), '');
      truncateSync(bed.path('disk.img'), 1 << 20);
      row.prepare?.(bed);
      writeFileSync(bed.path('vm.yaml'), `${(row.yaml ?? good).join('\n')}\n`, { mode: 0o600 });
      const args = [...(row.args ?? ['--config', 'vm.yaml'])];
      if (check) {
        args.unshift('--check');
      }
      const child = await bed.run([binary, 'serve', 'vhost', ...args], {
        expect: row.status,
        deadlineMs: 20_000,
      });
      expect(child.stderr.text).toBe(`${row.says.join('\n')}\n`);
      expect(child.stdout.text).toBe('');
      const files = ['disk.img', 'vm.yaml', ...(row.leaves ?? [])];
      expect(readdirSync(bed.folder).sort()).toEqual(files.sort());
    });
  }
}

test('a busy socket is refused, and the server that has it goes on', async () => {
  await using bed = new Bed();
  const first = await bed.serve(bed.disk());
  writeFileSync(bed.path('kek.yaml'), kek, { mode: 0o600 });
  const config = bed.config({ path: bed.disk(), socket: first.socket });
  const sentence = `another process listens on the socket '${first.socket}'; stop it or choose another path`;
  for (const options of [[], ['--check'], ['-k', bed.path('kek.yaml'), '-u']]) {
    const argv = [binary, 'serve', 'vhost', '--config', config, ...options];
    const second = await bed.run(argv, { expect: 1, deadlineMs: 20_000 });
    expect(second.stderr.text).toBe(`${error(sentence)}\n`);
  }
  expect(existsSync(bed.path('kek.yaml'))).toBe(true);
  expect(existsSync(first.socket)).toBe(true);
  await bed.stop(first);
}, 60_000);

test.concurrent('--check of a locked disk says so after waiting, and changes nothing', async () => {
  await using bed = new Bed();
  const disk = bed.disk();
  const first = await bed.serve(disk);
  const config = bed.config({ path: disk, socket: bed.path('other.sock') });
  const second = await bed.run([binary, 'serve', 'vhost', '--config', config, '--check'], {
    expect: 1,
    deadlineMs: 30_000,
  });
  expect(second.stderr.text).toEndWith(
    `${error(`'${disk}' is in use by another process, which holds its lock; stop that one first`)}\n`,
  );
  await bed.stop(first);
}, 60_000);

test('--check of a good configuration prints one line, and leaves no socket and the KEK', async () => {
  await using bed = new Bed();
  const disk = bed.disk({ sizeBytes: 1 << 20 });
  const socket = bed.path('vhost.sock');
  const config = bed.config({ path: disk, socket });
  writeFileSync(bed.path('kek.yaml'), kek, { mode: 0o600 });
  const argv = [binary, 'serve', 'vhost', '--check', '-f', config, '-uk', bed.path('kek.yaml')];
  const child = await bed.run(argv);
  expect(child.stdout.text).toBe(`OK: '${disk}' of 1048576 bytes, to serve at '${socket}'\n`);
  expect(child.stderr.text).toBe('');
  expect(existsSync(socket)).toBe(false);
  expect(existsSync(bed.path('kek.yaml'))).toBe(true);
});

test('--unlink-kek deletes the KEK file before the socket is there', async () => {
  await using bed = new Bed();
  const socket = bed.path('vhost.sock');
  const config = bed.config({ path: bed.disk(), socket });
  writeFileSync(bed.path('kek.yaml'), kek, { mode: 0o600 });
  const argv = [binary, 'serve', 'vhost', '-f', config, '-uk', bed.path('kek.yaml')];
  const child = bed.spawn(argv);
  await bed.listening(child, 10_000);
  expect(existsSync(bed.path('kek.yaml'))).toBe(false);
  await bed.stop({ child, socket, config });
});

test('a socket that a killed server left behind is replaced', async () => {
  await using bed = new Bed();
  const disk = bed.disk();
  const first = await bed.serve(disk);
  await bed.crash(first);
  expect(existsSync(first.socket)).toBe(true);
  const second = await bed.start(first.config, first.socket);
  await bed.stop(second);
});

testWith(
  'without a page that may be locked there is no queue, and the limit is named',
  [need.root(), need.program('setpriv'), need.kernel(6, 14, 'counts the memory of rings')],
  async () => {
    await using bed = new Bed();
    const mayNot = ['setpriv', '--bounding-set=-ipc_lock', '--inh-caps=-ipc_lock'];
    const argv = [...mayNot, 'prlimit', '--memlock=0:0', binary, 'serve', 'vhost'];
    const run = await bed.run([...argv, '--null', '1G', '--socket', bed.path('a')], { expect: 1 });
    const why = 'io_uring found no memory that may be locked (ENOMEM); raise the memlock limit';
    expect(run.stderr.text).toBe(`${error(`${why} (ulimit -l, LimitMEMLOCK=)`)}\n`);
  },
  30_000,
);

const unreadable = 'files without permission are refused to another user';
testWith(
  unreadable,
  [need.root(), need.program('setpriv')],
  async () => {
    await using bed = new Bed();
    chmodSync(bed.folder, 0o755);
    const disk = bed.disk();
    const config = bed.config({ path: disk, socket: bed.path('vhost.sock') });
    const asNobody = ['setpriv', '--reuid=65534', '--regid=65534', '--clear-groups'];
    const argv = [...asNobody, binary, 'serve', 'vhost', '-f', config];

    chmodSync(config, 0o600);
    const noConfig = await bed.run(argv, { expect: 1 });
    expect(noConfig.stderr.text).toBe(
      `${error(`cannot read the configuration file '${config}': EACCES`)}\n`,
    );

    chmodSync(config, 0o644);
    const noSocket = await bed.run(argv, { expect: 1 });
    expect(noSocket.stderr.text).toBe(
      `${error(
        `the socket '${bed.path('vhost.sock')}' cannot be made in its directory ` +
          `'${bed.folder}': EACCES`,
      )}\n`,
    );

    chmodSync(bed.folder, 0o777);
    const noDisk = await bed.run(argv, { expect: 1 });
    expect(noDisk.stderr.text).toBe(`${error(`'${disk}' can't be opened: EACCES`)}\n`);
  },
  20_000,
);

test('commands that there are not end with 2, help and version with 0', async () => {
  await using bed = new Bed();
  const none = await bed.run([binary], { expect: 2 });
  expect(none.stderr.text).toBe("ubiblk: a command is missing\nTry 'ubiblk --help'.\n");
  const unknown = await bed.run([binary, 'serv', 'vhost'], { expect: 2 });
  expect(unknown.stderr.text).toBe(
    "ubiblk: unknown command 'serv vhost'; did you mean 'serve vhost'?\n" +
      "Try 'ubiblk --help'.\n",
  );
  for (const args of [
    ['--help'],
    ['help', 'serve', 'vhost'],
    ['serve', '-h'],
    ['serve', 'vhost', '-h'],
  ]) {
    const help = await bed.run([binary, ...args]);
    expect(help.stdout.text).toContain('Usage:\n  $ ubiblk ');
    expect(help.stderr.text).toBe('');
  }
  const version = await bed.run([binary, '--version']);
  expect(version.stdout.text).toMatch(
    /^ubiblk \d+\.\d+\.\d+\ncommit: \S+\nBun: \S+\ncipher library: \S.+\nliburing: \d+\.\d+\n$/,
  );
  symlinkSync(binary, bed.path('vhost-backend'));
  const linked = await bed.run([bed.path('vhost-backend'), '-V']);
  expect(linked.stdout.text).toStartWith('vhost-user-blk backend ');
});

test('a reader of the help that goes away is no error, a full disk is', async () => {
  await using bed = new Bed();
  await bed.run(['bash', '-c', `set -o pipefail; '${binary}' --help | true`]);
  const full = await bed.run(['bash', '-c', `'${binary}' --help > /dev/full`], { expect: 1 });
  expect(full.stderr.text).toBe('[ERROR ubiblk] cannot write to standard output: ENOSPC\n');
});

test('errors are JSON lines where that is asked for', async () => {
  await using bed = new Bed();
  const argv = [binary, 'serve', 'vhost', '-f', bed.path('absent.yaml'), '--log-format=json'];
  const child = await bed.run(argv, { expect: 1 });
  expect(JSON.parse(child.stderr.text)).toMatchObject({
    level: 'error',
    name: 'serve-vhost',
    msg: `cannot read the configuration file '${bed.path('absent.yaml')}': ENOENT`,
  });
});

test('SIGHUP leaves the server running', async () => {
  await using bed = new Bed();
  const socket = bed.path('vhost.sock');
  const config = bed.config({ path: bed.disk(), socket });
  const child = bed.spawn([binary, 'serve', 'vhost', '-f', config, '--log-level=debug']);
  await bed.listening(child, 10_000);
  child.signal('SIGHUP');
  await child.said(/SIGHUP is ignored/, 10_000, 0, child.stderr);
  await bed.stop({ child, socket, config });
});
