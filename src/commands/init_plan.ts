/** What `ubiblk init` is to make: its options, checked before anything is made. */
import { closeSync, openSync, readSync, realpathSync, statSync } from 'node:fs';
import { basename, join, resolve } from 'node:path';
import { socketPathProblem } from '../config/socket_path.ts';
import { errorName, UsageError, UserError } from '../errors.ts';
import { MAX_SHIFT, MIN_SHIFT } from '../stripe/metadata_layout.ts';
import { parseSize } from './size.ts';

/** Options as they were given, on the command line or to the wizard. */
export interface Given {
  has(long: string): boolean;
  value(long: string): string | undefined;
}

export const frontends = ['vhost', 'ublk', 'nbd'] as const;
export type Frontend = (typeof frontends)[number];

export interface InitPlan {
  /** Absolute, as all paths. */
  folder: string;
  /** What the disk and its service are called. */
  name: string;
  frontend: Frontend;
  /** Where it will listen; a ublk device listens nowhere. */
  socket: string | undefined;
  sizeBytes: number;
  /** Of the stripes, as a power of two in sectors. */
  shift: number;
  /** The raw image that the disk starts from. */
  base: string | undefined;
  /** Where the KEK goes that wraps the keys; undefined: the disk is plain. */
  kek: string | undefined;
  /** Of the configuration, by their keys there. */
  settings: Readonly<Record<string, string | number | boolean>>;
  force: boolean;
}

/** The files of a device folder. */
export const names = {
  disk: 'disk.raw',
  metadata: 'disk.meta',
  config: 'config.yaml',
  kek: 'kek.yaml',
  rpc: 'rpc.sock',
} as const;

export const defaultStripeSize = '1M';

/** Options that are fields of the configuration, with their ranges there. */
const numbers = [
  { long: 'num-queues', key: 'num_queues', min: 1, max: 64 },
  { long: 'queue-size', key: 'queue_size', min: 1, max: 32768, powerOfTwo: true },
  { long: 'seg-size-max', key: 'seg_size_max', min: 4096, max: 1048576 },
  { long: 'seg-count-max', key: 'seg_count_max', min: 1, max: 256 },
  { long: 'poll-timeout-us', key: 'poll_queue_timeout_us', min: 0, max: 10_000_000 },
] as const;
const flags = [
  { long: 'write-through', key: 'write_through' },
  { long: 'copy-on-read', key: 'copy_on_read' },
  { long: 'autofetch', key: 'autofetch' },
  { long: 'track-written', key: 'track_written' },
] as const;
const MAX_ID_BYTES = 20;

/**
 * Reads the options.
 * @param folder as it was given
 * @throws UsageError, or UserError where the image or a path will not do
 */
export function readPlan(folder: string, given: Given): InitPlan {
  const place = plainPath(folder);
  const name = basename(place) || 'root';
  const size = given.value('size');
  if (size === undefined) throw new UsageError("option '--size' is required");
  const frontend = choice(given, 'frontend', frontends) ?? 'vhost';
  const socket = socketOf(given, place, frontend);
  const sizeBytes = parseSize('--size', size);
  return {
    folder: place,
    name,
    frontend,
    socket,
    sizeBytes,
    shift: parseStripeSize(given.value('stripe-size') ?? defaultStripeSize),
    base: baseOf(given, sizeBytes),
    kek: kekOf(given, place),
    settings: settingsOf(given, place, frontend === 'vhost' ? socket : undefined),
    force: given.has('force'),
  };
}

/**
 * @returns the absolute path
 * @throws UserError where a unit, or a shell, might take it for something else
 */
