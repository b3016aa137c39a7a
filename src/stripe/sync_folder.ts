import { closeSync, fsyncSync, openSync } from 'node:fs';

/** Names that were given, changed or taken away there are durable. @throws Error with a `code` */
export function syncFolder(folder: string): void {
  const fd = openSync(folder, 'r');
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}
