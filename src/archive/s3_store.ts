/** An archive in a bucket, below a prefix. */
import { isIP } from 'node:net';
import type { Readable } from 'node:stream';
import type {
  GetObjectCommandOutput,
  PutObjectCommandInput,
  PutObjectCommandOutput,
  S3Client,
  S3ClientConfig,
} from '@aws-sdk/client-s3';
import type { BuildMiddleware } from '@smithy/types';
import type { S3Archive } from '../config/device_config.ts';
import { UserError } from '../errors.ts';
import type { Log } from '../log.ts';
import type { StripeBuffer } from '../stripe/interfaces.ts';
import { workerUrl } from '../worker_url.ts';
import { DESCRIPTION_NAME } from './description.ts';
import { failureOf, mayBeTriedAgain, type ServiceError, statusOf, waitMs } from './s3_retry.ts';
import type * as Sdk from './s3_sdk_module.ts';
import {
  type Commit,
  INDEX_NAMES,
  NOTE_NAME,
  type ObjectStore,
  type Run,
  StoreAwayError,
  type StoredObject,
} from './store.ts';
import { DATA_PREFIX, parseHash } from './stripe_index.ts';

/** The store's own words: `archive s3 (bucket: B, ...)`. */
export interface S3Options {
  archive: S3Archive;
  description: string;
}

/** Bytes a second that an upload may have at least: so much longer than others may it take. */
const SLOWEST_UPLOAD = 256 << 10;

/** In less time than this there is no answer to be had, in milliseconds. */
const LEAST_ATTEMPT_MS = 100;

/** One attempt of an operation. */
interface Attempt {
  readonly signal: AbortSignal;
  /** Something has come: the time for it begins anew. */
  goesOn(): void;
}

/** Of an operation that failed: the cause of a UserError. */
interface FailedAttempts {
  status: number | undefined;
  attempts: number;
}

export class S3Store implements ObjectStore {
  readonly name: string;
  readonly description: string;
  readonly parallel: number;
  readonly switches = false;
  readonly locks = false;
  private readonly client: S3Client;
  private readonly bucket: string;
  private readonly prefix: string;
  private readonly attemptMs: number;
  private readonly retryMs: number;
  private readonly stop = new AbortController();
  /** Attempts, each with what ends it. */
  private readonly underWay = new Set<AbortController>();
  /** What the run that writes has noted. */
  private noted: string | null = null;

  private constructor(
    private readonly sdk: typeof Sdk,
    { archive, description }: S3Options,
    private readonly log: Log,
  ) {
    this.description = description;
    this.bucket = archive.bucket;
    this.prefix = archive.prefix === undefined ? '' : `${archive.prefix}/`;
    this.name = `'s3://${archive.bucket}${archive.prefix === undefined ? '' : `/${archive.prefix}`}'`;
    this.parallel = archive.connections;
    this.attemptMs = archive.operationTimeoutMs;
    this.retryMs = archive.retryTimeoutMs;
    this.client = new sdk.S3Client(clientConfig(sdk, archive));
  }

  /** Loads the SDK; nothing is sent yet. */
  static async open(options: S3Options, log: Log): Promise<S3Store> {
    const sdk: typeof Sdk = await import(workerUrl('archive/s3_sdk_module.ts'));
    return new S3Store(sdk, options, log);
  }

  async get(name: string): Promise<Uint8Array | null> {
    const chunks: Uint8Array[] = [];
    const length = await this.getObject(name, (chunk, done) => {
      if (done === 0) chunks.length = 0;
      chunks.push(chunk);
    });
    return length === null ? null : Buffer.concat(chunks, length);
  }

  async fetch(name: string, to: StripeBuffer): Promise<number | null> {
    const most = to.bytes.length;
    return await this.getObject(name, (chunk, done, length = most + 1) => {
      if (done + chunk.length > most) throw this.tooLong(name, length, most);
      to.bytes.set(chunk, done);
    });
  }

  async put(name: string, { bytes }: StripeBuffer): Promise<void> {
    await this.putObject(name, bytes);
  }

  async holds(name: string, bytes: Uint8Array): Promise<boolean> {
    const key = this.key(name);
    const length = await this.again('HeadObject', key, async ({ signal: abortSignal }) => {
      const command = new this.sdk.HeadObjectCommand({ Bucket: this.bucket, Key: key });
      return await this.client.send(command, { abortSignal }).then(
        ({ ContentLength }) => ContentLength ?? null,
        (error) => nullIfMissing(error),
      );
    });
    return length === bytes.length;
  }

