/**
 * Loads a configuration, and looks for its secrets in all of this process's own memory, before and
 * after wiping. The argument is JSON: the files, and what to look for, masked so that the search
 * itself is not found. The answer on stdout is a list of findings.
 */
import { openSync, readFileSync, readSync } from 'node:fs';
import { loadDeviceConfig } from '../../src/config/load_device_config.ts';
import { UserError } from '../../src/errors.ts';

export interface Order {
  file: string;
  kekFile?: string;
  /** Hexadecimal, each byte changed by `mask`. */
  needles: Record<string, string>;
}

export interface Finding {
  needle: string;
  when: 'loaded' | 'wiped';
  /** In the memory for secrets, which is left out of core dumps and of child processes. */
  inArena: boolean;
}

export const mask = 0xa5;

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
function mappings(): Mapping[] {
  return readFileSync('/proc/self/smaps', 'utf8')
    .split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)
    .filter((text) => /^\S+ r\S\Sp /.test(text) && !/^Anonymous: +0 kB/m.test(text))
    .map((text) => {
      const [start, end] = text.split(/[- ]/, 2).map((hex) => Number.parseInt(hex, 16));
      const flags = /^VmFlags: (.*)$/m.exec(text)?.[1].split(' ') ?? [];
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

function isAt(chunk: Uint8Array, at: number, masked: Uint8Array): boolean {
  return masked.every((byte, index) => (chunk[at + index] ^ mask) === byte);
}

function search(needles: Record<string, string>, when: Finding['when']): Finding[] {
  const findings: Finding[] = [];
  const wanted = Object.entries(needles).map(([needle, hex]) => {
    const masked = Buffer.from(hex, 'hex');
    return { needle, masked, prefix: masked.subarray(0, prefixBytes).map((byte) => byte ^ mask) };
  });
  const memory = openSync('/proc/self/mem', 'r');
  const pagemap = openSync('/proc/self/pagemap', 'r');
  const chunk = Buffer.alloc(chunkBytes);
  for (const mapping of mappings()) {
    for (const [start, end] of populated(mapping, pagemap)) {
      for (let at = start; at < end; at += chunkBytes - overlapBytes) {
        const got = readSync(memory, chunk, 0, Math.min(chunkBytes, end - at), at);
        for (const { needle, masked, prefix } of wanted) {
          let found = chunk.indexOf(prefix);
          for (; found >= 0; found = chunk.indexOf(prefix, found + 1)) {
            if (isAt(chunk, found, masked)) {
              findings.push({ needle, when, inArena: mapping.inArena });
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

if (import.meta.main) {
  const { file, kekFile, needles } = JSON.parse(process.argv[2]) as Order;
  let wipe = () => {};
  let path = '';
  try {
    const { config, wipeSecrets } = loadDeviceConfig(file, { kekFile, strict: true });
    path = config.path;
    wipe = wipeSecrets;
  } catch (error) {
    if (!(error instanceof UserError)) throw error;
  }
  const findings = search(needles, 'loaded');
  wipe();
  findings.push(...search(needles, 'wiped'));
  process.stdout.write(JSON.stringify({ path, findings }));
}
