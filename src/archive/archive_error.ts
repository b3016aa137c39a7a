/** What is wrong with an archive: the end of a sentence that begins with the name of the object. */
export class ArchiveError extends Error {
  override name = 'ArchiveError';
}
