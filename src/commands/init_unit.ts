/** The systemd unit of a device folder. */
import { dirname, join } from 'node:path';
import { type InitPlan, names } from './init_plan.ts';

/** Where the service finds its KEK; `%d` is the folder of its credentials. */
const CREDENTIAL = 'kek';

/** `ubiblk-vm7.service` */
export function unitName({ name }: InitPlan): string {
  return `ubiblk-${name.replace(/[^A-Za-z0-9:_.-]/g, '_')}.service`;
}

/**
 * The text of a service that serves the disk, and may touch nothing else.
 * @param executable the absolute path of ubiblk
 */
export function unitText(plan: InitPlan, executable: string): string {
  const { folder, base = '', frontend, kek, settings } = plan;
  const config = join(folder, names.config);
  const command = [argument(executable), 'serve', frontend, '--config', argument(config)];
  if (kek !== undefined) command.push('--kek', `%d/${CREDENTIAL}`);
  const writable = [folder, dirname(String(settings.socket ?? folder))];
  const lines = [
    '[Unit]',
    `Description=ubiblk disk ${specifiers(plan.name)}`,
    `RequiresMountsFor=${word(folder)}`,
    '',
    '[Service]',
    'Type=notify',
    `ExecStart=${command.join(' ')}`,
    ...(kek === undefined ? [] : [`LoadCredential=${CREDENTIAL}:${specifiers(kek)}`]),
    'Restart=on-failure',
    '# The runtime in the executable would obey them.',
    'UnsetEnvironment=BUN_OPTIONS BUN_BE_BUN',
    '# Memory of guests, of rings and of keys is locked.',
    'LimitMEMLOCK=infinity',
    'UMask=0077',
    'NoNewPrivileges=yes',
    'ProtectSystem=strict',
    `ReadWritePaths=${[...new Set(writable)].map(word).join(' ')}`,
    ...([...writable, base, executable].some(isTemporary) ? [] : ['PrivateTmp=yes']),
    'ProtectControlGroups=yes',
    'ProtectKernelLogs=yes',
    'ProtectKernelModules=yes',
    'RestrictAddressFamilies=AF_UNIX',
    'RestrictRealtime=yes',
    'RestrictSUIDSGID=yes',
    'LockPersonality=yes',
    ...(frontend === 'vhost' ? ['PrivateDevices=yes', 'ProtectKernelTunables=yes'] : []),
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

/** Whether a service with folders of its own for what is temporary would not see it. */
function isTemporary(path: string): boolean {
  return /^\/(var\/)?tmp(\/|$)/.test(path);
}

function specifiers(text: string): string {
  return text.replaceAll('%', '%%');
}
