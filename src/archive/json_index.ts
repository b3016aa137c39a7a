/**
 * `stripe-hashes.json`, the index of format 1 (spec/archive.md section 4). It is read as the bytes it is: as
 * values of JavaScript, one of some terabytes would take gigabytes.
 */
import { ArchiveError } from './archive_error.ts';
import { HASH_BYTES, MAX_STRIPES, StripeIndex } from './stripe_index.ts';

/** `"<stripe>":"<hash>",` with a stripe's longest number. */
const MOST_PER_STRIPE = 10 + 2 * HASH_BYTES + 6;

/** The bytes of the object. A stripe of zeroes must have an object in this format. */
export function encodeJsonIndex(index: StripeIndex): Buffer {
  const text = Buffer.alloc(2 + index.listed * MOST_PER_STRIPE);
  let at = text.write('{');
  for (let stripe = 0; stripe < index.stripes; stripe++) {
    const object = index.objectOf(stripe);
    if (object === null) continue;
    const hash = Buffer.from(index.hashOf(object)).toString('hex');
    at += text.write(`${at > 1 ? ',' : ''}"${stripe}":"${hash}"`, at, 'latin1');
  }
  at += text.write('}', at);
  return text.subarray(0, at);
}

/** @throws ArchiveError where it is anything else */
export function parseJsonIndex(bytes: Uint8Array): StripeIndex {
  let highest = -1;
  readEntries(bytes, (stripe) => {
    highest = Math.max(highest, stripe);
  });
  const index = new StripeIndex(highest + 1);
  readEntries(bytes, (stripe, hash) => index.add(stripe, hash));
  return index;
}

/** @param take is given each stripe and its hash, in memory that the next one uses again */
function readEntries(bytes: Uint8Array, take: (stripe: number, hash: Uint8Array) => void): void {
  const text = new JsonText(bytes);
  const hash = new Uint8Array(HASH_BYTES);
  if (!text.takes('{')) {
    throw new ArchiveError('is no JSON object: it is damaged, or not the index of an archive');
  }
  let more = !text.takes('}');
  while (more) {
    const stripe = text.stripe();
    text.expect(':');
    text.hash(stripe, hash);
    take(stripe, hash);
    more = text.takes(',');
    if (!more) text.expect('}');
  }
  if (!text.ended) throw noJson();
}

/** As much of JSON (RFC 8259) as an index has: its texts are digits, which nobody escapes. */
class JsonText {
  private at = 0;

  constructor(private readonly bytes: Uint8Array) {}

  get ended(): boolean {
    this.skipSpace();
    return this.at === this.bytes.length;
  }

  /** @returns whether that is what comes next; only then it is behind us */
  takes(mark: string): boolean {
    this.skipSpace();
    if (this.bytes[this.at] !== mark.charCodeAt(0)) return false;
    this.at++;
    return true;
  }

  expect(mark: string): void {
    if (!this.takes(mark)) throw noJson();
  }

  stripe(): number {
    this.expect('"');
    const { bytes } = this;
    const start = this.at;
    let stripe = 0;
    for (
      let digit = bytes[this.at] - ZERO;
      digit >= 0 && digit <= 9;
      digit = bytes[this.at] - ZERO
    ) {
      if (stripe < MAX_STRIPES) stripe = 10 * stripe + digit;
      this.at++;
    }
    const length = this.at - start;
    const canonical = length === 1 || (length > 1 && bytes[start] !== ZERO);
    if (canonical && stripe < MAX_STRIPES && bytes[this.at++] === QUOTE) return stripe;
    throw new ArchiveError(
      `has a key that is no number of a stripe below ${MAX_STRIPES}: it is damaged`,
    );
  }

  hash(stripe: number, hash: Uint8Array): void {
    let valid = this.takes('"');
    for (let i = 0; valid && i < HASH_BYTES; i++) {
      const byte = 16 * hexDigit(this.bytes[this.at]) + hexDigit(this.bytes[this.at + 1]);
      valid = byte >= 0;
      hash[i] = byte;
      this.at += 2;
    }
    if (valid && this.bytes[this.at++] === QUOTE) return;
    throw new ArchiveError(
      `names for stripe ${stripe} something else than 64 lower-case hexadecimal digits: it is damaged`,
    );
  }

  private skipSpace(): void {
    const { bytes } = this;
    while (SPACE.includes(bytes[this.at])) this.at++;
  }
}

const ZERO = 0x30;
const QUOTE = 0x22;
const SPACE = [0x20, 0x09, 0x0a, 0x0d];

/** The value of a lower-case digit; of anything else less than any two digits can make good. */
function hexDigit(byte: number): number {
  if (byte >= 0x30 && byte <= 0x39) return byte - 0x30;
  if (byte >= 0x61 && byte <= 0x66) return byte - 0x61 + 10;
  return -256;
}

function noJson(): ArchiveError {
  return new ArchiveError('is no JSON text of stripes and hashes: it is damaged');
}
