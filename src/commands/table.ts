import { type Log, type LogLevel, logFormats, logLevels } from '../log.ts';
import type { Arguments } from './arguments.ts';

export interface OptionSpec {
  /** The long name without dashes. */
  long: string;
  /** One letter. */
  short?: string;
  /** What the value is called in help (`FILE`); an option without it takes no value. */
  value?: string;
  /** It may be given more than once. */
  repeatable?: boolean;
  /** The values that there are. */
  choices?: readonly string[];
  summary: string;
}

/** A name of the reference system's under which the executable may be linked. */
export interface ProgramName {
  name: string;
  /** What its `--version` begins with. */
  displayName: string;
}

export interface CommandModule {
  /**
   * Runs the command.
   * @param program the name of the reference system's that it was called by, if it was
   * @returns the exit status
   * @throws UserError or UsageError
   */
  run(args: Arguments, log: Log, program?: ProgramName): Promise<number>;
}

export interface CommandSpec {
  /** One or two words: `serve vhost`. */
  name: string;
  summary: string;
  /** The first word alone, where it stands for this command when options follow. */
  short?: string;
  programs: readonly ProgramName[];
  options: readonly OptionSpec[];
  /** What must follow the options, as help calls it; in brackets what need not, with `...` any number. */
  operands?: readonly string[];
  /** The words that an operand can be, by its name. */
  operandChoices?: Readonly<Record<string, readonly string[]>>;
  examples: readonly string[];
  /** Daemons report what they do (`info`); other commands only what is doubtful (`warn`). */
  defaultLogLevel: LogLevel;
  /** The command's page in the source tree. */
  docs: string;
  /** The module is loaded only when the command runs, so that the others start quickly. */
  load(): Promise<CommandModule>;
}

/** What every command takes, and the executable itself. */
export const helpOptions: readonly OptionSpec[] = [
  { long: 'help', short: 'h', summary: 'Show this help' },
  { long: 'version', short: 'V', summary: 'Show the version and what is built in' },
];

/** What every command takes besides its own options. */
export const commonOptions: readonly OptionSpec[] = [
  {
    long: 'log-level',
    value: 'LEVEL',
    choices: logLevels,
    summary: 'error, warn, info or debug (env UBIBLK_LOG)',
  },
  {
    long: 'log-format',
    value: 'FORMAT',
    choices: logFormats,
    summary: 'human (default) or json, one line per entry',
  },
  ...helpOptions,
];

/** What servers of this version answer (docs/rpc.md). */
const rpcCommands = [
  ...['version', 'status', 'queues', 'stats', 'flush', 'pause_autofetch', 'resume_autofetch'],
  ...['retry_failed', 'shutdown'],
];

const deviceConfigOptions: readonly OptionSpec[] = [
  { long: 'config', short: 'f', value: 'FILE', summary: 'Device configuration (YAML)' },
  { long: 'kek', short: 'k', value: 'FILE', summary: 'KEK file that decrypts its secrets' },
  {
    long: 'unlink-kek',
    short: 'u',
    summary: 'Delete the KEK file when all is checked, before serving',
  },
  { long: 'strict', summary: 'Refuse unknown keys instead of warning' },
  { long: 'allow-weak-key', summary: 'Accept an encryption key whose halves are equal' },
];

const nullOption: OptionSpec = {
  long: 'null',
  value: 'SIZE',
  summary: 'Serve SIZE (512M, 1T) of nothing, for benchmarks; needs no --config',
};

const nbdOption: OptionSpec = {
  long: 'nbd',
  value: 'URI',
  summary: 'Serve an export (nbd://host/name) as it is; needs no --config',
};

const metadataOptions: readonly OptionSpec[] = deviceConfigOptions.map((option) =>
  option.long === 'unlink-kek'
    ? { ...option, summary: 'Delete the KEK file when all is done' }
    : option,
);

const jsonOption: OptionSpec = { long: 'json', summary: 'Print one JSON object instead of lines' };

const targetOption: OptionSpec = {
  long: 'target-config',
  value: 'FILE',
  summary: 'Where the archive is (YAML)',
};