  async *list(): AsyncGenerator<StoredObject> {
    const prefix = this.key(DATA_PREFIX);
    let next: string | undefined;
    do {
      const page = await this.page(prefix, next);
      for (const { Key = '', Size = 0 } of page.Contents ?? []) {
        const hash = Key.slice(prefix.length);
        if (parseHash(hash)) yield { hash, lengthBytes: Size };
      }
      next = page.IsTruncated ? page.NextContinuationToken : undefined;
    } while (next !== undefined);
  }

  async remove(hashes: string[]): Promise<void> {
    const left = [...hashes];
    const failures: unknown[] = [];
    const turns = Array.from({ length: this.parallel }, async () => {
      try {
        for (let hash = left.pop(); hash !== undefined; hash = left.pop()) {
          await this.removeObject(DATA_PREFIX + hash);
        }
      } catch (error) {
        left.length = 0;
        failures.push(error);
      }
    });
    await Promise.all(turns);
    // Those that were not answered may be carried out still: that is worse than to be refused.
    const worst = failures.find((error) => error instanceof StoreAwayError) ?? failures[0];
    if (worst) throw worst;
  }

  async begin(): Promise<Run> {
    const there = await this.get(NOTE_NAME);
    return {
      // An empty one is what stays where notes may not be deleted.
      left: there && there.length > 0 ? there : null,
      begun: there !== null || (await this.hasData()),
      note: (description) => this.note(description, there === null),
      end: () => this.removeNote(),
      leave: () => {},
    };
  }

  /** Two objects can't be replaced in one moment: what stands meanwhile goes with the old index and the new. */
  async commit({ description, meanwhile, indexName, index }: Commit): Promise<void> {
    await this.checkNote();
    if (meanwhile === null) {
      // Of an archive without a description, which is none: it must not be taken for this one's.
      for (const name of Object.values(INDEX_NAMES)) {
        if ((await this.get(name)) !== null) await this.removeObject(name);
      }
      await this.putObject(DESCRIPTION_NAME, Buffer.from(description));
      return await this.putObject(indexName, index);
    }
    await this.putObject(DESCRIPTION_NAME, Buffer.from(meanwhile));
    await this.putObject(indexName, index);
    if (meanwhile !== description) await this.putObject(DESCRIPTION_NAME, Buffer.from(description));
  }

  giveUp(): void {
    this.stop.abort();
    for (const end of this.underWay) end.abort();
  }

  close(): void {
    this.giveUp();
    this.client.destroy();
  }

  private key(name: string): string {
    return this.prefix + name;
  }

  private async hasData(): Promise<boolean> {
    try {
      return ((await this.page(this.key(DATA_PREFIX), undefined, 1)).KeyCount ?? 0) > 0;
    } catch (error) {
      // Whoever may put need not be allowed to list.
      this.log.info(`what is there is put again: ${(error as Error).message}`);
      return false;
    }
  }

  private async page(prefix: string, token: string | undefined, most?: number) {
    return await this.again('ListObjectsV2', prefix, async ({ signal: abortSignal }) => {
      const command = new this.sdk.ListObjectsV2Command({
        Bucket: this.bucket,
        Prefix: prefix,
        ContinuationToken: token,
        MaxKeys: most,
      });
      return await this.client.send(command, { abortSignal });
    });
  }

  /** Two runs that commit would leave the description of one with the index of the other. */
  private async checkNote(): Promise<void> {
    const there = await this.get(NOTE_NAME);
    if (there && Buffer.from(there).toString() === this.noted) return;
    throw new UserError(
      `another run has begun to write to the archive in ${this.name} meanwhile: this one leaves it as it is; ` +
        'see that one runs at a time, and try again',
    );
  }

  private async note(description: string, first: boolean): Promise<void> {
    this.noted = description;
    try {
      await this.putObject(NOTE_NAME, Buffer.from(description), first);
    } catch (error) {
      if (!(error instanceof UserError)) throw error;
      const { status, attempts } = (error.cause ?? {}) as Partial<FailedAttempts>;
      // A server that knows of no conditions.
      if (status === 501) return await this.putObject(NOTE_NAME, Buffer.from(description));
      if (status !== 412) throw error;
      // The answer to an attempt before may have been lost.
      const there = attempts === 1 ? null : await this.get(NOTE_NAME);
      if (there && Buffer.compare(there, Buffer.from(description)) === 0) return;
      throw new UserError(
        `another run is writing to the archive in ${this.name}, or was interrupted this moment; wait for ` +
          'its end, or try again',
      );
    }
  }

