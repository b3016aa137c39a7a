/** Writes an archive's disk into a file, sparse, and goes on where a run before was interrupted. */
import { PartialImage, refuseExisting } from '../stripe/partial_image.ts';
import type { Slot } from './object_codec.ts';
import type { Archive } from './reader.ts';
import { Slots } from './slots.ts';

export interface ExportOptions {
  path: string;
  /** A file that is there is replaced. */
  force: boolean;
  signal: AbortSignal;
  progress: (doneBytes: number, totalBytes: number) => void;
}

export interface Exported {
  stripes: number;
  /** Stripes that were written, and that a run before had written. */
  written: number;
  kept: number;
}

/**
 * Writes the disk beside its place, makes it durable and gives it its name.
 * @throws UserError; what was written stays beside it, for a run that goes on with it
 */
export async function exportArchive(archive: Archive, options: ExportOptions): Promise<Exported> {
  const { path, force } = options;
  refuseExisting(path, force);
  const { stripes, sizeBytes } = archive;
  const part = PartialImage.open(path, {
    identity: archive.identity(),
    parts: stripes,
    sizeBytes,
    aligned: true,
  });
  try {
    const exported = await new Exporter(archive, part, options).run();
    await part.commit();
    return exported;
  } finally {
    part.close();
  }
}

class Exporter {
  private done = 0;
  private written = 0;
  private kept = 0;

  constructor(
    private readonly archive: Archive,
    private readonly part: PartialImage,
    private readonly options: ExportOptions,
  ) {}

  async run(): Promise<Exported> {
    const { archive } = this;
    const slots = new Slots(archive.form, archive.store.parallel);
    try {
      const work = (stripe: number, slot: Slot) => this.write(stripe, slot);
      await slots.forEach(archive.stripes, work, this.options.signal, () => archive.store.giveUp());
    } catch (error) {
      // What went wrong first is what is told.
      await this.part.note().catch(() => {});
      throw error;
    } finally {
      slots.free();
    }
    return { stripes: archive.stripes, written: this.written, kept: this.kept };
  }

  private async write(stripe: number, slot: Slot): Promise<void> {
    const { archive, part } = this;
    const { stripeBytes, sizeBytes } = archive;
    const offset = stripe * stripeBytes;
    const length = Math.min(stripeBytes, sizeBytes - offset);
    if (part.has(stripe)) {
      this.kept++;
    } else {
      const object = archive.index.objectOf(stripe);
      if (object !== null) {
        // What the file has not been given yet is zeroes.
        if (await archive.load(stripe, object, slot)) {
          await part.write(slot.stripe.address, length, offset);
          this.written++;
        }
      }
      part.add(stripe);
    }
    this.done += length;
    this.options.progress(this.done, sizeBytes);
    await part.noteNow();
  }
}