function plainPath(path: string): string {
  const absolute = resolve(path);
  if (!/[\p{Cc}"'\\]/u.test(absolute)) return absolute;
  throw new UserError(
    `the path '${absolute}' has quotes or control characters, or a backslash; choose another`,
  );
}

function socketOf(given: Given, folder: string, frontend: Frontend): string | undefined {
  if (frontend !== 'ublk') {
    const path = plainPath(given.value('socket') ?? join(folder, `${frontend}.sock`));
    return checkedSocket(path, 'give a shorter --socket');
  }
  if (given.has('socket')) throw new UsageError("option '--socket' is not for '--frontend ublk'");
  return undefined;
}

/** @param socket of vhost-user */
function settingsOf(
  given: Given,
  folder: string,
  socket: string | undefined,
): InitPlan['settings'] {
  const settings: Record<string, string | number | boolean> = {};
  const rpc = join(folder, names.rpc);
  if (socket !== undefined) settings.socket = socket;
  settings.rpc_socket_path = checkedSocket(rpc, 'choose a folder with a shorter path');
  const id = given.value('device-id');
  if (id !== undefined) {
    if (Buffer.byteLength(id) > MAX_ID_BYTES) {
      throw new UsageError(`--device-id must be at most ${MAX_ID_BYTES} bytes, not '${id}'`);
    }
    settings.device_id = id;
  }
  for (const { long, key, min, max, ...more } of numbers) {
    const text = given.value(long);
    if (text === undefined) continue;
    const value = Number(text);
    const power = 'powerOfTwo' in more ? 'power of two' : 'whole number';
    if (!/^\d+$/.test(text) || value < min || value > max || !fits(value, power)) {
      throw new UsageError(`--${long} must be a ${power} from ${min} to ${max}, not '${text}'`);
    }
    settings[key] = value;
  }
  const engine = choice(given, 'io-engine', ['io_uring', 'sync']);
  if (engine !== undefined) settings.io_engine = engine;
  for (const { long, key } of flags) if (given.has(long)) settings[key] = true;
  for (const long of ['copy-on-read', 'autofetch']) {
    if (given.has(long) && !given.value('base')) {
      throw new UsageError(`option '--${long}' needs '--base IMAGE'`);
    }
  }
  return settings;
}

function fits(value: number, kind: string): boolean {
  return kind === 'whole number' || Number.isInteger(Math.log2(value));
}

function checkedSocket(path: string, remedy: string): string {
  const problem = socketPathProblem(path);
  if (problem !== undefined) throw new UserError(`'${path}' ${problem}; ${remedy}`);
  return path;
}

function choice<const Name extends string>(
  given: Given,
  long: string,
  known: readonly Name[],
): Name | undefined {
  const text = given.value(long);
  if (text === undefined) return undefined;
  const found = known.find((name) => name === text);
  if (found !== undefined) return found;
  throw new UsageError(`--${long} must be one of ${known.join(', ')}, not '${text}'`);
}

/**
 * A size of stripes as a power of two in sectors.
 * @throws UsageError
 */
export function parseStripeSize(text: string): number {
  const sectors = parseSize('--stripe-size', text) / 512;
  const shift = Math.log2(sectors);
  if (Number.isInteger(shift) && shift >= MIN_SHIFT && shift <= MAX_SHIFT) return shift;
  throw new UsageError(`--stripe-size must be a power of two from 32K to 32M, not '${text}'`);
}

function kekOf(given: Given, folder: string): string | undefined {
  const path = given.value('kek');
  if (!given.has('encrypt')) {
    if (path !== undefined) throw new UsageError("option '--kek' needs '--encrypt'");
    return undefined;
  }
  if (path === '') throw new UsageError("option '--kek' needs a path that is not empty");
  return path === undefined ? join(folder, names.kek) : plainPath(path);
}

/** @returns the image's own path, without links */
function baseOf(given: Given, sizeBytes: number): string | undefined {
  const path = given.value('base');
  return path === undefined ? undefined : checkBase(path, sizeBytes);
}

/**
 * Sees whether a disk can start from an image.
 * @param sizeBytes of the disk
 * @returns its path without links
 * @throws UserError
 */
export function checkBase(path: string, sizeBytes: number): string {
  let imageBytes: number;
  let start: string;
  try {
    const status = statSync(path);
    if (!status.isFile()) throw new UserError(`the image '${path}' is no regular file`);
    imageBytes = status.size;
    start = startOf(path);
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(`the image '${path}' cannot be read: ${errorName(error)}`);
  }
  if (start === 'QFI\xfb') {
    throw new UserError(
      `the image '${path}' is a qcow2 image; make it raw first: ` +
        `qemu-img convert -O raw '${path}' '${path}.raw'`,
    );
  }
  if (imageBytes === 0 || imageBytes % 512 !== 0) {
    throw new UserError(
      `the image '${path}' has ${imageBytes} bytes, which is no multiple of 512; is it a raw image?`,
    );
  }
  if (imageBytes > sizeBytes) {
    throw new UserError(
      `the image '${path}' has ${imageBytes} bytes, more than the disk; give --size ${imageBytes} or ` +
        'more',
    );
  }
  return realpathSync(path);
}

function startOf(path: string): string {
  const fd = openSync(path, 'r');
  try {
    const bytes = Buffer.alloc(4);
    readSync(fd, bytes, 0, bytes.length, 0);
    return bytes.toString('latin1');
  } finally {
    closeSync(fd);
  }
}
