/**
 * A search through all of this process's own memory for bytes that should not be there. It is told of
 * them masked, so that it doesn't find itself.
 */
import { openSync, readSync } from 'node:fs';

/** Masked bytes in hexadecimal, by their names. */
export type Needles = Record<string, string>;

export interface Finding {
  needle: string;
  /** In the memory for secrets, which is left out of core dumps and of child processes. */
  inArena: boolean;
}

const mask = 0xa5;

const pageBytes = 4096;
const chunkBytes = 64 * pageBytes;
/** No needle is longer. */
const overlapBytes = 64;
const prefixBytes = 4;

interface Mapping {
  start: number;
  end: number;
  inArena: boolean;
}

/** The private mappings that hold anything of this process's own. */
function mappings(smaps: number): Mapping[] {
  let text = '';
  const chunk = Buffer.alloc(chunkBytes);
  for (let got = -1; got !== 0; text += chunk.toString('latin1', 0, got)) {
    got = readSync(smaps, chunk, 0, chunk.length, text.length);
  }
  return text
    .split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)
    .filter((part) => /^\S+ r\S\Sp /.test(part) && !/^Anonymous: +0 kB/m.test(part))
    .map((part) => {
      const [start, end] = part.split(/[- ]/, 2).map((hex) => Number.parseInt(hex, 16));
      const flags = /^VmFlags: (.*)$/m.exec(part)?.[1].split(' ') ?? [];
      return { start, end, inArena: flags.includes('dd') && flags.includes('dc') };
    });
}

/** The parts of a mapping that have memory, present or swapped. */
function* populated({ start, end }: Mapping, pagemap: number): Generator<[number, number]> {
  const entries = new BigUint64Array((end - start) / pageBytes);
  const bytes = new Uint8Array(entries.buffer);
  const got = readSync(pagemap, bytes, 0, bytes.length, (start / pageBytes) * 8);
  if (got !== bytes.length) throw new Error(`${got} of ${bytes.length} bytes of the page map`);
  let from = -1;
  for (let page = 0; page <= entries.length; page++) {
    const isThere = page < entries.length && entries[page] >> 62n !== 0n;
    if (isThere && from < 0) from = page;
    if (!isThere && from >= 0) {
      yield [start + from * pageBytes, start + page * pageBytes];
      from = -1;
    }
  }
}

function isAt(chunk: Uint8Array, at: number, maskedBytes: Uint8Array): boolean {
  return maskedBytes.every((byte, index) => (chunk[at + index] ^ mask) === byte);
}

function masked(bytes: Uint8Array): string {
  return Buffer.from(bytes.map((byte) => byte ^ mask)).toString('hex');
}

/** Both ends of the bytes, so that a copy of a part is found as well. */
export function needlesFor(name: string, bytes: Uint8Array): Needles {
  return {
    [`${name}, beginning`]: masked(bytes.subarray(0, 16)),
    [`${name}, end`]: masked(bytes.subarray(-16)),
  };
}

/**
 * Makes a search that tells where needles are. To be called early: a process that has secrets may not
 * open its own memory any more, unless it is root's.
 */
export function openMemory(): (needles: Needles) => Finding[] {
  const [memory, pagemap, smaps] = ['mem', 'pagemap', 'smaps'].map((name) =>
    openSync(`/proc/self/${name}`, 'r'),
  );
  return (needles) => search({ memory, pagemap, smaps }, needles);
}

function search(
  { memory, pagemap, smaps }: { memory: number; pagemap: number; smaps: number },
  needles: Needles,
): Finding[] {
  const findings: Finding[] = [];
  const wanted = Object.entries(needles).map(([needle, hex]) => {
    const bytes = Buffer.from(hex, 'hex');
    const prefix = bytes.subarray(0, prefixBytes).map((byte) => byte ^ mask);
    return { needle, bytes, prefix };
  });
  const chunk = Buffer.alloc(chunkBytes);
  for (const mapping of mappings(smaps)) {
    for (const [start, end] of populated(mapping, pagemap)) {
      for (let at = start; at < end; at += chunkBytes - overlapBytes) {
        const got = readSync(memory, chunk, 0, Math.min(chunkBytes, end - at), at);
        for (const { needle, bytes, prefix } of wanted) {
          let found = chunk.indexOf(prefix);
          for (; found >= 0; found = chunk.indexOf(prefix, found + 1)) {
            if (isAt(chunk, found, bytes)) {
              findings.push({ needle, inArena: mapping.inArena });
            }
          }
        }
        // A copy of what was found is not to be found again.
        chunk.fill(0, 0, got);
      }
    }
  }
  return findings;
}
