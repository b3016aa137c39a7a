import { decodeBase64 } from '../crypto/base64.ts';
import { Secret } from '../crypto/secret.ts';

/** Shorter words are hardly keys. */
const minVeiledBytes = 24;

const base64Bytes = new Set(
  Buffer.from('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/'),
);
const decimalBytes = new Set(Buffer.from('0123456789eE+'));
const hexBytes = new Set(Buffer.from('0123456789abcdefABCDEF'));
const [zero, letterX, letterO, equalsSign] = Buffer.from('0xo=');
/** The beginnings of escape sequences, in double quotes and in tags. */
const escapes = new Set(Buffer.from('\\%'));

interface Place {
  start: number;
  length: number;
}

/**
 * The text of a file in which secrets may be. Each long word of base64 characters, be it a key or a
 * piece of a path, has a placeholder of the same length, which YAML takes for a plain word wherever
 * it stands. What the file really holds stays in secret memory, and secrets are decoded from there:
 * no key gets into a JavaScript string, which nothing can overwrite, and lines and columns stay true.
 */
export class VeiledText {
  /** The text with its placeholders. */
  readonly text: string;
  readonly #file: Secret;
  /** Where in the file the word of each placeholder stands. */
  readonly #words = new Map<string, Place>();
  readonly #placeholders: RegExp;

  /**
   * Takes over the bytes of a file.
   * @throws TypeError if they are not UTF-8
   */
  constructor(file: Secret) {
    this.#file = file;
    const marker = markerMissingIn(file.reveal());
    this.#placeholders = new RegExp(`${marker}\\d+\\.`, 'g');
    const veiled = this.#veil(marker);
    try {
      this.text = new TextDecoder('utf-8', { fatal: true }).decode(veiled);
    } catch (error) {
      this.wipe();
      throw error;
    } finally {
      veiled.fill(0);
    }
  }

  /** A piece of the text as it stands in the file. */
  unveil(text: string): string {
    return text.replace(this.#placeholders, (placeholder) => {
      const place = this.#words.get(placeholder);
      if (place === undefined) {
        return placeholder; // spelt with escape sequences in the file
      }
      const { start, length } = place;
      return new TextDecoder().decode(this.#file.reveal().subarray(start, start + length));
    });
  }

  /** A piece of the text for messages: an ellipsis stands for each word that may be a secret. */
  shorten(text: string): string {
    return text.replace(this.#placeholders, (placeholder) =>
      this.#words.has(placeholder) ? '…' : placeholder,
    );
  }

  /**
   * Decodes a string of this file as base64 that may have white space behind it. Only a text that is
   * not one veiled word (short, escaped, or on several lines) passes through JavaScript's heap.
   * @returns a secret for the caller to wipe, or undefined for what is not base64
   */
  decodeBase64(text: string): Secret | undefined {
    const trimmed = text.trimEnd();
    const word = this.#words.get(trimmed);
    if (word !== undefined) {
      return decodeBase64(this.#file, word.start, word.length);
    }
    const unveiled = Secret.taking(Buffer.from(this.unveil(trimmed)));
    try {
      return decodeBase64(unveiled);
    } finally {
      unveiled.wipe();
    }
  }

  /** To be called when nothing is unveiled or decoded any more. */
  wipe(): void {
    this.#file.wipe();
  }

  /** A copy of the file with placeholders, into which no veiled word ever gets. */
  #veil(marker: string): Uint8Array {
    const file = this.#file.reveal();
    const copy = new Uint8Array(file.length);
    let end: number;
    for (let start = 0; start < file.length; start = end) {
      end = endOfWord(file, start);
      const word = file.subarray(start, end);
      if (word.length < minVeiledBytes || isNumber(word) || escapes.has(file[start - 1])) {
        copy.set(word, start);
      } else {
        const placeholder = this.#placeholderOf(file, { start, length: word.length }, marker);
        new TextEncoder().encodeInto(placeholder, copy.subarray(start, end));
      }
    }
    return copy;
  }

  /** Equal words have one placeholder: repeated keys, and aliases with their anchors, stay equal. */
  #placeholderOf(file: Uint8Array, place: Place, marker: string): string {
    const bytesAt = ({ start, length }: Place) => file.subarray(start, start + length);
    for (const [placeholder, earlier] of this.#words) {
      if (Buffer.compare(bytesAt(earlier), bytesAt(place)) === 0) {
        return placeholder;
      }
    }
    const digits = place.length - marker.length - 1;
    const placeholder = `${marker}${String(this.#words.size).padStart(digits, '0')}.`;
    this.#words.set(placeholder, place);
    return placeholder;
  }
}

/**
 * What placeholders begin with. Neither the file has it, nor does it arise where text of the file
 * meets a placeholder, because its first character does not come again in it.
 */
function markerMissingIn(file: Uint8Array): string {
  const bytes = Buffer.from(file.buffer, file.byteOffset, file.length);
  let number = 0;
  while (bytes.includes(`_veiled${number}`)) {
    number++;
  }
  return `_veiled${number}`;
}

/** The end of the base64 characters and padding from `start` on, or of the one byte that is none. */
function endOfWord(bytes: Uint8Array, start: number): number {
  let end = start;
  while (base64Bytes.has(bytes[end])) {
    end++;
  }
  if (end === start) {
    return start + 1;
  }
  const padded = end + 2;
  while (end < padded && bytes[end] === equalsSign) {
    end++;
  }
  return end;
}

/** What YAML takes for a number, or for the end of one, must stay what it is. */
function isNumber(word: Uint8Array): boolean {
  if (word[0] === zero && (word[1] === letterX || word[1] === letterO)) {
    return word.subarray(2).every((byte) => hexBytes.has(byte));
  }
  return word.every((byte) => decimalBytes.has(byte));
}
