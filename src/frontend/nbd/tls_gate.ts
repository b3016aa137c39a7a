/**
 * Clients of an NBD server that must speak TLS: hands are shaken on the main thread, which then passes
 * bytes on between TLS and a plain socket that a queue has the other end of.
 */
import { shim } from '../../../ffi/library.ts';
import type { Psk } from '../../crypto/tls_psk.ts';
import { OPTION_MAGIC } from '../../device/nbd/protocol.ts';
import type { Log } from '../../log.ts';
import { relay } from '../../nbd/tls_relay.ts';
import { type Channel, nativeMemory } from '../../remote/channel.ts';
import { adopt } from '../../remote/dial.ts';
import { handOver, type NbdLink, OVER_TLS, WITHOUT_ZEROES } from './link.ts';
import { greeting, type NbdExport, Negotiation, OPTION_HEAD_BYTES } from './negotiation.ts';

/** How long a client may take until TLS has begun, in milliseconds without progress. */
const IDLE_MS = 10_000;
const MAX_OPTION = 4096;
/** Options before TLS that are refused; then nobody listens any more. */
const MOST_OPTIONS = 32;
const MOST_GREETED = 64;

export class TlsGate {
  private readonly open = new Set<Channel>();
  private greeted = 0;

  constructor(
    private readonly psk: Psk,
    private readonly of: NbdExport,
    private readonly links: readonly NbdLink[],
    private readonly wakeFds: readonly number[],
    private readonly log: Log,
  ) {}

  /** Takes a connection over. */
  async receive(fd: number): Promise<void> {
    shim.ubiblk_set_blocking(fd, 0);
    if (this.greeted >= MOST_GREETED) return void shim.ubiblk_close(fd);
    const channel = await adopt(fd, { role: 'server', idleMs: IDLE_MS });
    this.open.add(channel);
    this.greeted++;
    try {
      const negotiation = await this.negotiate(channel);
      if (!negotiation) throw new Error('it gives up, or sends what is no option');
      await channel.secure(this.psk);
      this.passOn(channel, negotiation.noZeroes ? WITHOUT_ZEROES : 0);
    } catch (error) {
      this.log.debug(`a client's connection ended before TLS: ${(error as Error).message}`);
      channel.close();
      this.open.delete(channel);
    } finally {
      this.greeted--;
    }
  }

  /** Ends all connections. */
  close(): void {
    for (const channel of this.open) channel.close();
  }

  /** @returns null where the client gives up */
  private async negotiate(channel: Channel): Promise<Negotiation | null> {
    const memory = nativeMemory(OPTION_HEAD_BYTES + MAX_OPTION);
    try {
      const { bytes } = memory;
      const view = new DataView(bytes.buffer);
      const send = async (text: Uint8Array) => {
        bytes.set(text);
        await channel.send(memory, 0, text.length);
      };
      await send(greeting());
      await channel.receive(memory, 0, 4);
      const negotiation = new Negotiation(this.of, 'required');
      if (!negotiation.setFlags(view.getUint32(0))) return null;
      for (let count = 0; count < MOST_OPTIONS; count++) {
        await channel.receive(memory, 0, OPTION_HEAD_BYTES);
        const length = view.getUint32(12);
        if (view.getBigUint64(0) !== OPTION_MAGIC || length > MAX_OPTION) return null;
        const option = view.getUint32(8);
        await channel.receive(memory, 0, length);
        const answer = negotiation.answer(option, bytes.slice(0, length));
        // What stands behind the option in the clear was put there by somebody else.
        if (negotiation.next === 'tls' && channel.hasInput) return null;
        await send(answer);
        if (negotiation.next === 'tls') return negotiation;
        if (negotiation.next === 'end') return null;
      }
      return null;
    } finally {
      memory.free();
    }
  }

  private passOn(channel: Channel, bits: number): void {
    const fds = new Int32Array(2);
    if (shim.ubiblk_socket_pair(fds) < 0) {
      this.log.warn('a client is turned away: no descriptor is left; raise the limit (ulimit -n)');
      channel.close();
      this.open.delete(channel);
      return;
    }
    const [ours, theirs] = fds;
    handOver(this.links, this.wakeFds, theirs, OVER_TLS | bits);
    void relay(channel, ours).then(() => this.open.delete(channel));
  }
}
