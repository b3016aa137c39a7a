/**
 * Where the entry of a Worker, or a module that isn't bundled with the rest, is, given its path below src/. The
 * same from the source tree and in the executable, where all of src/ that is bundled stands at the root: this
 * file lies there in both.
 */
export function workerUrl(path: `${string}_worker.ts` | `${string}_module.ts`): string {
  return new URL(`./${path}`, import.meta.url).href;
}