  /** Whoever may put need not be allowed to delete: then it is emptied, and holds up nobody. */
  private async removeNote(): Promise<void> {
    try {
      await this.removeObject(NOTE_NAME);
    } catch (error) {
      if (!(error instanceof UserError) || error instanceof StoreAwayError) throw error;
      await this.putObject(NOTE_NAME, new Uint8Array());
      const place = `'${this.key(NOTE_NAME)}' stays in bucket '${this.bucket}'`;
      this.log.warn(`an empty ${place}, where it does no harm: ${error.message}`);
    }
  }

  /**
   * @param take is given chunks, each with how many bytes were before it, and the length of all; from the
   *   start again, where it is tried again
   * @returns the length
   */
  private async getObject(
    name: string,
    take: (chunk: Uint8Array, done: number, length?: number) => void,
  ): Promise<number | null> {
    const key = this.key(name);
    return await this.again('GetObject', key, async (attempt) => {
      const command = new this.sdk.GetObjectCommand({ Bucket: this.bucket, Key: key });
      let answer: GetObjectCommandOutput;
      try {
        answer = await this.client.send(command, { abortSignal: attempt.signal });
      } catch (error) {
        return nullIfMissing(error as ServiceError);
      }
      const { ContentLength } = answer;
      let done = 0;
      await readBody(answer, attempt, (chunk) => {
        take(chunk, done, ContentLength);
        done += chunk.length;
      });
      if (ContentLength !== undefined && done !== ContentLength) {
        throw new Error(`the answer ended after ${done} of ${ContentLength} bytes`);
      }
      return done;
    });
  }

  /** @param onlyNew refused where it is there already, by servers that know of conditions */
  private async putObject(name: string, bytes: Uint8Array, onlyNew = false): Promise<void> {
    const key = this.key(name);
    const hash = name.startsWith(DATA_PREFIX) ? parseHash(name.slice(DATA_PREFIX.length)) : null;
    const checksum = hash && Buffer.from(hash).toString('base64');
    const put = async ({ signal: abortSignal }: Attempt) => {
      const command = new this.sdk.PutObjectCommand({
        Bucket: this.bucket,
        Key: key,
        Body: bytes,
        // The server sees for itself that it got what the name says.
        ...(checksum && { ChecksumSHA256: checksum }),
        ...(onlyNew && { IfNoneMatch: '*' }),
      });
      if (hash) command.middlewareStack.add(signedHash(hash), { step: 'build' });
      await this.client.send(command, { abortSignal });
    };
    await this.again('PutObject', key, put, bytes.length);
  }

  private async removeObject(name: string): Promise<void> {
    const key = this.key(name);
    await this.again('DeleteObject', key, async ({ signal: abortSignal }) => {
      const command = new this.sdk.DeleteObjectCommand({ Bucket: this.bucket, Key: key });
      await this.client.send(command, { abortSignal });
    });
  }

  /** Tries until it works, can't work, or has taken too long. @throws UserError */
  private async again<Result>(
    operation: string,
    key: string,
    work: (attempt: Attempt) => Promise<Result>,
    uploadBytes = 0,
  ): Promise<Result> {
    const beganMs = performance.now();
    const uploadMs = (uploadBytes / SLOWEST_UPLOAD) * 1000;
    const attemptMs = this.attemptMs + uploadMs;
    const mostMs = this.retryMs + uploadMs;
    for (let attempt = 1; ; attempt++) {
      try {
        const leftMs = mostMs - (performance.now() - beganMs);
        return await this.once(work, Math.min(attemptMs, Math.max(leftMs, LEAST_ATTEMPT_MS)));
      } catch (error) {
        if (error instanceof UserError) throw error;
        if (this.stop.signal.aborted)
          throw new StoreAwayError(`${operation} of '${key}' was given up`);
        const failure = error as ServiceError;
        const elapsedMs = performance.now() - beganMs;
        const restMs = waitMs(failure, attempt);
        if (!mayBeTriedAgain(failure) || elapsedMs + restMs + LEAST_ATTEMPT_MS > mostMs) {
          const what = `${operation} of '${key}' in bucket '${this.bucket}'`;
          const told = failureOf(failure, what, attempt, elapsedMs);
          told.cause = { status: statusOf(failure), attempts: attempt } satisfies FailedAttempts;
          throw told;
        }
        this.log.debug(`${operation} of '${key}' is tried again: ${failure.message}`);
        await this.rest(restMs);
      }
    }
  }

