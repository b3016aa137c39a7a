/** What `ubiblk copy` reads from and writes to: bytes at offsets, in parallel. */
import type { Extent } from '../nbd/connection.ts';
import type { Memory } from '../remote/channel.ts';

export type { Extent };

export interface CopySource {
  /** For messages. */
  readonly name: string;
  readonly sizeBytes: number;
  /** What is best read at once. */
  readonly unitBytes: number;
  /** Reads at once. */
  readonly parallel: number;
  /** Text that changes when the content does, as far as that can be known. */
  readonly identity: string;
  /** What is there from an offset on: the beginning of the range at least. */
  extents(offset: number, length: number): Promise<readonly Extent[]>;
  /** @returns false where all of it is zeroes, and then the memory is as it was @throws Error */
  read(offset: number, memory: Memory, length: number): Promise<boolean>;
  /** Ends what is under way with an error, where that may take long. */
  stop?(): void;
  close(): Promise<void>;
}

export interface CopyTarget {
  readonly name: string;
  /** What it has room for. */
  readonly roomBytes: number;
  /** What it takes is a multiple of this long. */
  readonly sectorBytes: number;
  /** Whether what isn't written reads as zeroes. */
  readonly isZero: boolean;
  /** What a run before has copied already. */
  has(offset: number): boolean;
  /** @throws Error */
  write(offset: number, memory: Memory, length: number): Promise<void>;
  /** Makes a range read as zeroes. @throws Error */
  zero(offset: number, length: number): Promise<void>;
  /** All of the unit at an offset has been copied. */
  done(offset: number): Promise<void>;
  /** All has been copied, so much from its start: makes it durable. */
  commit(sizeBytes: number): Promise<void>;
  /** Something went wrong: notes what is there. */
  giveUp(): Promise<void>;
  /** Ends what is under way with an error, where that may take long. */
  stop?(): void;
  close(): Promise<void>;
}
