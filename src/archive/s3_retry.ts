/** What of S3 is tried again, when, and what a user is told where it is given up. */
import { UserError } from '../errors.ts';
import { StoreAwayError } from './store.ts';

/** Milliseconds: of the first wait at most, and of the longest. */
const FIRST_MS = 200;
const LONGEST_MS = 20_000;

const STATUSES = new Set([408, 425, 429, 500, 502, 503, 504]);
/** Codes of the service whose status doesn't tell: throttling, and what was damaged on its way. */
const CODES = new Set([
  'BadDigest',
  'ConditionalRequestConflict',
  'IncompleteBody',
  'InternalError',
  'OperationAborted',
  'RequestTimeout',
  'RequestTimeTooSkewed',
  'SlowDown',
  'Throttling',
  'ThrottlingException',
  'TooManyRequests',
  'XAmzContentChecksumMismatch',
  'XAmzContentSHA256Mismatch',
]);
/** Of the SDK itself: nothing was sent. */
const LOCAL = /Credentials|Region is missing|profile|Could not load|Token is expired|Invalid URL/i;
/** Of TLS: the server is not who it must be. */
const UNTRUSTED = /CERT|UNABLE_TO_VERIFY/;

/** What the SDK throws, as far as it is looked at. */
export interface ServiceError extends Error {
  code?: string;
  $metadata?: { httpStatusCode?: number };
  $response?: { statusCode?: number; headers?: Record<string, string> };
}

export function statusOf({ $metadata, $response }: ServiceError): number | undefined {
  return $metadata?.httpStatusCode ?? $response?.statusCode;
}

export function mayBeTriedAgain(error: ServiceError): boolean {
  const status = statusOf(error);
  if (CODES.has(error.name)) return true;
  if (UNTRUSTED.test(error.code ?? '')) return false;
  // An answer of 200 whose body was cut or damaged.
  if (status === undefined || status < 300) return !LOCAL.test(`${error.name} ${error.message}`);
  return STATUSES.has(status);
}

/**
 * How long to wait after so many failures in a row, in milliseconds: what the server asks for, and a
 * random part of a time that doubles, so that many clients don't come back at once.
 */
export function waitMs(error: ServiceError, failures: number, random = Math.random): number {
  const most = Math.min(FIRST_MS * 2 ** Math.min(failures - 1, 20), LONGEST_MS);
  return retryAfterMs(error) + random() * most;
}

/** RFC 9110 section 10.2.3: seconds, or a date. */
function retryAfterMs({ $response }: ServiceError): number {
  const text = $response?.headers?.['retry-after'];
  if (text === undefined) return 0;
  const ms = /^\d+$/.test(text) ? Number(text) * 1000 : Date.parse(text) - Date.now();
  return Math.max(0, Number.isNaN(ms) ? 0 : ms);
}

/** `GetObject of 'a/metadata.json' in bucket 'b' failed with 403 AccessDenied: Access Denied` */
export function failureOf(
  error: ServiceError,
  what: string,
  attempts: number,
  elapsedMs: number,
): UserError {
  const Kind = mayBeTriedAgain(error) ? StoreAwayError : UserError;
  const status = statusOf(error);
  // A status that isn't the failure's is no help.
  const known = status !== undefined && status >= 300 ? `${status} ` : '';
  const code = error.code ?? (error.name === 'Error' ? '' : error.name);
  const cause = `${known}${code}`.trim();
  const message = error.message && error.message !== code ? error.message : '';
  const told = [cause, message].filter((text) => text !== '').join(': ') || 'an unknown error';
  const tries = attempts > 1 ? `, ${attempts} times in ${Math.round(elapsedMs / 1000)} s` : '';
  return new Kind(`${what} failed${tries}: ${told.split('\n')[0]}${remedyFor(status, code)}`);
}

function remedyFor(status: number | undefined, code: string): string {
  if (status === 401 || status === 403) return '; check the credentials and their permissions';
  if (UNTRUSTED.test(code)) {
    return '; if its certificate is to be trusted, name the file of who issued it in NODE_EXTRA_CA_CERTS';
  }
  if (code === 'NoSuchBucket') return "; check 'bucket', 'region' and 'endpoint'";
  if (status === 301 || status === 307) return "; check 'region' and 'endpoint'";
  if (status === 429 || status === 503) return "; lower 'connections', or try again later";
  return '';
}