  private async once<Result>(
    work: (attempt: Attempt) => Promise<Result>,
    limitMs: number,
  ): Promise<Result> {
    // Not AbortSignal.any, of which Bun keeps a kilobyte for as long as the other signal is there.
    const end = new AbortController();
    const { signal } = end;
    this.underWay.add(end);
    if (this.stop.signal.aborted) end.abort();
    let late = false;
    const timer = setTimeout(() => {
      late = true;
      end.abort();
    }, limitMs);
    try {
      return await work({ signal, goesOn: () => timer.refresh() });
    } catch (error) {
      if (!late || error instanceof UserError) throw error;
      throw new Error(`no answer in ${Math.round(limitMs / 100) / 10} s`);
    } finally {
      clearTimeout(timer);
      this.underWay.delete(end);
    }
  }

  private rest(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const end = () => {
        clearTimeout(timer);
        this.stop.signal.removeEventListener('abort', end);
        resolve();
      };
      const timer = setTimeout(end, ms);
      this.stop.signal.addEventListener('abort', end);
    });
  }

  private tooLong(name: string, length: number, most: number): UserError {
    return new UserError(
      `'${this.key(name)}' in bucket '${this.bucket}' has ${length} bytes, more than the ${most} that a ` +
        'stripe takes: it is damaged',
    );
  }
}

function clientConfig(sdk: typeof Sdk, archive: S3Archive): S3ClientConfig {
  const { endpoint, region, profile, credentials, connections, connectTimeoutMs } = archive;
  const text = (secret: { reveal(): Uint8Array }) => Buffer.from(secret.reveal()).toString('utf8');
  const agent = { keepAlive: true, maxSockets: connections };
  return {
    ...(endpoint !== undefined && { endpoint, forcePathStyle: isAddress(endpoint) }),
    ...(region !== undefined && { region }),
    ...(profile !== undefined && { profile }),
    ...(credentials && {
      credentials: {
        accessKeyId: text(credentials.accessKeyId),
        secretAccessKey: text(credentials.secretAccessKey),
        ...(credentials.sessionToken && { sessionToken: text(credentials.sessionToken) }),
      },
    }),
    // What is tried again, and when, is decided here.
    maxAttempts: 1,
    // Each such upload would get a connection of its own, and wait up to six seconds for a word.
    expectContinueHeader: false,
    requestHandler: new sdk.NodeHttpHandler({
      connectionTimeout: connectTimeoutMs,
      httpAgent: agent,
      httpsAgent: agent,
    }),
  };
}

/** Reads an answer to its end, or until its attempt has ended: nothing is taken afterwards. */
async function readBody(
  { Body }: GetObjectCommandOutput,
  { signal, goesOn }: Attempt,
  take: (chunk: Uint8Array) => void,
): Promise<void> {
  if (!Body) return;
  const body = Body as unknown as Readable;
  const stop = () => void body.destroy(new Error('the answer was not waited for'));
  signal.addEventListener('abort', stop);
  try {
    for await (const chunk of body) {
      signal.throwIfAborted();
      goesOn();
      take(chunk);
    }
    signal.throwIfAborted();
  } finally {
    signal.removeEventListener('abort', stop);
  }
}

/** Has a request signed with the hash of its body that is known, instead of hashing it once more. */
function signedHash(
  hash: Uint8Array,
): BuildMiddleware<PutObjectCommandInput, PutObjectCommandOutput> {
  return (next) => async (args) => {
    const request = args.request as { headers: Record<string, string> };
    request.headers['x-amz-content-sha256'] = Buffer.from(hash).toString('hex');
    return await next(args);
  };
}

/** Buckets can't be a part of a host name that is an address. */
function isAddress(endpoint: string): boolean {
  return isIP(new URL(endpoint).hostname.replace(/^\[|\]$/g, '')) !== 0;
}

function nullIfMissing(error: ServiceError): null {
  if (statusOf(error) === 404 && error.name !== 'NoSuchBucket') return null;
  throw error;
}
