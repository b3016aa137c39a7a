/** What encryption costs by itself: the layer of the queues and `ubiblk xts` against the linked library. */

import { execFileSync } from 'node:child_process';
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { cipherLibrary } from '../ffi/library.ts';
import { NativeBuffer } from '../ffi/memory.ts';
import { IovecTable } from '../ffi/ring.ts';
import { Secret } from '../src/crypto/secret.ts';
import { expandXts, freeXts } from '../src/crypto/xts.ts';
import { CryptLayer } from '../src/device/crypt.ts';
import { NullDevice } from '../src/device/null_device.ts';
import { BlockRequest, RequestTable, WRITE } from '../src/device/request.ts';
import { binary, root } from '../test/e2e/processes.ts';
import { median } from './measure.ts';

/** Bytes a second that the library does with units of 512 bytes on one core, called by itself. */
function libraryRate(): number {
  execFileSync('make', ['-s', '-C', join(root, 'c'), 'bench']);
  const text = execFileSync(join(root, 'build/c/bench/xts_speed')).toString();
  return Number(text.split(' ')[1]);
}

/** Bytes a second of writes through the layer onto a device that does nothing. */
function layerRate(blockBytes: number): number {
  const keys = [1, 2].map((byte) => Secret.taking(new Uint8Array(32).fill(byte)));
  const xts = expandXts([keys[0], keys[1]]);
  const requests = new RequestTable();
  const layer = new CryptLayer(new NullDevice(), xts, requests, null);
  const memory = new NativeBuffer(1 << 20);
  new Uint8Array(memory.window()).fill(7);
  const owner = { completed: () => {} };
  const request = requests.add(new BlockRequest(requests.nextIndex, owner, new IovecTable(1)));
  request.op = WRITE;
  request.segments = 1;
  request.length = blockBytes;
  let bytes = 0;
  const start = performance.now();
  let end = start;
  while (end - start < 1000) {
    for (let at = 0; at < 1 << 20; at += blockBytes) {
      request.address = memory.address + at;
      request.offset = at;
      layer.submit(request);
    }
    bytes += 1 << 20;
    end = performance.now();
  }
  freeXts(xts);
  memory.free();
  return bytes / ((end - start) / 1000);
}

/** Bytes a second of `ubiblk xts` from file to file, both in memory. */
function toolRate(folder: string, file: string, sizeBytes: number): number {
  const config = join(folder, 'xts.yaml');
  const output = join(folder, 'xts.out');
  const key = (byte: number) => Buffer.alloc(32, byte).toString('base64');
  const lines = [`path: ${file}`, `encryption_key: ["${key(1)}", "${key(2)}"]`];
  writeFileSync(config, `${lines.join('\n')}\n`, { mode: 0o600 });
  const start = performance.now();
  execFileSync(binary, ['xts', '--config', config, '--action', 'encode', file, output]);
  const rate = sizeBytes / ((performance.now() - start) / 1000);
  rmSync(output);
  return rate;
}

export interface CipherRate {
  name: string;
  /** Bytes a second. */
  rate: number;
  /** The library's by itself, measured in turns with it. */
  library: number;
  /** What the part of it must be. */
  atLeast?: number;
}

/**
 * @param file what `ubiblk xts` encrypts
 * @param folder where its output goes
 * @param runs of each; medians are returned
 */
export function cipherRates(
  file: string,
  sizeBytes: number,
  folder: string,
  runs: number,
): CipherRate[] {
  const measured: [string, () => number, atLeast?: number][] = [
    ['crypt layer 4K', () => layerRate(4096), 0.9],
    ['crypt layer 1M', () => layerRate(1 << 20), 0.9],
    ['ubiblk xts, file to file', () => toolRate(folder, file, sizeBytes)],
  ];
  const rates = measured.map(() => [] as number[]);
  const library: number[] = [];
  for (let run = 0; run < runs; run++) {
    library.push(libraryRate());
    measured.forEach(([, measure], i) => {
      rates[i].push(measure());
    });
  }
  return measured.map(([name, , atLeast], i) => ({
    name: `cipher ${name}`,
    rate: median(rates[i]),
    library: median(library),
    atLeast,
  }));
}

/** Whether isa-l_crypto does the ciphering. */
export function usesIsal(): boolean {
  return cipherLibrary().startsWith('isa-l');
}
