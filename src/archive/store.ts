/** Where an archive's objects are: a folder, or a part of a bucket. */
import { UserError } from '../errors.ts';
import type { StripeBuffer } from '../stripe/interfaces.ts';
import { DESCRIPTION_NAME } from './description.ts';

/** The index of each format. */
export const INDEX_NAMES = { 1: 'stripe-hashes.json', 2: 'stripe-mapping' } as const;
/** Everything that belongs to an archive but its data. */
export const HEAD_NAMES = [DESCRIPTION_NAME, ...Object.values(INDEX_NAMES)] as const;
/** What a run that isn't finished has noted: the description that its objects are made with. */
export const NOTE_NAME = 'resume.json';

/** The note of whoever deletes what is unused: a run must not count on anything that is there. */
export const SWEEP_NOTE = '{"deletes_unused_objects":true}';

export function isSweepNote(note: Uint8Array | null): boolean {
  return note !== null && Buffer.compare(note, Buffer.from(SWEEP_NOTE)) === 0;
}

/** Nothing can be had from the store now: that says nothing about what was asked for. */
export class StoreAwayError extends UserError {}

export interface StoredObject {
  /** Of the data: its hash, as hexadecimal digits. */
  hash: string;
  lengthBytes: number;
}

export interface Commit {
  description: string;
  /** One that goes with the index before, too, where there is an archive whose keys stay; else null. */
  meanwhile: string | null;
  indexName: string;
  index: Uint8Array;
}

/** A run that writes to a store; there is one at a time. */
export interface Run {
  /** What an interrupted run has noted, or null. */
  readonly left: Uint8Array | null;
  /** Whether the store may hold data already. */
  readonly begun: boolean;
  /** Notes the description, durably. */
  note(description: string): Promise<void>;
  /** The archive is complete: takes the note away, and what else the run has left. */
  end(): Promise<void>;
  /** Lets others write; the note stays. */
  leave(): void;
}

/** Each call throws a UserError that names the store and the object. */
export interface ObjectStore {
  /** In a sentence: `'/srv/archive'`. */
  readonly name: string;
  /** In messages and status, as the reference system has it: `archive filesystem (path: P)`. */
  readonly description: string;
  /** Calls that are best under way at once. */
  readonly parallel: number;
  /** Whether the description and the index of an archive can be replaced in one moment. */
  readonly switches: boolean;
  /** Whether a run keeps others out for as long as its process lives; else a note is all that they see. */
  readonly locks: boolean;
  /** @returns null where there is no such object */
  get(name: string): Promise<Uint8Array | null>;
  /**
   * Reads an object into memory.
   * @returns its length; null where there is none
   */
  fetch(name: string, to: StripeBuffer): Promise<number | null>;
  /** Puts an object of data; it is there as a whole or not at all. */
  put(name: string, object: StripeBuffer): Promise<void>;
  /** Whether an object is there with just this content, as far as can be told without reading all of it. */
  holds(name: string, bytes: Uint8Array): Promise<boolean>;
  /** All data. */
  list(): AsyncIterable<StoredObject>;
  /** Removes data. @param hashes as hexadecimal digits */
  remove(hashes: string[]): Promise<void>;
  /** Begins to write. @throws UserError also where another run is seen to write */
  begin(): Promise<Run>;
  /** Makes what was put the archive, after it is durable: data, then the description, then the index. */
  commit(commit: Commit): Promise<void>;
  /** Has calls that are under way fail soon, and all others at once: nobody wants their results. */
  giveUp(): void;
  close(): void;
}
