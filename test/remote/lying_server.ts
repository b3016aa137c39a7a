/** Servers that break the protocol in every way, by a seed, and networks that change what is sent. */
import type { Socket } from 'bun';
import { encodeStripeMap, MetadataLayout } from '../../src/stripe/metadata_layout.ts';
import type { Random } from '../random.ts';
import { SHIFT, STRIPE, u64 } from './support.ts';

/** What ends a connection without a word, leaves it silent, or is sent. */
type Lie = (answer: Uint8Array) => Uint8Array | 'end' | 'silence';

/** No status of a stripe that can't be had. */
const WRONG_STATUSES = [0x04, 0x10, 0x55, 0x80, 0xfe];

export class LyingServer {
  /** Of so many answers one is a lie; 0: none is. */
  oneIn = 0;
  /** What it has told, by kind. */
  readonly told = new Map<string, number>();
  private readonly listener;

  /** @param headers of the disk, whose stripes are all whole */
  constructor(
    private readonly random: Random,
    private readonly bytes: Uint8Array,
    private readonly headers: Uint8Array,
  ) {
    this.listener = Bun.listen<Conversation>({
      hostname: '127.0.0.1',
      port: 0,
      socket: {
        open: (socket) => {
          socket.data = new Conversation(this, socket);
        },
        data: (socket, bytes) => socket.data.received(bytes),
        drain: (socket) => socket.data.drained(),
        error: () => {},
      },
    });
  }

  get address(): string {
    return `127.0.0.1:${this.listener.port}`;
  }

  stop(): void {
    this.listener.stop(true);
  }

  hello(): Uint8Array {
    return Uint8Array.of(0, 1, 0, 0, 0);
  }

  metadata(version: 1 | 2, headers = this.headers, shift = SHIFT): Uint8Array {
    const blob = encodeStripeMap(new MetadataLayout(version, shift, headers.length), headers);
    return joined(Uint8Array.of(0), u64(blob.length), blob);
  }

  /** @param other of another disk */
  stripe(number: number, other: boolean): Uint8Array {
    const data = other
      ? this.wrong(1)
      : this.bytes.subarray(number * STRIPE, (number + 1) * STRIPE);
    return joined(Uint8Array.of(0), u64(STRIPE), data);
  }

  /** What is sent for a true answer to an operation. */
  answer(op: number, truth: Uint8Array): ReturnType<Lie> {
    if (this.oneIn === 0 || !this.random.chance(this.oneIn)) return truth;
    const lies = op === 0 ? { ...this.lies, ...this.metadataLies } : this.lies;
    const kind = this.random.pick(Object.keys(lies)) as keyof typeof lies;
    this.told.set(kind, (this.told.get(kind) ?? 0) + 1);
    return lies[kind](truth);
  }

  private readonly lies: Record<string, Lie> = {
    end: () => 'end',
    silence: () => 'silence',
    cut: (truth) => truth.slice(0, this.random.below(truth.length)),
    status: (truth) =>
      joined(Uint8Array.of(this.random.pick(WRONG_STATUSES)), truth.subarray(1, 9), this.wrong(1)),
    refusal: () => Uint8Array.of(this.random.pick([1, 2, 3, 255])),
    refusalAndMore: (truth) =>
      joined(Uint8Array.of(this.random.pick([1, 2, 3, 255])), truth.subarray(1)),
    more: (truth) => joined(truth, Uint8Array.of(0x55), this.noise(this.random.below(4000))),
    noise: (truth) => joined(Uint8Array.of(0x55), this.noise(this.random.below(2 * truth.length))),
    double: () => joined(Uint8Array.of(0), u64(2 * STRIPE), this.wrong(2)),
    huge: (truth) => joined(Uint8Array.of(0), new Uint8Array(8).fill(255), truth.subarray(9)),
    longer: (truth) => joined(Uint8Array.of(0), u64(truth.length - 8), truth.subarray(9)),
    shorter: (truth) => joined(Uint8Array.of(0), u64(truth.length - 10), truth.subarray(9)),
    none: (truth) => joined(Uint8Array.of(0), u64(0), truth.subarray(9)),
  };

  private readonly metadataLies: Record<string, Lie> = {
    megabytes: () => joined(Uint8Array.of(0), u64(64 << 20), this.noise(1000)),
    fewer: () => this.metadata(2, this.headers.subarray(1)),
    others: () =>
      this.metadata(
        2,
        this.headers.map((header, i) => (i === 0 ? header ^ 6 : header)),
      ),
    otherShift: () => this.metadata(2, this.headers, SHIFT + 1),
    changed: (truth) => {
      const changed = truth.slice();
      // The CRC covers it.
      changed[9 + 512 + this.random.below(512)] ^= 1 << this.random.below(8);
      return changed;
    },
  };

