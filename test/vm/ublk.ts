/**
 * What the tests of `ubiblk serve ublk` share: guests that serve disks to themselves.
 *
 * A guest's script is bash that ends at its first error, and begins with these functions:
 *
 *     step WORDS...          what is done now; a failure is reported with it
 *     serve CONFIG [ARG...]  serves a disk of a configuration in the test bed's folder; then $server is
 *                            the process, $device its block device, and CONFIG.log its log
 *     stop                   ends that server as a user does, which must end with 0
 *     refused COMMAND...     a command that must fail
 */

import { readdirSync, readFileSync } from 'node:fs';
import { binary, type Child } from '../e2e/processes.ts';
import { type Bed, quote } from '../e2e/support.ts';

/** Debian suites that a guest's kernel comes from: Linux 6.12, and the newest there is. */
export type Kernel = 'trixie' | 'sid';

export interface UblkGuestOptions {
  kernel?: Kernel;
  /** How long it may take. */
  seconds?: number;
  /** Raw images on the host: /dev/vda, /dev/vdb, ... */
  disks?: string[];
  /** More arguments for `vm-run`. */
  more?: string[];
}

const functions = `set -eEuo pipefail
ubiblk=${quote(binary)}
step() { step=$*; echo "== $*"; }
failed() {
  trap - ERR
  echo "FAILED in step '$step' with status $1: $2" >&2
  dmesg | tail -n 20 >&2
  # The machine would wait for whoever waits for a server.
  timeout 20 "$ubiblk" ublk del --all --force > /dev/null 2>&1
  exit 1
}
trap 'failed $? "$BASH_COMMAND"' ERR
dmesg --clear
step "Linux $(uname -r)"
serve() {
  local config=$1
  shift
  rm -f /run/served
  mkfifo /run/served
  "$ubiblk" serve ublk --config "$config" "$@" > /run/served 2>> "$config.log" &
  server=$!
  # Whoever ends without a line leaves nothing to read.
  read -r -t 60 device < /run/served
}
stop() {
  kill "$server"
  wait "$server"
}
refused() {
  if "$@"; then failed 0 "$*"; fi
}
`;

/** Starts a guest; {@link guestDone} waits for it. */
export function ublkGuest(bed: Bed, options: UblkGuestOptions, script: string): Child {
  const { kernel = 'trixie', more = [], ...rest } = options;
  return bed.guest({ ...rest, more: ['--kernel', kernel, ...more] }, functions + script);
}

/** Waits for a guest's end; where it isn't the expected one, the error has the servers' logs, too. */
export async function guestDone(bed: Bed, guest: Child, expect = 0): Promise<Child> {
  try {
    return await bed.guestEnd(guest, expect);
  } catch (error) {
    throw new Error(`${(error as Error).message}\n${logs(bed)}`);
  }
}

/** Runs a script in a guest. */
export async function runInGuest(
  bed: Bed,
  options: UblkGuestOptions,
  script: string,
): Promise<Child> {
  return await guestDone(bed, ublkGuest(bed, options, script));
}

function logs(bed: Bed): string {
  return readdirSync(bed.folder)
    .filter((name) => name.endsWith('.log'))
    .map((name) => `${name}:\n${readFileSync(bed.path(name), 'utf8').slice(-3000)}`)
    .join('\n');
}
