#!/usr/bin/env node
// xts-sectors: AES-256-XTS of a disk's sectors with node's own OpenSSL, one at a time: what our
// encryption is compared with.
//
//   xts-sectors encode|decode KEY1 KEY2 INPUT OUTPUT [BYTES]
//
//     KEY1 KEY2   base64 of 32 bytes each: data, tweak
//     OUTPUT      is written from its start and not cut; may be INPUT
//     BYTES       so many from the start (all)
import { createCipheriv, createDecipheriv } from 'node:crypto';
import { closeSync, fstatSync, openSync, readSync, writeSync } from 'node:fs';

const [action, key1, key2, input, output, limit] = process.argv.slice(2);
const make = { encode: createCipheriv, decode: createDecipheriv }[action];
const keys = Buffer.concat([key1, key2].map((text) => Buffer.from(text, 'base64')));
const from = openSync(input, 'r');
const to = openSync(output, 'r+');
const bytes = limit === undefined ? fstatSync(from).size : Number(limit);
const chunk = Buffer.alloc(1 << 20);
// Eight zero bytes, then the number of the sector.
const tweak = Buffer.alloc(16);
for (let at = 0; at < bytes; ) {
  const length = readSync(from, chunk, 0, Math.min(chunk.length, bytes - at), at);
  if (length === 0 || length % 512 !== 0) throw new Error(`${input} ends inside a sector`);
  for (let i = 0; i < length; i += 512) {
    tweak.writeBigUInt64LE(BigInt((at + i) / 512), 8);
    const cipher = make('aes-256-xts', keys, tweak);
    cipher.update(chunk.subarray(i, i + 512)).copy(chunk, i);
  }
  writeSync(to, chunk, 0, length, at);
  at += length;
}
closeSync(from);
closeSync(to);
