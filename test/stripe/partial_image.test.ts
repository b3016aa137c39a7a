/** Images that are written past the page cache, and what of them can't be. */
import { afterAll, expect, spyOn, test } from 'bun:test';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { EINVAL } from '../../ffi/errno.ts';
import { Lane } from '../../ffi/lane.ts';
import { openLibrary } from '../../ffi/library.ts';
import { NativeBuffer } from '../../ffi/memory.ts';
import { PartialImage } from '../../src/stripe/partial_image.ts';
import { Random, seed } from '../random.ts';

openLibrary();
const folder = mkdtempSync(join(tmpdir(), 'ubiblk-image-'));
afterAll(() => rmSync(folder, { recursive: true }));

const MIB = 1 << 20;
const O_DIRECT = 0o40000;

function isDirect(fd: number): boolean {
  const flags = /^flags:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1];
  return (Number.parseInt(flags ?? '0', 8) & O_DIRECT) !== 0;
}

test.each([
  // Bytes of a part, of the image, and what may go past the page cache.
  [MIB, 5 * MIB + 3 * 512, [true, true, true, true, true, false]],
  [2 * MIB, 4 * MIB, [true, true]],
  [MIB / 2, MIB, [false, false]],
])('parts of %i bytes of an image of %i', async (partBytes, sizeBytes, direct) => {
  const path = join(folder, `image-${partBytes}`);
  const parts = direct.length;
  const identity = Buffer.alloc(32, 1);
  const image = PartialImage.open(path, { identity, parts, sizeBytes, aligned: true });
  const memory = new NativeBuffer(parts * partBytes);
  const bytes = new Uint8Array(memory.window());
  const random = new Random(seed);
  for (let at = 0; at < bytes.length; at += 512) bytes.fill(random.below(256), at, at + 512);
  const write = spyOn(Lane.prototype, 'writeOut');
  const went: boolean[] = [];
  try {
    const offsets = direct.map((_, part) => part * partBytes);
    await Promise.all(
      offsets.map((offset) => {
        const length = Math.min(partBytes, sizeBytes - offset);
        return image.write(memory.address + offset, length, offset);
      }),
    );
    for (const [fd, , offset] of write.mock.calls) went[offset / partBytes] = isDirect(fd);
  } finally {
    write.mockRestore();
  }
  await image.commit();
  image.close();
  // Not every file system has it.
  if (went.includes(true)) expect(went).toEqual(direct);
  expect(readFileSync(path).equals(bytes.subarray(0, sizeBytes))).toBe(true);
  memory.free();
});

test('what the file system refuses past the page cache is written through it, from then on', async () => {
  const path = join(folder, 'image-refused');
  const partBytes = 2 * MIB;
  const sizeBytes = 4 * partBytes;
  const parts = { identity: Buffer.alloc(32, 1), parts: 4, sizeBytes, aligned: true };
  const image = PartialImage.open(path, parts);
  const memory = new NativeBuffer(sizeBytes);
  const bytes = new Uint8Array(memory.window());
  for (let at = 0; at < sizeBytes; at += 512) bytes.fill(at >> 9, at, at + 512);
  const { writeOut } = Lane.prototype;
  let refused = 0;
  let taken = 0;
  // Some are begun, and refused in the middle.
  const write = spyOn(Lane.prototype, 'writeOut').mockImplementation(async function (
    this: Lane,
    fd,
    from,
    offset,
  ) {
    if (!isDirect(fd)) return await writeOut.call(this, fd, from, offset);
    if (offset % partBytes === 0 && taken++ === 1) {
      return await writeOut.call(this, fd, { ...from, length: MIB }, offset);
    }
    refused++;
    return -EINVAL;
  });
  try {
    const put = (part: number) => {
      const at = part * partBytes;
      return image.write(memory.address + at, partBytes, at);
    };
    await Promise.all([0, 1, 2].map(put));
    const before = refused;
    await put(3);
    expect(refused).toBe(before);
  } finally {
    write.mockRestore();
  }
  await image.commit();
  image.close();
  expect(readFileSync(path).equals(bytes)).toBe(true);
  memory.free();
});
