/** Memory that a frontend shares with the server: what a virtual machine's RAM is to its devices. */
import { errnoName, failed } from '../../ffi/errno.ts';
import { shim } from '../../ffi/library.ts';
import { windowOver } from '../../ffi/memory.ts';
import { UserError } from '../errors.ts';

/**
 * A memory file and its mapping here. The server sees it at `guestAddress`; this side names its own
 * mapping (`userAddress`) where the protocol asks for the frontend's addresses.
 */
export class SharedMemory {
  readonly fd: number;
  /** Where it is mapped in this process. */
  readonly userAddress: number;
  /** What ubiblk_memory_map_shared says of the mapping: base, length, size of its pages. */
  private readonly mapping = new BigUint64Array(3);

  /**
   * @param length bytes; at most 4 GiB, and used only where they are touched
   * @param guestAddress where descriptors find it
   * @param hugePages of which it is made, as a virtual machine's may be
   * @throws Error (ENOMEM and the like)
   */
  constructor(
    readonly length: number,
    readonly guestAddress: number,
    hugePages = false,
  ) {
    const make = hugePages ? shim.ubiblk_memory_memfd_huge : shim.ubiblk_memory_memfd;
    this.fd = make(Buffer.from('ubiblk-probe\0'), length);
    if (hugePages && this.fd < 0) {
      throw new UserError(
        `${length} bytes of huge pages can't be had (${errnoName(this.fd)}); raise vm.nr_hugepages`,
      );
    }
    if (this.fd < 0) throw failed('memfd_create', this.fd);
    this.userAddress = shim.ubiblk_memory_map_shared(this.fd, 0, length, this.mapping) as number;
    if (this.userAddress < 0) {
      shim.ubiblk_close(this.fd);
      throw failed('mmap', this.userAddress);
    }
  }

  /** A window over a part of it. */
  window(offset: number, length: number): ArrayBuffer {
    return windowOver(this.userAddress + offset, length);
  }

  /** Unmaps it; no window may be used afterwards. */
  close(): void {
    shim.ubiblk_memory_unmap_shared(Number(this.mapping[0]), Number(this.mapping[1]));
    shim.ubiblk_close(this.fd);
  }
}
