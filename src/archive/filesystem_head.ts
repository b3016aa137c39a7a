/**
 * The description and the index of an archive in a folder: two files that are replaced in one moment.
 *
 * Where the description stays as it is, the index is simply renamed into its place. Else both names are
 * made links to `.current/...` for a while, itself a link to a folder that holds the old files; then that
 * link is replaced by one to a folder with the new ones, which is the moment; then the names become files
 * again. Between any two steps the folder holds one whole archive, for readers that follow links.
 */
import {
  linkSync,
  lstatSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  symlinkSync,
  unlinkSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { syncFolder } from '../stripe/sync_folder.ts';
import { DESCRIPTION_NAME } from './description.ts';
import { type Commit, HEAD_NAMES } from './store.ts';

const CURRENT = '.current';
const OLD = '.head-old';
const NEW = '.head-new';
const TEMPORARY = '.head.tmp';
const FOLDER_MODE = 0o700;
const FILE_MODE = 0o600;

/** Puts the head of a new archive in place of the one that is there, or of none. @throws Error with a `code` */
export function replaceHead(folder: string, commit: Commit): void {
  for (const step of replacementSteps(folder, commit)) step();
}

/** The same, step by step. The folder has been recovered. */
export function replacementSteps(folder: string, commit: Commit): (() => void)[] {
  const there = HEAD_NAMES.filter((name) => exists(join(folder, name)));
  const indexes = there.filter((name) => name !== DESCRIPTION_NAME);
  const description = Buffer.from(commit.description);
  const putIndex = () => writeDurable(folder, commit.indexName, commit.index);
  if (there.includes(DESCRIPTION_NAME) && indexes.length > 0) {
    const before = readFileSync(join(folder, DESCRIPTION_NAME));
    if (before.equals(description)) return [putIndex];
    return switchSteps(folder, there, commit);
  }
  // An index without a description is none; it must not be taken for that of the new one.
  const removeStray = indexes.map((name) => () => unlinkSync(join(folder, name)));
  const putDescription = () => writeDurable(folder, DESCRIPTION_NAME, description);
  return [...removeStray, putDescription, putIndex];
}

/** Ends a replacement that was interrupted, with the archive that was there then. @throws Error with a `code` */
export function recoverHead(folder: string): void {
  for (const step of flattenSteps(folder)) step();
}

function switchSteps(
  folder: string,
  there: readonly string[],
  { description, indexName, index }: Commit,
): (() => void)[] {
  const names = [...new Set([...there, indexName])];
  return [
    () => {
      mkdirSync(join(folder, OLD), { mode: FOLDER_MODE });
      for (const name of there) linkSync(join(folder, name), join(folder, OLD, name));
      syncFolder(join(folder, OLD));
    },
    () => symlinkSync(OLD, join(folder, CURRENT)),
    () => syncFolder(folder),
    ...names.map((name) => () => replaceByLink(folder, `${CURRENT}/${name}`, name)),
    () => {
      mkdirSync(join(folder, NEW), { mode: FOLDER_MODE });
      writeDurable(join(folder, NEW), DESCRIPTION_NAME, Buffer.from(description));
      writeDurable(join(folder, NEW), indexName, index);
    },
    () => syncFolder(folder),
    () => replaceByLink(folder, NEW, CURRENT),
    () => syncFolder(folder),
    () => recoverHead(folder),
  ];
}

function flattenSteps(folder: string): (() => void)[] {
  const links = HEAD_NAMES.filter((name) => isLink(join(folder, name)));
  const left = [CURRENT, OLD, NEW, TEMPORARY].filter((name) => exists(join(folder, name)));
  if (links.length === 0 && left.length === 0) return [];
  return [
    ...links.map((name) => () => {
      const content = readOptional(join(folder, name));
      // It leads nowhere where the archive that is there has no such file.
      if (content) writeDurable(folder, name, content);
      else unlinkSync(join(folder, name));
    }),
    () => syncFolder(folder),
    ...left.map((name) => () => rmSync(join(folder, name), { recursive: true, force: true })),
  ];
}

function replaceByLink(folder: string, target: string, name: string): void {
  const temporary = join(folder, TEMPORARY);
  rmSync(temporary, { force: true });
  symlinkSync(target, temporary);
  renameSync(temporary, join(folder, name));
}

/** The file has this content, durably, from one moment on. */
function writeDurable(folder: string, name: string, content: Uint8Array): void {
  const temporary = join(folder, TEMPORARY);
  rmSync(temporary, { force: true });
  try {
    writeFileSync(temporary, content, { mode: FILE_MODE, flush: true });
    renameSync(temporary, join(folder, name));
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
  syncFolder(folder);
}

function exists(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false }) !== undefined;
}

function isLink(path: string): boolean {
  return lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink() ?? false;
}

function readOptional(path: string): Buffer | null {
  try {
    return readFileSync(path);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
}
