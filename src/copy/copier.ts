/** Copies from a source to a target: several pieces at a time, and no zeroes where they needn't be. */
import { type Memory, nativeMemory } from '../remote/channel.ts';
import type { CopySource, CopyTarget } from './ends.ts';

export interface CopyOptions {
  signal: AbortSignal;
  progress: (doneBytes: number, totalBytes: number) => void;
}

export interface Copied {
  sizeBytes: number;
  /** Carried from the source. */
  dataBytes: number;
  /** Known to be zeroes, without being carried or after. */
  zeroBytes: number;
  /** That a run before had copied. */
  keptBytes: number;
}

interface Task {
  offset: number;
  length: number;
  zero: boolean;
}

/** Zeroes that are looked for in data. */
const GRAIN_BYTES = 64 * 1024;
/** Extents are asked for so far ahead. */
const ASKED_BYTES = 2 ** 30;
/** Targets take whole blocks: one of which a part may be data is data. */
const BLOCK_BYTES = 4096;
const MEMORY_BYTES = 64 << 20;
/** Units that are zeroed at once. */
const MOST_ZERO_UNITS = 64;

/** @throws Error of the end that fails; what was copied is kept where the target can go on with it */
export async function copy(
  source: CopySource,
  target: CopyTarget,
  options: CopyOptions,
): Promise<Copied> {
  const copier = new Copier(source, target, options);
  const { signal } = options;
  signal.addEventListener('abort', () => {
    source.stop?.();
    target.stop?.();
  });
  try {
    await copier.run();
    signal.throwIfAborted();
    await target.commit(source.sizeBytes);
  } catch (error) {
    // What went wrong first is what is told.
    await target.giveUp().catch(() => {});
    throw error;
  }
  return copier.copied;
}

class Copier {
  readonly copied: Copied;
  private done = 0;
  private readonly tasks: AsyncGenerator<Task>;
  private turn: Promise<unknown> = Promise.resolve();
  /** Bytes that are copied of units that aren't whole yet. */
  private readonly partly = new Map<number, number>();
  private failed = false;
  private readonly zeroes: Buffer;

  constructor(
    private readonly source: CopySource,
    private readonly target: CopyTarget,
    private readonly options: CopyOptions,
  ) {
    this.copied = { sizeBytes: source.sizeBytes, dataBytes: 0, zeroBytes: 0, keptBytes: 0 };
    this.zeroes = Buffer.alloc(GRAIN_BYTES);
    this.tasks = this.plan();
  }

  async run(): Promise<void> {
    const { unitBytes, parallel } = this.source;
    const count = Math.max(1, Math.min(parallel, Math.floor(MEMORY_BYTES / unitBytes)));
    const memories = Array.from({ length: count }, () => nativeMemory(unitBytes));
    const results = await Promise.allSettled(memories.map((memory) => this.work(memory)));
    for (const memory of memories) memory.free();
    for (const result of results) if (result.status === 'rejected') throw result.reason;
  }

  private async work(memory: Memory): Promise<void> {
    const { signal } = this.options;
    try {
      for (;;) {
        const task = await this.next();
        if (!task || this.failed) return;
        signal.throwIfAborted();
        await this.carry(task, memory);
        await this.finished(task);
      }
    } catch (error) {
      this.failed = true;
      throw error;
    }
  }

  /** One worker at a time asks what is next. */
  private async next(): Promise<Task | undefined> {
    const next = this.turn.then(() => this.tasks.next());
    this.turn = next.catch(() => {});
    return (await next).value;
  }

  /** What is to be done, in the order of the source: pieces of units, and runs of zeroes. */
  private async *plan(): AsyncGenerator<Task> {
    const { source, target } = this;
    const { sizeBytes, unitBytes } = source;
    for (let at = 0; at < sizeBytes; ) {
      if (at % unitBytes === 0 && target.has(at)) {
        const length = Math.min(unitBytes, sizeBytes - at);
        this.copied.keptBytes += length;
        this.tell(length);
        at += length;
        continue;
      }
      const asked = Math.min(ASKED_BYTES, sizeBytes - at);
      const began = at;
      let told = at;
      for (const extent of await source.extents(at, asked)) {
        told += extent.length;
        const end = this.blockEnd(told, extent.zero);
        while (at < end && !(at % unitBytes === 0 && target.has(at))) {
          const unitEnd = (Math.floor(at / unitBytes) + 1) * unitBytes;
          const many = target.isZero ? end : unitEnd + MOST_ZERO_UNITS * unitBytes;
          const until = Math.min(end, extent.zero ? many : unitEnd);
          const length = this.wanted(at, until) - at;
          yield { offset: at, length, zero: extent.zero };
          at += length;
        }
        if (at < end) break;
      }
      if (at > began) continue;
      // Less than a block is told of.
      const unitEnd = (Math.floor(at / unitBytes) + 1) * unitBytes;
      const length = Math.min(unitEnd, this.blockEnd(at + 1, false)) - at;
      yield { offset: at, length, zero: false };
      at += length;
    }
  }

  private blockEnd(at: number, zero: boolean): number {
    const { sizeBytes } = this.source;
    if (at >= sizeBytes) return sizeBytes;
    const round = zero ? Math.floor : Math.ceil;
    return Math.min(round(at / BLOCK_BYTES) * BLOCK_BYTES, sizeBytes);
  }

  /** Where a run ends that goes up to `until`, but for what the target has. */
  private wanted(at: number, until: number): number {
    const { unitBytes } = this.source;
    let end = (Math.floor(at / unitBytes) + 1) * unitBytes;
    while (end < until && !this.target.has(end)) end += unitBytes;
    return Math.min(end, until);
  }

  private async carry({ offset, length, zero }: Task, memory: Memory): Promise<void> {
    const { source, target, copied } = this;
    if (zero || !(await source.read(offset, memory, length))) {
      copied.zeroBytes += length;
      if (!target.isZero) await target.zero(offset, length);
      return;
    }
    copied.dataBytes += length;
    for (let at = 0; at < length; ) {
      const isZero = this.isZero(memory, at, length);
      let end = at;
      do end = Math.min(end + GRAIN_BYTES, length);
      while (end < length && this.isZero(memory, end, length) === isZero);
      const part = { address: memory.address + at, bytes: memory.bytes.subarray(at, end) };
      if (!isZero) await target.write(offset + at, part, end - at);
      else if (!target.isZero) await target.zero(offset + at, end - at);
      at = end;
    }
  }

  private isZero({ bytes }: Memory, at: number, length: number): boolean {
    const part = bytes.subarray(at, Math.min(at + GRAIN_BYTES, length));
    return this.zeroes.compare(part, 0, part.length, 0, part.length) === 0;
  }

  private async finished({ offset, length }: Task): Promise<void> {
    const { unitBytes, sizeBytes } = this.source;
    this.tell(length);
    for (let at = offset; at < offset + length; ) {
      const unit = Math.floor(at / unitBytes);
      const unitEnd = Math.min((unit + 1) * unitBytes, sizeBytes);
      const end = Math.min(unitEnd, offset + length);
      const there = (this.partly.get(unit) ?? 0) + end - at;
      if (there === unitEnd - unit * unitBytes) {
        this.partly.delete(unit);
        await this.target.done(unit * unitBytes);
      } else {
        this.partly.set(unit, there);
      }
      at = end;
    }
  }

  private tell(length: number): void {
    this.done += length;
    this.options.progress(this.done, this.source.sizeBytes);
  }
}