  private wrong(stripes: number): Uint8Array {
    return new Uint8Array(stripes * STRIPE).fill(0xdd);
  }

  private noise(length: number): Uint8Array {
    return Uint8Array.from({ length }, () => this.random.below(256));
  }
}

/** One connection: requests are answered in turn. */
class Conversation {
  private request: number[] = [];
  private unsent = new Uint8Array(0);
  private silent = false;
  /** Its metadata was a lie: what it has is none of the disk's. */
  private isOther = false;

  constructor(
    private readonly server: LyingServer,
    private readonly socket: Socket<Conversation>,
  ) {}

  received(bytes: Uint8Array): void {
    this.request.push(...bytes);
    for (;;) {
      const [op] = this.request;
      const length = op === 1 ? 9 : 1;
      if (this.request.length < length) return;
      const request = this.request.splice(0, length);
      if (this.silent) continue;
      if (op === 2) this.answer(op, this.server.hello());
      else if (op === 0) this.answer(op, this.server.metadata(2));
      else this.answer(op, this.server.stripe(request[1], this.isOther));
    }
  }

  drained(): void {
    const count = this.socket.write(this.unsent);
    this.unsent = this.unsent.slice(Math.max(count, 0));
  }

  private answer(op: number, truth: Uint8Array): void {
    const answer = this.server.answer(op, truth);
    if (op === 0 && answer !== truth) this.isOther = true;
    if (answer === 'end') {
      this.socket.end();
    } else if (answer === 'silence') {
      this.silent = true;
    } else {
      this.unsent = joined(this.unsent, answer);
      this.drained();
    }
  }
}

/** Passes bytes on in both directions, and changes, drops, repeats or cuts some. */
export class BadNetwork {
  /** Of so many pieces one is harmed; 0: none is. */
  oneIn = 0;
  harm = 0;
  private readonly listener;

  constructor(
    private readonly random: Random,
    target: string,
  ) {
    const [hostname, port] = target.split(':');
    this.listener = Bun.listen<Pipe>({
      hostname: '127.0.0.1',
      port: 0,
      socket: {
        open: (socket) => {
          const from = new Pipe(socket);
          socket.data = from;
          void Bun.connect<Pipe>({
            hostname,
            port: Number(port),
            socket: {
              open: (other) => {
                const to = new Pipe(other);
                other.data = to;
                to.peer = from;
                from.peer = to;
                from.flush();
              },
              data: (other, bytes) => other.data.pass(this.damaged(bytes)),
              drain: (other) => other.data.write(),
              close: (other) => other.data?.end(),
              error: () => {},
            },
          }).catch(() => socket.end());
        },
        data: (socket, bytes) => socket.data.pass(this.damaged(bytes)),
        drain: (socket) => socket.data.write(),
        close: (socket) => socket.data.end(),
        error: () => {},
      },
    });
  }

  get address(): string {
    return `127.0.0.1:${this.listener.port}`;
  }

  stop(): void {
    this.listener.stop(true);
  }

  /** @returns null where the connection ends */
  private damaged(bytes: Uint8Array): Uint8Array | null {
    const { random } = this;
    if (this.oneIn === 0 || !random.chance(this.oneIn)) return bytes.slice();
    this.harm++;
    const at = random.below(bytes.length);
    switch (random.below(5)) {
      case 0:
        return null;
      case 1:
        return joined(bytes.subarray(0, at), bytes.subarray(at + 1 + random.below(100)));
      case 2:
        return joined(bytes.subarray(0, at), bytes);
      case 3:
        return joined(
          bytes.subarray(0, at),
          Uint8Array.from({ length: 1 + random.below(300) }, () => random.below(256)),
          bytes.subarray(at),
        );
      default: {
        const changed = bytes.slice();
        changed[at] ^= 1 << random.below(8);
        return changed;
      }
    }
  }
}

class Pipe {
  peer: Pipe | null = null;
  private unsent = new Uint8Array(0);
  private early: Uint8Array[] = [];

  constructor(private readonly socket: Socket<Pipe>) {}

  /** What came here goes to the other end. */
  pass(bytes: Uint8Array | null): void {
    if (!bytes) {
      this.end();
      this.socket.end();
    } else if (this.peer) {
      this.peer.send(bytes);
    } else {
      this.early.push(bytes);
    }
  }

  flush(): void {
    for (const bytes of this.early.splice(0)) this.peer?.send(bytes);
  }

  end(): void {
    this.peer?.socket.end();
  }

  write(): void {
    const count = this.socket.write(this.unsent);
    this.unsent = this.unsent.slice(Math.max(count, 0));
  }

  private send(bytes: Uint8Array): void {
    this.unsent = joined(this.unsent, bytes);
    this.write();
  }
}

export function joined(...parts: Uint8Array[]): Uint8Array<ArrayBuffer> {
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
