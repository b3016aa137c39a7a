/** Which of the driver's features a device is made with. */
import type { UblkMode, UblkRecovery } from '../../config/device_config.ts';
import type { DiskFacts } from '../../device/disk.ts';
import { UserError } from '../../errors.ts';
import type { UblkOptions } from './options.ts';
import { type Feature, featureBits, hasFeature } from './protocol.ts';

const MODE_FEATURES: Record<UblkMode, readonly Feature[]> = {
  zero_copy: ['SUPPORT_ZERO_COPY', 'AUTO_BUF_REG'],
  copy: [],
  user_copy: ['USER_COPY'],
  need_get_data: ['NEED_GET_DATA'],
};

const RECOVERY_FEATURES: Record<UblkRecovery, readonly Feature[]> = {
  reissue: ['USER_RECOVERY', 'USER_RECOVERY_REISSUE'],
  requeue: ['USER_RECOVERY'],
  fail: ['USER_RECOVERY', 'USER_RECOVERY_FAIL_IO'],
  off: [],
};

/** The minor release of Linux 6 that a feature came with. */
const SINCE: Partial<Record<Feature, number>> = {
  NEED_GET_DATA: 0,
  USER_RECOVERY: 1,
  USER_RECOVERY_REISSUE: 1,
  UNPRIVILEGED_DEV: 3,
  USER_COPY: 5,
  USER_RECOVERY_FAIL_IO: 13,
  SUPPORT_ZERO_COPY: 15,
  AUTO_BUF_REG: 16,
};

/** What a mode has to suit. */
export interface ModeDisk {
  facts: DiskFacts;
  lazy: boolean;
  /** What is read and written is to be recorded, and has to be in memory. */
  recorded?: boolean;
}

/** The mode for a disk where the user has not chosen one. */
export function bestMode(
  disk: ModeDisk,
  options: Pick<UblkOptions, 'ioEngine' | 'unprivileged'>,
  features: bigint | null,
): UblkMode {
  const untouched = disk.facts.fd >= 0 && disk.facts.xts === 0 && !disk.lazy && !disk.recorded;
  const may = !options.unprivileged && options.ioEngine === 'io_uring';
  return untouched && may && modeIsOffered('zero_copy', features) ? 'zero_copy' : 'copy';
}

/** What becomes of requests where the user has not said: nothing is lost, where that can be had. */
export function bestRecovery(
  disk: { facts: DiskFacts },
  options: Pick<UblkOptions, 'unprivileged'>,
  features: bigint | null,
): UblkRecovery {
  const may = disk.facts.fd >= 0 && !options.unprivileged;
  return may && recoveryIsOffered('reissue', features) ? 'reissue' : 'off';
}

/** @throws UserError */
export function refuseImpossibleRecovery(
  recovery: UblkRecovery,
  { unprivileged }: Pick<UblkOptions, 'unprivileged'>,
): void {
  if (recovery === 'off' || !unprivileged) return;
  throw new UserError(
    `ublk_recovery ${recovery} is not for devices of users without privileges; leave it out`,
  );
}

/**
 * Refuses a mode that a disk or its settings don't allow.
 * @throws UserError
 */
export function refuseImpossibleMode(
  mode: UblkMode,
  disk: ModeDisk,
  options: Pick<UblkOptions, 'ioEngine' | 'unprivileged'>,
): void {
  const refuse = (why: string) => {
    throw new UserError(`ublk_mode ${mode} ${why}; leave ublk_mode out, or choose 'copy'`);
  };
  if (options.unprivileged && (mode === 'zero_copy' || mode === 'user_copy')) {
    refuse('is not for devices of users without privileges');
  }
  if (disk.recorded && (mode === 'zero_copy' || mode === 'user_copy')) {
    refuse("can't be used with io_debug_path");
  }
  if (mode !== 'zero_copy') return;
  if (disk.facts.fd < 0) refuse('needs a disk with a data file');
  if (disk.facts.xts !== 0) refuse("can't be used with an encrypted disk");
  if (disk.lazy) refuse("can't be used with a disk that has metadata");
  if (options.ioEngine === 'sync') refuse("needs 'io_engine: io_uring'");
}

/** Whether a driver has what a mode needs; one that can't say is taken to have the oldest alone. */
export function modeIsOffered(mode: UblkMode, features: bigint | null): boolean {
  return MODE_FEATURES[mode].every((f) =>
    features === null ? SINCE[f] === 0 : hasFeature(features, f),
  );
}

export function recoveryIsOffered(recovery: UblkRecovery, features: bigint | null): boolean {
  return RECOVERY_FEATURES[recovery].every((f) => features !== null && hasFeature(features, f));
}

function wanted({ mode = 'copy', recovery, unprivileged }: UblkOptions): Feature[] {
  const owner: Feature[] = unprivileged ? ['UNPRIVILEGED_DEV'] : [];
  return [...MODE_FEATURES[mode], ...RECOVERY_FEATURES[recovery], ...owner];
}

/** Flags of a new device: what was asked for, and what makes leaving it to a successor exact. */
export function deviceFlags(options: UblkOptions, features: bigint | null): bigint {
  const flags = featureBits(...wanted(options));
  const quiesces =
    options.recovery !== 'off' && features !== null && hasFeature(features, 'QUIESCE');
  return quiesces ? flags | featureBits('QUIESCE') : flags;
}

/**
 * @param offered what the driver can do; null: it can't say
 * @throws UserError where it lacks something that was asked for
 */
export function refuseMissingFeatures(options: UblkOptions, offered: bigint | null): void {
  if (offered === null) return;
  const missing = wanted(options).filter((feature) => !hasFeature(offered, feature));
  if (missing.length === 0) return;
  const since = Math.max(...missing.map((feature) => SINCE[feature] ?? 0));
  const names = missing.map((feature) => feature.toLowerCase()).join(', ');
  const { mode, recovery } = options;
  const lacks = (features: readonly Feature[]) => features.some((f) => missing.includes(f));
  const settings = [
    mode && lacks(MODE_FEATURES[mode]) && `ublk_mode: ${mode}`,
    lacks(RECOVERY_FEATURES[recovery]) && `ublk_recovery: ${recovery}`,
    lacks(['UNPRIVILEGED_DEV']) && '--unprivileged',
  ].filter(Boolean);
  throw new UserError(
    `this kernel's ublk driver lacks ${names}, which '${settings.join("' and '")}' asks for ` +
      `(Linux 6.${since} or later)`,
  );
}

/** How a device that exists moves data. */
export function modeOf(flags: bigint): UblkMode {
  if (hasFeature(flags, 'SUPPORT_ZERO_COPY')) return 'zero_copy';
  if (hasFeature(flags, 'USER_COPY')) return 'user_copy';
  return hasFeature(flags, 'NEED_GET_DATA') ? 'need_get_data' : 'copy';
}

/** What becomes of a device's requests when its server dies. */
export function recoveryOf(flags: bigint): UblkRecovery {
  if (!hasFeature(flags, 'USER_RECOVERY')) return 'off';
  if (hasFeature(flags, 'USER_RECOVERY_REISSUE')) return 'reissue';
  return hasFeature(flags, 'USER_RECOVERY_FAIL_IO') ? 'fail' : 'requeue';
}
