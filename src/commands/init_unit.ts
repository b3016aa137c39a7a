/** The systemd unit of a device folder. */
import { existsSync, realpathSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { type Frontend, type InitPlan, names } from './init_plan.ts';

/** Where the service finds its KEK; `%d` is the folder of its credentials. */
const CREDENTIAL = 'kek';

const hardening = [
  'UMask=0077',
  'NoNewPrivileges=yes',
  'ProtectSystem=strict',
  'ProtectHostname=yes',
  'ProtectClock=yes',
  'ProtectKernelTunables=yes',
  'ProtectKernelModules=yes',
  'ProtectKernelLogs=yes',
  'ProtectControlGroups=yes',
  'RestrictAddressFamilies=AF_UNIX',
  'RestrictNamespaces=yes',
  'RestrictRealtime=yes',
  'RestrictSUIDSGID=yes',
  'LockPersonality=yes',
  'SystemCallArchitectures=native',
  'SystemCallErrorNumber=EPERM',
  'SystemCallFilter=@system-service',
  'SystemCallFilter=~@privileged @keyring',
];

/** Files of other users, memory that is locked; for ublk its driver, and who else uses the device. */
const alone = ['CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_IPC_LOCK', 'PrivateDevices=yes'];
const forFrontend: Readonly<Record<Frontend, readonly string[]>> = {
  vhost: alone,
  nbd: alone,
  ublk: [
    'CapabilityBoundingSet=CAP_DAC_OVERRIDE CAP_IPC_LOCK CAP_SYS_ADMIN CAP_SYS_PTRACE CAP_SYS_RESOURCE',
    '# What is noted of all devices, for "ubiblk ublk list".',
    'RuntimeDirectory=ubiblk',
    'RuntimeDirectoryPreserve=yes',
  ],
};

/** `ubiblk-vm7.service` */
export function unitName({ name }: InitPlan): string {
  return `ubiblk-${name.replace(/[^A-Za-z0-9:_.-]/g, '_')}.service`;
}

/**
 * The text of a service that serves the disk, and may touch nothing else.
 * @param executable the absolute path of ubiblk
 */
export function unitText(plan: InitPlan, executable: string): string {
  const { folder, base = '', frontend, socket, kek } = plan;
  const config = join(folder, names.config);
  const command = [argument(executable), 'serve', frontend, '--config', argument(config)];
  if (frontend === 'nbd') command.push('--listen', argument(`unix:${socket}`));
  if (kek !== undefined) command.push('--kek', `%d/${CREDENTIAL}`);
  const writable = socket === undefined ? [folder] : [folder, dirname(socket)];
  const used = [...writable, base, executable].map(withoutLinks);
  const lines = [
    '[Unit]',
    `Description=ubiblk disk ${specifiers(plan.name)}`,
    `RequiresMountsFor=${word(folder)}`,
    "# A disk that is away for a while comes back without anybody's help.",
    'StartLimitIntervalSec=0',
    '',
    '[Service]',
    'Type=notify',
    'WatchdogSec=60',
    `ExecStart=${command.join(' ')}`,
    ...(kek === undefined ? [] : [`LoadCredential=${CREDENTIAL}:${specifiers(kek)}`]),
    'Restart=on-failure',
    'RestartSec=1',
    '# The runtime in the executable would obey them.',
    'UnsetEnvironment=BUN_OPTIONS BUN_BE_BUN',
    '# Memory of guests, of rings and of keys is locked; no core shows it.',
    'LimitMEMLOCK=infinity',
    'LimitCORE=0',
    'OOMScoreAdjust=-900',
    '',
    '# What it may do. Its compiler needs memory that is written and run.',
    `ReadWritePaths=${[...new Set(writable)].map(word).join(' ')}`,
    ...hardening,
    ...(used.some((path) => isBelow(path, '/tmp', '/var/tmp')) ? [] : ['PrivateTmp=yes']),
    ...(used.some((path) => isBelow(path, '/home', '/root', '/run/user'))
      ? []
      : ['ProtectHome=yes']),
    ...forFrontend[frontend],
    '',
    '[Install]',
    'WantedBy=multi-user.target',
    '',
  ];
  return lines.join('\n');
}

/** A path as one word of a unit file (systemd.syntax(7)). */
function word(path: string): string {
  const escaped = specifiers(path);
  return /^[\w@%+=:,./$-]+$/.test(escaped) ? escaped : `"${escaped}"`;
}

/** The same in a command line, which knows variables (systemd.service(5), COMMAND LINES). */
function argument(path: string): string {
  return word(path).replaceAll('$', '$$$$');
}

function isBelow(path: string, ...folders: string[]): boolean {
  return folders.some((folder) => path === folder || path.startsWith(`${folder}/`));
}

/** Of what is there. */
function withoutLinks(path: string): string {
  return existsSync(path) ? realpathSync(path) : path;
}

function specifiers(text: string): string {
  return text.replaceAll('%', '%%');
}
