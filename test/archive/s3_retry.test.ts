import { expect, test } from 'bun:test';
import {
  failureOf,
  mayBeTriedAgain,
  type ServiceError,
  waitMs,
} from '../../src/archive/s3_retry.ts';

function serviceError(
  name: string,
  status?: number,
  { message = 'made', headers = {} as Record<string, string> } = {},
): ServiceError {
  const error: ServiceError = Object.assign(new Error(message), { name });
  if (status !== undefined) {
    error.$metadata = { httpStatusCode: status };
    error.$response = { statusCode: status, headers };
  }
  return error;
}

test.each([
  ['SlowDown', 503, true],
  ['TooManyRequests', 429, true],
  ['Unknown', 429, true],
  ['InternalError', 500, true],
  ['BadGateway', 502, true],
  ['RequestTimeout', 400, true],
  ['BadDigest', 400, true],
  ['TimeoutError', undefined, true],
  ['Error', 200, true],
  ['AccessDenied', 403, false],
  ['NoSuchBucket', 404, false],
  ['InvalidRequest', 400, false],
  ['PreconditionFailed', 412, false],
  ['PermanentRedirect', 301, false],
  ['CredentialsProviderError', undefined, false],
] as const)('%s with status %p: tried again is %p', (name, status, again) => {
  expect(mayBeTriedAgain(serviceError(name, status))).toBe(again);
});

test('waits double up to 20 s, and are random parts of that', () => {
  const error = serviceError('InternalError', 500);
  expect([1, 2, 3, 8, 30].map((failures) => waitMs(error, failures, () => 1))).toEqual([
    200, 400, 800, 20_000, 20_000,
  ]);
  expect(waitMs(error, 3, () => 0.25)).toBe(200);
});

test('what the server asks for comes first: seconds, or a date', () => {
  const after = (text: string) =>
    waitMs(serviceError('SlowDown', 503, { headers: { 'retry-after': text } }), 1, () => 0);
  expect(after('7')).toBe(7000);
  const inAMinute = new Date(Date.now() + 60_000).toUTCString();
  expect(Math.abs(after(inAMinute) - 60_000)).toBeLessThan(5000);
  expect(after('Thu, 01 Jan 1970 00:00:00 GMT')).toBe(0);
  expect(after('soon')).toBe(0);
});

test('a sentence says what failed, how often, and what to do', () => {
  const what = "GetObject of 'a' in bucket 'b'";
  const denied = serviceError('AccessDenied', 403, { message: 'Access Denied\nmore' });
  expect(failureOf(denied, what, 1, 10).message).toBe(
    "GetObject of 'a' in bucket 'b' failed: 403 AccessDenied: Access Denied; check the credentials and " +
      'their permissions',
  );
  const reset: ServiceError = Object.assign(new Error('socket hang up'), { code: 'ECONNRESET' });
  expect(failureOf(reset, what, 4, 12_300).message).toBe(
    "GetObject of 'a' in bucket 'b' failed, 4 times in 12 s: ECONNRESET: socket hang up",
  );
});