/** Of commands that take an archive and no disk. */
const targetOptions: readonly OptionSpec[] = [
  targetOption,
  ...metadataOptions.filter(({ long }) => ['kek', 'unlink-kek', 'strict'].includes(long)),
];

/** Of commands that may take hours. */
const longOptions: readonly OptionSpec[] = [
  jsonOption,
  { long: 'quiet', short: 'q', summary: 'Show no progress and no summary' },
];

export const commands: readonly CommandSpec[] = [
  {
    name: 'serve vhost',
    summary: 'Serve a disk to a virtual machine over vhost-user-blk',
    programs: [{ name: 'vhost-backend', displayName: 'vhost-user-blk backend' }],
    options: [
      ...deviceConfigOptions,
      {
        long: 'socket',
        value: 'PATH',
        summary: "Listen here instead of at the configuration's 'socket'",
      },
      { long: 'check', summary: 'Open and verify everything, print one line, and exit' },
      nullOption,
      nbdOption,
    ],
    examples: [
      'ubiblk serve vhost --config vm.yaml',
      'ubiblk serve vhost --config vm.yaml --check',
      'ubiblk serve vhost --null 1T --socket /tmp/null.sock',
    ],
    defaultLogLevel: 'info',
    docs: 'docs/serve-vhost.md',
    load: () => import('./serve_vhost.ts'),
  },
  {
    name: 'serve ublk',
    summary: 'Serve a disk to this host as a block device, /dev/ublkbN',
    programs: [{ name: 'ublk-backend', displayName: 'ublk backend' }],
    options: [
      ...deviceConfigOptions,
      {
        long: 'device-symlink',
        value: 'PATH',
        summary: 'Make a link to the device here while it is served',
      },
      {
        long: 'stop-timeout',
        value: 'S',
        summary: 'How long to wait at the end for whoever uses the device (10)',
      },
      {
        long: 'keep-device',
        summary: 'Leave the device to the next server when told to end, as SIGUSR2 does',
      },
      { long: 'unprivileged', summary: 'Make a device that this user may use without being root' },
      { long: 'check', summary: 'Open and verify everything, print one line, and exit' },
      nullOption,
      nbdOption,
    ],
    examples: [
      'ubiblk serve ublk --config data.yaml',
      'ubiblk serve ublk --config data.yaml --device-symlink /dev/disk/by-ubiblk/data',
    ],
    defaultLogLevel: 'info',
    docs: 'docs/serve-ublk.md',
    load: () => import('./serve_ublk.ts'),
  },
  {
    name: 'serve nbd',
    summary: 'Serve a disk to NBD clients: nbdcopy, qemu-img, guestfish, the kernel',
    programs: [],
    options: [
      ...deviceConfigOptions,
      {
        long: 'listen',
        value: 'WHERE',
        summary: 'unix:PATH or HOST:PORT; else the socket that systemd has passed',
      },
      { long: 'export', value: 'NAME', summary: 'Name of the export, besides the empty one' },
      { long: 'read-only', summary: 'Let clients write nothing' },
      {
        long: 'tls-psk',
        value: 'FILE',
        summary: 'Ask for TLS with the pre-shared key in FILE (USER:HEX, by psktool)',
      },
      {
        long: 'run',
        value: 'COMMAND',
        summary: 'Run a shell command with $uri set, and end with it',
      },
      { long: 'check', summary: 'Open and verify everything, print one line, and exit' },
      nullOption,
      nbdOption,
    ],
    examples: [
      'ubiblk serve nbd --config vm.yaml --listen unix:/run/vm7/nbd.sock',
      'ubiblk serve nbd --config vm.yaml --read-only --run \'nbdcopy "$uri" disk.raw\'',
      'ubiblk serve nbd --config vm.yaml --listen 10.0.0.7:10809 --tls-psk keys.psk',
    ],
    defaultLogLevel: 'info',
    docs: 'docs/nbd.md',
    load: () => import('./serve_nbd.ts'),
  },
  {
    name: 'serve stripes',
    summary: "Give a disk's stripes to other hosts, whose disks fill themselves from it",
    programs: [{ name: 'remote-stripe-server', displayName: 'remote stripe server' }],
    options: [
      ...deviceConfigOptions,
      { long: 'listen-config', value: 'FILE', summary: 'Where to listen, and the PSK (YAML)' },
    ],
    examples: ['ubiblk serve stripes --config vm.yaml --listen-config listen.yaml'],
    defaultLogLevel: 'info',
    docs: 'docs/remote-stripes.md',
    load: () => import('./serve_stripes.ts'),
  },
  {
    name: 'shell',
    summary: 'Look at what a stripe server has',
    programs: [{ name: 'remote-stripe-shell', displayName: 'remote stripe shell' }],
    options: [
      { long: 'server-config', value: 'FILE', summary: 'The server, and the PSK (YAML)' },
      { long: 'kek', short: 'k', value: 'FILE', summary: 'KEK file that decrypts its secrets' },
      { long: 'unlink-kek', short: 'u', summary: 'Delete the KEK file when connected' },
      { long: 'strict', summary: 'Refuse unknown keys instead of warning' },
    ],
    examples: [
      'ubiblk shell --server-config server.yaml',
      "echo 'stripe_header 0' | ubiblk shell --server-config server.yaml",
    ],
    defaultLogLevel: 'warn',
    docs: 'docs/remote-stripes.md',
    load: () => import('./shell.ts'),
  },
  {
    name: 'init',
    summary: 'Make a folder with a new disk, ready to be served',
    programs: [],
    options: [
      { long: 'size', value: 'SIZE', summary: 'Of the disk, as 10G; asked for on a terminal' },
      { long: 'base', value: 'IMAGE', summary: 'Raw image that the disk starts from' },
      { long: 'encrypt', summary: 'Encrypt the disk, with new keys that a new KEK wraps' },
      { long: 'kek', value: 'FILE', summary: 'Where the KEK goes (kek.yaml in the folder)' },
      {
        long: 'frontend',
        value: 'NAME',
        choices: ['vhost', 'ublk', 'nbd'],
        summary: 'What will serve it: vhost (default), ublk or nbd',
      },
      {
        long: 'socket',
        value: 'PATH',
        summary: 'Where it listens (vhost.sock or nbd.sock in the folder)',
      },
      { long: 'device-id', value: 'ID', summary: 'Serial number that guests see (ubiblk)' },
      { long: 'stripe-size', value: 'SIZE', summary: 'Of its stripes, 32K to 32M (1M)' },
      { long: 'copy-on-read', summary: 'What is read of the image becomes local' },
      { long: 'autofetch', summary: 'Fetch all of the image in the background' },
      { long: 'track-written', summary: 'Record which stripes are written to' },
      { long: 'num-queues', value: 'N', summary: 'Queues, 1 to 64 (1)' },
      { long: 'queue-size', value: 'N', summary: 'Largest queue, a power of two (64)' },
      { long: 'seg-size-max', value: 'N', summary: 'Largest segment in bytes' },
      { long: 'seg-count-max', value: 'N', summary: 'Segments of a request, 1 to 256 (128)' },
      { long: 'poll-timeout-us', value: 'N', summary: 'How long queues poll (1000)' },
      {
        long: 'io-engine',
        value: 'NAME',
        choices: ['io_uring', 'sync'],
        summary: 'io_uring (default) or sync',
      },
      { long: 'write-through', summary: 'Make each write durable before it is answered' },
      { long: 'force', summary: 'Replace what is there, and forget all that it holds' },
      jsonOption,
    ],
    operands: ['[DIR]'],
    examples: [
      'ubiblk init /srv/vm7 --size 10G',
      'ubiblk init /srv/vm7 --size 10G --base debian.raw --encrypt --autofetch',
      'ubiblk init',
    ],
    defaultLogLevel: 'warn',
    docs: 'docs/init.md',
    load: () => import('./init.ts'),
  },
  {
    name: 'probe',
    summary: 'Use a served disk as a virtual machine would: look, copy, verify, check, measure',
    programs: [{ name: 'vhost-frontend', displayName: 'vhost-user-blk frontend' }],
    options: [
      { long: 'socket', short: 's', value: 'PATH', summary: "The server's vhost-user socket" },
      {
        long: 'stage',
        value: 'STAGE',
        choices: ['setup', 'config', 'memory', 'virtqueue', 'copy', 'verify', 'check', 'bench'],
        summary: 'How far: setup, config, memory, virtqueue, copy, verify, check, bench',
      },
      { long: 'output', short: 'o', value: 'FILE', summary: 'Copy the disk into this file' },
      { long: 'verify', value: 'FILE', summary: 'Compare the disk with this file' },
      {
        long: 'write',
        summary: 'Overwrite the start of the disk (--size bytes); else nothing is written',
      },
      {
        long: 'size',
        value: 'SIZE',
        summary: 'How much of the disk to use, from its start (64M; copies: all)',
      },
      { long: 'depth', value: 'N', summary: 'Requests in flight on each queue, 1 to 256 (32)' },
      { long: 'queues', value: 'N', summary: 'Queues in use, 1 to 64 (1)' },
      { long: 'huge-pages', summary: 'Use memory of huge pages, as virtual machines may' },
      { long: 'seconds', value: 'S', summary: 'How long each measurement takes (2)' },
      { long: 'timeout', value: 'S', summary: 'How long to wait for any one answer (10)' },
      jsonOption,
    ],
    examples: [
      'ubiblk probe --socket /run/vm7/vhost.sock',
      'ubiblk probe --socket /run/vm7/vhost.sock --stage config',
      'ubiblk probe --socket /run/vm7/vhost.sock --output copy.raw',
      'ubiblk probe --socket /tmp/test.sock --write --size 1G --depth 64 --queues 2',
    ],
    defaultLogLevel: 'warn',
    docs: 'docs/probe.md',
    load: () => import('./probe.ts'),
  },
  {
    name: 'replay',
    summary: 'Do again on a disk what an I/O log has recorded, and compare what was read',
    programs: [{ name: 'replay-log', displayName: 'replay-log' }],
    options: [
      { long: 'log', short: 'l', value: 'FILE', summary: 'The log (io_debug_path of a server)' },
      { long: 'disk', short: 'd', value: 'FILE', summary: 'The disk: plain, as it was at first' },
      { long: 'dry-run', summary: 'Leave the disk as it is; writes are only remembered' },
      jsonOption,
    ],
    examples: [
      'ubiblk replay --log io.log --disk copy.raw',
      'ubiblk replay --log io.log --disk disk.raw --dry-run',
    ],
    defaultLogLevel: 'warn',
    docs: 'docs/replay.md',
    load: () => import('./replay.ts'),
  },
  {
    name: 'ublk list',
    summary: "Show this host's ublk devices, and those that nobody serves any more",
    programs: [],
    options: [{ long: 'json', summary: 'Print one JSON array instead of lines' }],
    examples: ['ubiblk ublk list'],
    defaultLogLevel: 'warn',
    docs: 'docs/ublk.md',
    load: () => import('./ublk_list.ts'),
  },
  {
    name: 'ublk info',
    summary: 'Show all that is known of one ublk device',
    programs: [],
    options: [{ long: 'json', summary: 'Print one JSON object instead of lines' }],
    operands: ['DEVICE'],
    examples: ['ubiblk ublk info 0', 'ubiblk ublk info /dev/ublkb0 --json'],
    defaultLogLevel: 'warn',
    docs: 'docs/ublk.md',
    load: () => import('./ublk_info.ts'),
  },
  {
    name: 'ublk del',
    summary: 'Remove a ublk device, or all that ubiblk has made',
    programs: [],
    options: [
      { long: 'all', summary: 'Remove every device that ubiblk has made' },
      { long: 'force', summary: 'Remove also what is mounted or open' },
    ],
    operands: ['[DEVICE]'],
    examples: ['ubiblk ublk del 3', 'ubiblk ublk del --all'],
    defaultLogLevel: 'warn',
    docs: 'docs/ublk.md',
    load: () => import('./ublk_del.ts'),
  },
  {
    name: 'ublk features',
    summary: "Show what this kernel's ublk driver can do",
    programs: [],
    options: [{ long: 'json', summary: 'Print one JSON object instead of lines' }],
    examples: ['ubiblk ublk features'],
    defaultLogLevel: 'warn',
    docs: 'docs/ublk.md',
    load: () => import('./ublk_features.ts'),
  },
  {
    name: 'ublk owner',
    summary: 'Print the user and group of a ublk device',
    programs: [],
    options: [
      { long: 'apply', summary: 'Give its nodes to them, if it is an unprivileged device' },
    ],
    operands: ['DEVICE'],
    examples: ['ubiblk ublk owner ublkb3'],
    defaultLogLevel: 'warn',
    docs: 'docs/ublk.md',
    load: () => import('./ublk_owner.ts'),
  },
  {
    name: 'rpc',
    summary: 'Ask a running server what it does, or have it do something',
    programs: [],
    options: [
      { long: 'json', summary: "Print the server's answer, one line of JSON" },
      { long: 'timeout', value: 'S', summary: 'How long to wait for the answer (10)' },
    ],
    operands: ['SOCKET', 'COMMAND'],
    operandChoices: { COMMAND: rpcCommands },
    examples: ['ubiblk rpc /run/vm7/rpc.sock status', 'ubiblk rpc /run/vm7/rpc.sock queues --json'],
    defaultLogLevel: 'warn',
    docs: 'docs/rpc.md',
    load: () => import('./rpc.ts'),
  },
  {
    name: 'top',
    summary: 'Watch one or many running disks: rates, latencies, stripes, failures',
    programs: [{ name: 'ubitop', displayName: 'ubitop' }],
    options: [
      {
        long: 'socket',
        value: 'PATH',
        repeatable: true,
        summary: "A server's rpc_socket_path; may be given more than once",
      },
      { long: 'interval', value: 'S', summary: 'Seconds between two looks, 0.1 to 3600 (1)' },
      { long: 'once', summary: 'Look twice, print what happened in between, and end' },
      { long: 'json', summary: 'Print one JSON object for each look, in place of the picture' },
      { long: 'plain', summary: 'Print lines, also on a terminal' },
    ],
    operands: ['[PATH...]'],
    examples: [
      'ubiblk top --socket /run/vm7/rpc.sock',
      'ubiblk top --socket /run/*/rpc.sock',
      'ubiblk top --socket /run/vm7/rpc.sock --once --json',
    ],
    defaultLogLevel: 'warn',
    docs: 'docs/top.md',
    load: () => import('./top.ts'),
  },
  {
    name: 'doctor',
    summary: 'Find out whether this host, and a disk of a configuration, can be served well',
    programs: [],
    options: [
      ...deviceConfigOptions.filter(({ long }) => long !== 'unlink-kek'),
      { long: 'json', summary: 'Print one JSON object instead of lines' },
    ],
    examples: ['ubiblk doctor', 'ubiblk doctor --config vm.yaml --json'],
    defaultLogLevel: 'error',
    docs: 'docs/doctor.md',
    load: () => import('./doctor.ts'),
  },
  {
    name: 'metadata init',
    summary: "Make the file that says which of a disk's stripes are where",
    programs: [{ name: 'init-metadata', displayName: 'vhost-user-blk metadata init' }],
    options: [
      ...metadataOptions,
      {
        long: 'stripe-sector-count-shift',
        short: 's',
        value: 'N',
        summary: 'Stripes of 2^N sectors of 512 bytes, 6 to 16 (11: 1 MiB)',
      },
      { long: 'format', value: 'N', summary: 'Version of the format: 1 (default) or 2, with CRCs' },
      { long: 'force', summary: 'Overwrite what the file holds' },
    ],
    examples: [
      'ubiblk metadata init --config vm.yaml',
      'ubiblk metadata init --config vm.yaml --format 2 -s 13',
    ],
    defaultLogLevel: 'warn',
    docs: 'docs/metadata.md',
    load: () => import('./metadata_init.ts'),
  },
  {
    name: 'metadata dump',
    summary: "Show which of a disk's stripes are fetched, written, and in its source",
    programs: [{ name: 'dump-metadata', displayName: 'dump-metadata' }],
    options: [
      ...metadataOptions,
      { long: 'json', summary: 'Print one JSON object instead of lines' },
      { long: 'map', summary: 'Draw a picture of the stripes, as large as the terminal' },
    ],
    examples: [
      'ubiblk metadata dump --config vm.yaml',
      'ubiblk metadata dump --config vm.yaml --map',
    ],
    defaultLogLevel: 'warn',
    docs: 'docs/metadata.md',
    load: () => import('./metadata_dump.ts'),
  },
  {
    name: 'archive create',
    short: 'archive',
    summary: 'Make an archive of a disk: deduplicated, compressed, encrypted, in a folder or in S3',
    programs: [{ name: 'archive', displayName: 'archive' }],
    options: [
      ...metadataOptions,
      targetOption,
      { long: 'encrypt', short: 'e', summary: 'Encrypt its objects, with keys made for this run' },
      { long: 'compress', short: 'c', summary: 'Compress: Snappy, or zstd with --format 2' },
      {
        long: 'compression',
        value: 'METHOD',
        choices: ['none', 'snappy', 'zstd'],
        summary: 'none (default), snappy, or zstd (format 2)',
      },
      { long: 'zstd-level', value: 'N', summary: 'How hard zstd tries, 1 to 22 (3)' },
      {
        long: 'format',
        value: 'N',
        summary: 'Format: 1 (default), or 2: authenticated, with zstd',
      },
      { long: 'force', summary: 'Replace the archive that is there' },
      { long: 'resume', summary: 'Go on with an interrupted run, with its keys' },
      { long: 'live', summary: 'Archive a disk that is being served (no server allows it yet)' },
      { long: 'allow-plaintext-keys', summary: 'Do not warn of keys that no archive_kek wraps' },
      { long: 'stats', value: 'FILE', summary: 'Write sizes to this file (JSON)' },
      ...longOptions,
    ],
    examples: [
      'ubiblk archive --config vm.yaml --target-config images.yaml --compress',
      'ubiblk archive --config vm.yaml --target-config s3.yaml --format 2 --compression zstd --encrypt',
    ],
    defaultLogLevel: 'warn',
    docs: 'docs/archives.md',
    load: () => import('./archive_create.ts'),
  },
  {
    name: 'archive export',
    summary: "Write an archive's disk into a file, with holes where it is zeroes",
    programs: [{ name: 'export-archive', displayName: 'export-archive' }],
    options: [
      ...targetOptions,
      { long: 'force', summary: 'Replace the file that is there' },
      ...longOptions,
    ],
    operands: ['IMAGE'],
    examples: ['ubiblk archive export --target-config images.yaml disk.raw'],
    defaultLogLevel: 'warn',
    docs: 'docs/archives.md',
    load: () => import('./archive_export.ts'),
  },
  {
    name: 'archive verify',
    summary: 'Fetch every object of an archive and check it',
    programs: [],
    options: [...targetOptions, ...longOptions],
    examples: ['ubiblk archive verify --target-config images.yaml'],
    defaultLogLevel: 'warn',
    docs: 'docs/archives.md',
    load: () => import('./archive_verify.ts'),
  },
  {
    name: 'archive list',
    summary: 'Show what an archive holds, and how well it is deduplicated and compressed',
    programs: [],
    options: [...targetOptions, jsonOption],
    examples: ['ubiblk archive list --target-config images.yaml --json'],
    defaultLogLevel: 'warn',
    docs: 'docs/archives.md',
    load: () => import('./archive_list.ts'),
  },
  {
    name: 'archive gc',
    summary: 'Show, or delete, objects that an archive does not need any more',
    programs: [],
    options: [
      ...targetOptions,
      { long: 'delete', summary: 'Delete them; else they are only counted' },
      { long: 'abandon', summary: 'Delete also what an interrupted run has left' },
      jsonOption,
    ],
    examples: [
      'ubiblk archive gc --target-config images.yaml',
      'ubiblk archive gc --target-config images.yaml --delete',
    ],
    defaultLogLevel: 'warn',
    docs: 'docs/archives.md',
    load: () => import('./archive_gc.ts'),
  },
  {
    name: 'copy',
    summary: 'Copy between files, devices, NBD exports and disks, holes and all',
    programs: [],
    options: [
      ...metadataOptions.filter(({ long }) => ['kek', 'strict', 'allow-weak-key'].includes(long)),
      { long: 'force', summary: 'Replace the file that is there' },
      {
        long: 'target-is-zero',
        summary: 'The target reads as zeroes: write none (new files do in any case)',
      },
      ...longOptions,
    ],
    operands: ['SOURCE', 'TARGET'],
    examples: [
      'ubiblk copy nbd://images.example/debian disk.raw',
      'ubiblk copy vm7.yaml backup.raw',
      'ubiblk copy disk.raw nbd+unix:///?socket=/run/vm7/nbd.sock',
      'ubiblk copy vm7.yaml - | zstd > vm7.raw.zst',
    ],
    defaultLogLevel: 'warn',
    docs: 'docs/copy.md',
    load: () => import('./copy.ts'),
  },
  {
    name: 'keys generate',
    summary: 'Make the two keys of an encrypted disk',
    programs: [],
    options: [
      { long: 'kek', short: 'k', value: 'FILE', summary: 'KEK file that wraps them' },
      { long: 'json', summary: 'Print one JSON object instead of YAML' },
    ],
    examples: ['ubiblk keys generate --kek vm7.kek >> vm7.yaml'],
    defaultLogLevel: 'warn',
    docs: 'docs/keys.md',
    load: () => import('./keys_generate.ts'),
  },
  {
    name: 'keys kek',
    summary: "Make the key-encryption key that wraps a disk's keys",
    programs: [],
    options: [
      { long: 'output', value: 'FILE', summary: 'Make this file instead of printing the KEK' },
      { long: 'force', summary: 'Replace the file where it is there' },
      { long: 'auth-data', value: 'TEXT', summary: 'Additional authenticated data (ubiblk)' },
    ],
    examples: ['ubiblk keys kek --output vm7.kek'],
    defaultLogLevel: 'warn',
    docs: 'docs/keys.md',
    load: () => import('./keys_kek.ts'),
  },
  {
    name: 'xts',
    summary: 'Decrypt or encrypt the sectors of a disk, from a file or stream to another',
    programs: [{ name: 'xts', displayName: 'xts' }],
    options: [
      ...deviceConfigOptions.filter(({ long }) => long !== 'unlink-kek'),
      {
        long: 'action',
        value: 'ACTION',
        choices: ['decode', 'encode'],
        summary: 'decode (default) or encode',
      },
      { long: 'start', value: 'N', summary: 'Number of the first sector of 512 bytes (0)' },
      { long: 'len', value: 'N', summary: "How many sectors (to INPUT's end)" },
      {
        long: 'packed',
        summary: 'Write the first sector at the start of OUTPUT (default for decode)',
      },
      {
        long: 'keep-offsets',
        summary: 'Write each sector where it was in INPUT (default for encode)',
      },
    ],
    operands: ['INPUT', 'OUTPUT'],
    examples: [
      'ubiblk xts --config vm.yaml disk.img plain.img',
      'ubiblk xts --config vm.yaml --action encode plain.img disk.img',
      'ubiblk xts --config vm.yaml --start 2048 --len 8 disk.img - | xxd',
    ],
    defaultLogLevel: 'warn',
    docs: 'docs/xts.md',
    load: () => import('./xts.ts'),
  },
  {
    name: 'completion',
    summary: 'Print what completes the command line in a shell',
    programs: [],
    options: [],
    operands: ['SHELL'],
    operandChoices: { SHELL: ['bash', 'zsh', 'fish'] },
    examples: ['source <(ubiblk completion bash)'],
    defaultLogLevel: 'warn',
    docs: 'docs/completion.md',
    load: () => import('./completion.ts'),
  },
];
