/** What is where on a disk, for NBD_CMD_BLOCK_STATUS. */
import { shim } from '../../../ffi/library.ts';
import type { DiskFacts } from '../../device/disk.ts';
import { MOST_EXTENTS } from '../../device/nbd/nbd_device.ts';
import { STATE_HOLE, STATE_ZERO } from '../../device/nbd/protocol.ts';
import { KNOWN_ZERO } from '../../stripe/interfaces.ts';
import type { LazyStart } from '../../stripe/lazy_disk.ts';
import { FETCHED, HAS_SOURCE, SharedStripes } from '../../stripe/shared_state.ts';

/** Looks at the file for one answer: each is a system call. */
const MOST_LOOKS = 4 * MOST_EXTENTS;
const NOTHING_THERE = STATE_HOLE | STATE_ZERO;

/** Is told of what was found, from the offset that was asked for on. */
export type ExtentSink = (length: number, flags: number) => void;

export class BlockStatus {
  private readonly shared: SharedStripes | null;
  private readonly stripeBytes: number;
  private readonly knownZeroes: Uint8Array | null;
  /** Whether the file's holes are the disk's. */
  private readonly holesCount: boolean;

  constructor(
    private readonly facts: DiskFacts,
    lazy: LazyStart | null,
  ) {
    this.shared = lazy && new SharedStripes(lazy.shared, lazy.stripes, lazy.queues);
    this.knownZeroes = lazy?.knownZeroes ? new Uint8Array(lazy.knownZeroes) : null;
    this.stripeBytes = lazy?.options.stripeBytes ?? 0;
    this.holesCount = facts.fd >= 0 && facts.xts === 0 && !facts.isBlockDevice;
  }

  /**
   * Tells the states of `base:allocation`, up to `end` or as far as one answer goes.
   * @param most extents
   */
  allocation(offset: number, end: number, most: number, tell: ExtentSink): void {
    this.joined(offset, end, most, (at) => this.allocationAt(at, end), tell);
  }

  /** Tells the bits of stripes. */
  stripes(offset: number, end: number, most: number, tell: ExtentSink): void {
    const { shared, stripeBytes } = this;
    if (!shared) return;
    this.joined(
      offset,
      end,
      most,
      (at) => {
        const stripe = Math.floor(at / stripeBytes);
        this.flags = shared.look(stripe);
        return Math.min((stripe + 1) * stripeBytes, end);
      },
      tell,
    );
  }

  /** Of the last extent that was looked at. */
  private flags = 0;

  /** Neighbours with the same flags are one extent. */
  private joined(
    offset: number,
    end: number,
    most: number,
    look: (at: number) => number,
    tell: ExtentSink,
  ): void {
    let at = offset;
    let start = offset;
    let flags = -1;
    let count = 0;
    for (let looks = 0; at < end && looks < MOST_LOOKS; looks++) {
      const until = look(at);
      if (flags >= 0 && this.flags !== flags) {
        tell(at - start, flags);
        if (++count === most) return;
        start = at;
      }
      flags = this.flags;
      at = until;
    }
    tell(at - start, flags);
  }

  /** @returns where what is at an offset ends */
  private allocationAt(at: number, end: number): number {
    let until = end;
    const { shared, stripeBytes } = this;
    if (shared && !shared.quiet) {
      const stripe = Math.floor(at / stripeBytes);
      until = Math.min((stripe + 1) * stripeBytes, end);
      if ((shared.look(stripe) & (HAS_SOURCE | FETCHED)) === HAS_SOURCE) {
        this.flags = this.knownZeroes?.[stripe] === KNOWN_ZERO ? NOTHING_THERE : 0;
        return until;
      }
    }
    this.flags = 0;
    if (!this.holesCount) return until;
    const run = Number(shim.ubiblk_file_extent(this.facts.fd, at, until));
    this.flags = run < 0 ? NOTHING_THERE : 0;
    // Sectors are the smallest that is told of, and one with data is data.
    const length = Math.abs(run);
    const whole = run < 0 ? length - (length % 512) : Math.ceil(length / 512) * 512;
    if (whole > 0) return Math.min(at + whole, until);
    this.flags = 0;
    return Math.min(at + 512, until);
  }
}
