/**
 * Pre-shared keys in GnuTLS's format, which psktool makes: lines `USER:HEX`. The keys go into the
 * memory for secrets as bytes, and are never part of a string.
 */
import { closeSync, openSync, readSync, statSync } from 'node:fs';
import { userInfo } from 'node:os';
import { Secret } from '../crypto/secret.ts';
import { MAX_IDENTITY_BYTES, MAX_PSK_BYTES, type Psk } from '../crypto/tls_psk.ts';
import { errorName, UserError } from '../errors.ts';

const MAX_FILE_BYTES = 1 << 20;
const COLON = 0x3a;
const NEWLINE = 0x0a;
const HASH = 0x23;

/**
 * Reads the key of a user.
 * @param user undefined: the login name where the file has it, else the only one that it has
 * @throws UserError
 */
export function readPskFile(file: string, user?: string): Psk {
  const bytes = readSecretly(file);
  try {
    const keys = linesOf(bytes).map((line) => keyOf(line, file));
    const wanted = user ?? (keys.length === 1 ? keys[0].user : userInfo().username);
    const found = keys.find((key) => key.user === wanted);
    if (!found) {
      throw new UserError(`the PSK file '${file}' has no key of '${wanted}' (lines are USER:HEX)`);
    }
    return { identity: wanted, secret: secretOf(found.hex, file) };
  } finally {
    bytes.fill(0);
  }
}

function readSecretly(file: string): Uint8Array {
  let fd = -1;
  try {
    fd = openSync(file, 'r');
    const { size } = statSync(file);
    if (size > MAX_FILE_BYTES) throw new UserError(`the PSK file '${file}' is too large`);
    const bytes = new Uint8Array(size);
    return bytes.subarray(0, readSync(fd, bytes));
  } catch (error) {
    if (error instanceof UserError) throw error;
    throw new UserError(`the PSK file '${file}' can't be read: ${errorName(error)}`);
  } finally {
    if (fd >= 0) closeSync(fd);
  }
}

function linesOf(bytes: Uint8Array): Uint8Array[] {
  const lines: Uint8Array[] = [];
  for (let at = 0; at < bytes.length; ) {
    const newline = bytes.indexOf(NEWLINE, at);
    const end = newline < 0 ? bytes.length : newline;
    if (end > at && bytes[at] !== HASH) lines.push(bytes.subarray(at, end));
    at = end + 1;
  }
  return lines;
}

function keyOf(line: Uint8Array, file: string): { user: string; hex: Uint8Array } {
  const colon = line.lastIndexOf(COLON);
  const user = Buffer.from(line.subarray(0, Math.max(colon, 0))).toString();
  if (colon < 1 || Buffer.byteLength(user) > MAX_IDENTITY_BYTES) {
    throw new UserError(`the PSK file '${file}' has a line that isn't USER:HEX`);
  }
  return { user, hex: line.subarray(colon + 1) };
}

function secretOf(hex: Uint8Array, file: string): Secret {
  const length = hex.length / 2;
  const digits = Array.from(hex, digitOf);
  if (!Number.isInteger(length) || length < 1 || length > MAX_PSK_BYTES || digits.includes(-1)) {
    digits.fill(0);
    throw new UserError(`the PSK file '${file}' has a key that isn't hexadecimal, or too long`);
  }
  const secret = new Secret(length);
  const bytes = secret.reveal();
  for (let i = 0; i < length; i++) bytes[i] = digits[2 * i] * 16 + digits[2 * i + 1];
  digits.fill(0);
  return secret;
}

function digitOf(code: number): number {
  if (code >= 0x30 && code <= 0x39) return code - 0x30;
  const letter = code | 0x20;
  return letter >= 0x61 && letter <= 0x66 ? letter - 0x61 + 10 : -1;
}
