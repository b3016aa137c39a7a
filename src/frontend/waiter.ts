/**
 * How a queue thread finds out that there is something to do: by its ring, which also carries its
 * I/O, or by epoll(7) where io_uring is forbidden. Both watch the queue's own eventfd for commands and
 * the question whether the thread lives and, while a virtqueue runs, its kick descriptor.
 */
import { failed } from '../../ffi/errno.ts';
import { shim } from '../../ffi/library.ts';
import type { Ring, RingHandler } from '../../ffi/ring.ts';
import type { Pulse } from './heartbeat.ts';

export interface Waiter {
  /** Watches a kick descriptor from now on. */
  watch(kickFd: number): void;
  /** Ends the watch; the descriptor may be closed afterwards. */
  unwatch(): void;
  /** Hands prepared I/O to the kernel and completes what is done; returns how much was. */
  progress(): number;
  /** The same, but sleeps until something is there: completion, kick or command. */
  sleep(): void;
  /** Spins for a while until a chain or a completion is there; see Ring.spin. */
  spin(availIdxAddress: number, seen: number, timeoutUs: number): number;
}

const WAKE = 0xffff;

/** Waits in an io_uring. */
export class RingWaiter implements Waiter, RingHandler {
  private readonly handler: number;
  /** Each watch has its own number, so that a late event of the one before is told apart. */
  private watchNumber = 0;
  private watching = -1;
  private armed = false;

  constructor(
    private readonly ring: Ring,
    private readonly wakeFd: number,
    private readonly pulse: Pulse,
  ) {
    this.handler = ring.addHandler(this);
    ring.pollIn(wakeFd, this.handler, WAKE);
  }

  watch(kickFd: number): void {
    this.watchNumber = (this.watchNumber + 1) % WAKE;
    this.watching = kickFd;
    this.arm();
  }

  unwatch(): void {
    if (this.watching < 0) return;
    this.watching = -1;
    // A removal that meets a kick on its way fails with EALREADY and leaves the poll armed.
    while (this.armed) {
      this.ring.pollRemove(this.handler, this.watchNumber, WAKE + 1);
      this.ring.enter(1, -1);
      this.ring.reap();
    }
  }

  progress(): number {
    if (this.ring.prepared > 0 || this.ring.hasDeferredWork) this.ring.enter(0, 0);
    return this.ring.reap();
  }

  sleep(): void {
    this.ring.enter(1, -1);
    this.ring.reap();
  }

  spin(availIdxAddress: number, seen: number, timeoutUs: number): number {
    return this.ring.spin(availIdxAddress, seen, timeoutUs);
  }

  ringCompleted(index: number, result: number, more: boolean): void {
    if (index === WAKE) {
      shim.ubiblk_eventfd_drain(this.wakeFd);
      this.pulse.answer();
      if (!more) this.ring.pollIn(this.wakeFd, this.handler, WAKE);
    } else if (index === this.watchNumber) {
      this.armed = more;
      if (!more && this.watching >= 0 && result >= 0) this.arm();
    }
  }

  private arm(): void {
    this.armed = true;
    this.ring.pollIn(this.watching, this.handler, this.watchNumber);
  }
}

/** Waits in epoll(7). */
export class EpollWaiter implements Waiter {
  private readonly epoll: number;
  private watching = -1;

  /** @throws Error where the process has no descriptor left */
  constructor(
    wakeFd: number,
    private readonly pulse: Pulse,
  ) {
    this.epoll = shim.ubiblk_epoll();
    if (this.epoll < 0) throw failed('epoll_create1', this.epoll);
    shim.ubiblk_epoll_add(this.epoll, wakeFd);
  }

  watch(kickFd: number): void {
    this.watching = kickFd;
    shim.ubiblk_epoll_add(this.epoll, kickFd);
  }

  unwatch(): void {
    if (this.watching >= 0) shim.ubiblk_epoll_remove(this.epoll, this.watching);
    this.watching = -1;
  }

  progress(): number {
    // While there is work, nobody looks at the eventfd.
    this.pulse.answer();
    return 0;
  }

  sleep(): void {
    shim.ubiblk_epoll_wait(this.epoll);
    this.pulse.answer();
  }

  spin(availIdxAddress: number, seen: number, timeoutUs: number): number {
    return shim.ubiblk_spin_avail(availIdxAddress, seen, timeoutUs);
  }
}
