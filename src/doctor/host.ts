/** What is looked at of a host; tests make up hosts of their own. */
import { accessSync, constants, readFileSync } from 'node:fs';
import { release } from 'node:os';
import { cipherLibrary, liburingVersion, openLibrary } from '../../ffi/library.ts';
import { Ring, type RingSetup } from '../../ffi/ring.ts';
import { errorName } from '../errors.ts';
import { UblkControl } from '../frontend/ublk/control.ts';
import { CONTROL_PATH } from '../frontend/ublk/protocol.ts';

/** How a try went: what came of it, or why nothing did. */
export type Tried<Value> = { value: Value } | { error: string };

export interface Host {
  /** As `uname -r` tells it. */
  kernel: string;
  isRoot: boolean;
  env: Readonly<Record<string, string | undefined>>;
  /** The text of a file of /proc or /sys without white space around it; null where it can't be read. */
  read(path: string): string | null;
  exists(path: string): boolean;
  /** Opens the shim. @returns what is built in */
  library(): Tried<{ cipher: string; liburing: string }>;
  /** Makes an io_uring. @returns the set-up that the kernel took */
  ring(): Tried<RingSetup>;
  /** Asks the ublk driver for its features; null where it is too old to tell. */
  ublk(): Tried<bigint | null>;
}

const RING_ENTRIES = 8;

export const thisHost: Host = {
  kernel: release(),
  isRoot: process.getuid?.() === 0,
  env: process.env,
  read(path) {
    try {
      return readFileSync(path, 'utf8').trim();
    } catch {
      return null;
    }
  },
  exists(path) {
    try {
      accessSync(path, constants.F_OK);
      return true;
    } catch {
      return false;
    }
  },
  library: () =>
    tried(() => {
      openLibrary();
      return { cipher: cipherLibrary(), liburing: liburingVersion() };
    }),
  ring: () =>
    tried(() => {
      openLibrary();
      const ring = new Ring(RING_ENTRIES, 2 * RING_ENTRIES);
      ring.close();
      return ring.setup;
    }),
  ublk: () =>
    tried(() => {
      openLibrary();
      accessSync(CONTROL_PATH, constants.R_OK | constants.W_OK);
      const control = new UblkControl();
      try {
        return control.features;
      } finally {
        control.close();
      }
    }),
};

function tried<Value>(what: () => Value): Tried<Value> {
  try {
    return { value: what() };
  } catch (error) {
    return { error: errorName(error) };
  }
}
