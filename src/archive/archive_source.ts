/** An archive as a source of stripes. */
import { UserError } from '../errors.ts';
import type { StripeBuffer, StripeSource } from '../stripe/interfaces.ts';
import type { Slot } from './object_codec.ts';
import type { Archive } from './reader.ts';
import { Slots } from './slots.ts';

/** An object that is fetched, or was, for whoever wants it. */
interface Transfer {
  /** Its slot, and its length there. */
  fetched: Promise<{ slot: Slot; length: number }>;
  users: number;
  /** The last of those that make a stripe of it, one after the other. */
  turn: Promise<unknown>;
}

/** How long the end of a server waits for reads that may hang, in milliseconds. */
const CLOSE_PATIENCE_MS = 3000;

export class ArchiveSource implements StripeSource {
  readonly description: string;
  readonly sizeBytes: number;
  readonly leastDiskBytes: number;
  readonly parallel: number;
  private readonly slots: Slots;
  private readonly free: Slot[];
  private readonly waiting: ((slot: Slot) => void)[] = [];
  /** By the number of the object. */
  private readonly transfers = new Map<number, Transfer>();
  /** Reads, and fetches that may go on when nobody wants them any more. */
  private underWay = 0;
  private readonly idle = Promise.withResolvers<void>();
  private closing = false;

  /** @throws UserError where the archive's stripes are of another size */
  constructor(
    private readonly archive: Archive,
    stripeBytes: number,
  ) {
    const { store, index, description } = archive;
    if (archive.stripeBytes !== stripeBytes) {
      archive.close();
      throw new UserError(
        `the archive in ${store.name} has stripes of ${archive.stripeBytes} bytes, but those of this ` +
          `disk have ${stripeBytes}; make its metadata with the same size (--stripe-sector-count-shift)`,
      );
    }
    this.description = store.description;
    this.sizeBytes = archive.sizeBytes;
    // Older archives don't say how much of the last stripe there is.
    const last = Math.max(index.stripes - 1, 0) * stripeBytes;
    this.leastDiskBytes = description.diskBytes ?? (index.stripes === 0 ? 0 : last + 512);
    this.slots = new Slots(archive.form, store.parallel);
    this.free = [...this.slots.all];
    this.parallel = Math.min(store.parallel, this.free.length);
  }

  has(stripe: number): boolean {
    return this.archive.index.has(stripe);
  }

  async read(stripe: number, buffer: StripeBuffer, signal?: AbortSignal): Promise<boolean> {
    const object = this.archive.index.objectOf(stripe);
    if (object === null) return false;
    return await this.counted(() => this.readObject(stripe, object, buffer, signal));
  }

  async close(): Promise<void> {
    this.closing = true;
    this.archive.store.giveUp();
    this.lookIfIdle();
    // What is under way goes into memory that is freed here, or, where it hangs, by the end of the process.
    if (!(await this.isIdle())) return;
    this.slots.free();
    this.archive.close();
    this.archive.store.close();
  }

  /** @throws Error where the source is closed */
  private async counted<Result>(work: () => Promise<Result>): Promise<Result> {
    if (this.closing) throw new Error('the source was closed');
    this.underWay++;
    try {
      return await work();
    } finally {
      this.underWay--;
      this.lookIfIdle();
    }
  }

  private async readObject(
    stripe: number,
    object: number,
    buffer: StripeBuffer,
    signal?: AbortSignal,
  ): Promise<boolean> {
    const transfer = this.transferOf(object);
    transfer.users++;
    try {
      // Only until here: afterwards the buffer is written to, which its owner must wait for.
      const { slot, length } = await unlessAborted(transfer.fetched, signal);
      const turn = transfer.turn.then(() => this.unseal(stripe, object, slot, length, buffer));
      transfer.turn = turn.catch(() => {});
      return await turn;
    } finally {
      if (--transfer.users === 0) {
        if (this.transfers.get(object) === transfer) this.transfers.delete(object);
        transfer.fetched.then(({ slot }) => this.giveBack(slot)).catch(() => {});
      }
    }
  }

  private transferOf(object: number): Transfer {
    const shared = this.transfers.get(object);
    if (shared) return shared;
    const fetched = this.counted(() => this.fetch(object));
    const transfer = { fetched, users: 0, turn: Promise.resolve() };
    // What is encrypted is decrypted where it lies: there is nothing left for a second one.
    if (this.archive.form.xts === 0) this.transfers.set(object, transfer);
    return transfer;
  }

  private async fetch(object: number): Promise<{ slot: Slot; length: number }> {
    const slot = this.free.pop() ?? (await new Promise<Slot>((take) => this.waiting.push(take)));
    try {
      if (this.closing) throw new Error('the source was closed');
      return { slot, length: await this.archive.fetch(object, slot) };
    } catch (error) {
      this.giveBack(slot);
      throw error;
    }
  }

  private async unseal(
    stripe: number,
    object: number,
    slot: Slot,
    length: number,
    buffer: StripeBuffer,
  ): Promise<boolean> {
    const { archive } = this;
    if (buffer.bytes.length === archive.stripeBytes) {
      return await archive.unseal(stripe, object, slot, length, buffer);
    }
    // The disk ends within the stripe.
    if (!(await archive.unseal(stripe, object, slot, length))) return false;
    buffer.bytes.set(slot.stripe.bytes.subarray(0, buffer.bytes.length));
    return true;
  }

  private giveBack(slot: Slot): void {
    const next = this.waiting.shift();
    if (next) next(slot);
    else this.free.push(slot);
  }

  /** @returns whether nothing is under way, or soon isn't any more */
  private async isIdle(): Promise<boolean> {
    const late = Promise.withResolvers<boolean>();
    const timer = setTimeout(() => late.resolve(false), CLOSE_PATIENCE_MS);
    const idle = await Promise.race([this.idle.promise.then(() => true), late.promise]);
    clearTimeout(timer);
    return idle;
  }

  private lookIfIdle(): void {
    if (this.closing && this.underWay === 0) this.idle.resolve();
  }
}

/** @throws Error as soon as the signal is aborted, however long the result takes */
async function unlessAborted<Result>(
  result: Promise<Result>,
  signal: AbortSignal | undefined,
): Promise<Result> {
  const given = Promise.withResolvers<never>();
  const abort = () => given.reject(new Error('the fetch was given up'));
  signal?.addEventListener('abort', abort);
  if (signal?.aborted) abort();
  try {
    return await Promise.race([result, given.promise]);
  } finally {
    signal?.removeEventListener('abort', abort);
  }
}
